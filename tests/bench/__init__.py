"""forkserve beside gunicorn and granian under the same load, in turns, in one run: ``make bench WORKER=gthread``.

    for each workload: for each round: for each server:
        start ─ warm up ─ load for some seconds ─ stop                       servers.py, load.py (wrk)
                            └ processor time before and after                usage.py

Numbers of different runs or machines cannot be compared; ratios within one run can.  Everything stays on 127.0.0.1,
and nothing is left running.  The parts:

    workloads.py    what is asked, and how many answers a second are possible at all
    apps/pages.py   the application that is asked; Flask and Django are those of docs/examples
    alone.py        what a call of an application costs in a loop, without any server
    apps/timed.py   what it costs where it runs, with cold caches
    crowd.py        a program of its own (make crowd): what good clients notice of slow ones
    servers.py      installing (.venv-bench), starting and stopping servers
    load.py         wrk, and what it says
    usage.py        processor time and memory of a server, from the kernel
    calls.py        system calls a request, by strace; apart, since tracing slows the traced
    idle.py         many idle keep-alive connections: their memory, and whether they slow the busy ones
    report.py       medians, ratios, tables, JSON

docs/PERFORMANCE.md says how to read the numbers, and shows some.
"""
