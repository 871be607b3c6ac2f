"""System calls a request, counted in a run of its own.

    perf      the kernel counts at its tracepoints, which slows the server little; needs the right to (usually root)
    strace    stops the server at each call, which slows it several times over: threads then wait for each other far
              more often than they would, so counts of futex say little
"""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
from typing import Final

from tests.bench.errors import BenchError
from tests.bench.load import load
from tests.bench.servers import Running
from tests.bench.usage import processes_of
from tests.bench.workloads import Workload

SECONDS: Final = 2
END_DEADLINE_S: Final = 10.0

NAMES: Final = (
    "recvfrom recvmsg read readv sendto sendmsg write writev sendfile64 futex epoll_wait epoll_pwait epoll_ctl poll "
    "ppoll accept accept4 shutdown close ioctl fcntl getsockname getpeername setsockopt utimensat fchmod openat "
    "newfstat newfstatat lseek pread64 dup clock_nanosleep getrusage sched_yield"
).split()
"""What perf counts one by one; all others together."""


def by_perf(server: Running, workload: Workload, connections: int) -> dict[str, float]:
    """How many system calls of each name a request takes, the most frequent first.

    Raises:
        BenchError: perf may not count, or fails.
    """
    with tempfile.NamedTemporaryFile("r") as table:
        events = [word for name in NAMES for word in ("-e", f"syscalls:sys_enter_{name}")]
        pids = ",".join(map(str, processes_of(server.leader)))
        counted = ["perf", "stat", "-x,", "-o", table.name, "-e", "raw_syscalls:sys_enter", *events, "-p", pids, "--"]
        try:
            requests = load(server.url, workload, seconds=SECONDS, connections=connections, prefix=counted).requests
        except BenchError as error:
            raise BenchError(f"perf cannot count (is kernel.perf_event_paranoid in the way?): {error}") from error
        return parse_perf(table.read(), requests)


def by_strace(server: Running, workload: Workload, connections: int) -> dict[str, float]:
    """The same, by strace.

    Raises:
        BenchError: strace may not trace, or fails.
    """
    with tempfile.NamedTemporaryFile("r") as table:
        pids = [word for pid in processes_of(server.leader) for word in ("-p", str(pid))]
        tracer = subprocess.Popen(
            ["strace", "-f", "-c", "-U", "calls,name", "-o", table.name, *pids], stderr=subprocess.PIPE, text=True
        )
        try:
            requests = _traced_requests(tracer, server, workload, connections)
        finally:
            _end(tracer)
        return parse_strace(table.read(), requests)


TRACERS: Final = {"perf": by_perf, "strace": by_strace}


def parse_perf(table: str, requests: int) -> dict[str, float]:
    """The table of ``perf stat -x,``, divided by the number of requests; ``others`` are those not counted singly."""
    rows = re.findall(r"^(\d+),[^,]*,(?:syscalls:sys_enter_|raw_syscalls:)(\w+),", table, re.M)
    counts = {name: int(count) for count, name in rows}
    counts["others"] = 2 * counts.get("sys_enter", 0) - sum(counts.values())
    counts.pop("sys_enter", None)
    return _shares(counts, requests)


def parse_strace(table: str, requests: int) -> dict[str, float]:
    """The table of ``strace -c -U calls,name``, divided by the number of requests."""
    rows = re.findall(r"^\s*(\d+)\s+([a-z_0-9]+)\s*$", table, re.M)
    return _shares({name: int(count) for count, name in rows if name != "total"}, requests)


def _shares(counts: dict[str, int], requests: int) -> dict[str, float]:
    found = ((name, count / requests) for name, count in counts.items() if count)
    return dict(sorted(found, key=lambda item: -item[1]))


def _traced_requests(tracer: subprocess.Popen[str], server: Running, workload: Workload, connections: int) -> int:
    assert tracer.stderr is not None
    said = tracer.stderr.readline()  # "Process N attached": it traces from here on
    if "attached" not in said:
        raise BenchError(f"strace cannot trace (is kernel.yama.ptrace_scope in the way?): {said.strip()}")
    return load(server.url, workload, seconds=SECONDS, connections=connections).requests


def _end(tracer: subprocess.Popen[str]) -> None:
    tracer.send_signal(signal.SIGINT)
    try:
        tracer.communicate(timeout=END_DEADLINE_S)
    except subprocess.TimeoutExpired:
        tracer.kill()
        tracer.communicate()
