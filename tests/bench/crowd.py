"""What good clients notice of a crowd of slow ones: `make crowd`.

    for each round: for each server: start ─ good clients alone ─ the crowd gathers ─ good clients beside it ─ stop
                                              └ quiet p50, p99                          └ crowd p50, p99, failures

The slow (tests/crowd.py) dribble heads, dribble bodies and read large answers slowly, all at the same time, for as long
as the good ask: each a connection and a request at a time, at a steady rate far below what the server can do.  Prints
medians over the rounds; the ratio of the p99s says what the good have noticed.  "none" is an answer that did not come.

The server has one processor, all clients another; the crowd yields to the good.  Numbers of different runs or machines
cannot be compared.  Everything is installed from PyPI into .venv-bench.  Everything stays on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Final

from tests.bench.errors import BenchError
from tests.bench.servers import ROOT, free_port, installed_python, serving
from tests.bench.usage import ahead_of_others, cpu_s_by_process, memory_bytes
from tests.crowd import Address, Asked, Crowd, allow_descriptors, ask_well

GATHER_DEADLINE_S: Final = 30.0
"""A third of the crowd has to have the beginning of a large answer before the good are asked; a server that cannot give
it to them in that time is measured all the same."""
NICE: Final = 10
"""The crowd yields to the good clients on their common processor."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server and how it is set up."""

    server: str
    arguments: tuple[str, ...]


CONTESTANTS: Final = {
    "forkserve-sync": Contestant("forkserve", ("--worker-connections", "5000")),
    "forkserve-gthread": Contestant("forkserve", ("-k", "gthread", "--threads", "100", "--worker-connections", "5000")),
    "gunicorn-sync": Contestant("gunicorn", ()),
    "gunicorn-gthread": Contestant("gunicorn", ("-k", "gthread", "--threads", "100", "--worker-connections", "5000")),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one server; ``cpu`` is the share of one processor, alone and beside the crowd."""

    quiet: Asked
    crowded: Asked
    cpu: tuple[float, float]
    grown_mib: float


@contextmanager
def crowd(address: Address, size: int, pause_s: float) -> Iterator[None]:
    """A crowd in a process of its own, gathered and at it as far as the server lets it."""
    context = multiprocessing.get_context("fork")
    gathered, over = context.Event(), context.Event()
    process = context.Process(target=_run_crowd, args=(address, size, pause_s, gathered, over), daemon=True)
    process.start()
    try:
        gathered.wait(GATHER_DEADLINE_S)
        yield
    finally:
        over.set()
        process.join()


def _run_crowd(address: Address, size: int, pause_s: float, gathered: Event, over: Event) -> None:
    os.nice(NICE)
    Crowd(address, size, pause_s).run(over.is_set, gathered.set)


def measure(contestant: Contestant, python: Path, options: argparse.Namespace) -> Sample:
    """One round of one server."""
    port = free_port()
    bound = f"--bind 127.0.0.1:{port} --workers 1 --pythonpath {ROOT}".split()
    argv = [str(python), "-m", contestant.server, *bound, *contestant.arguments, "tests.crowd:application"]
    os.sched_setaffinity(0, {options.server_cpu})  # inherited by the server, threads and all
    with serving(argv, port, "/hello") as running, ahead(running.leader, options):
        leader, address = running.leader, ("127.0.0.1", running.port)
        os.sched_setaffinity(0, {options.client_cpu})
        ask_well(address, options.good, 1, options.good_pause)
        memory = memory_mib_of(leader)
        quiet, quiet_cpu = ask(address, leader, options)
        with crowd(address, options.slow, options.slow_pause):
            crowded, crowded_cpu = ask(address, leader, options)
            return Sample(quiet, crowded, (quiet_cpu, crowded_cpu), memory_mib_of(leader) - memory)


def ahead(pid: int, options: argparse.Namespace) -> AbstractContextManager[None]:
    """Before what else the machine has to do, if that is wanted."""
    return ahead_of_others(pid) if options.ahead else nullcontext()


def ask(address: Address, leader: int, options: argparse.Namespace) -> tuple[Asked, float]:
    """Good clients for some seconds, and the share of a processor that those of the server took who have lived on."""
    began, before = time.monotonic(), cpu_s_by_process(leader)
    asked = ask_well(address, options.good, options.seconds, options.good_pause)
    after, took_s = cpu_s_by_process(leader), time.monotonic() - began
    return asked, sum(spent - before.get(pid, 0.0) for pid, spent in after.items()) / took_s


def memory_mib_of(leader: int) -> float:
    """Memory of all processes of a session."""
    return memory_bytes(leader) / (1 << 20)


def in_ms(seconds: float) -> str:
    """Milliseconds, or that there was no answer."""
    return "none" if seconds == float("inf") else f"{seconds * 1000:.2f}"


def described(sample: Sample) -> str:
    """One line about one round."""
    quiet, crowded = sample.quiet, sample.crowded
    return (
        f"quiet p99 {in_ms(quiet.quantile_s(0.99)):>8} ms   crowd p99 {in_ms(crowded.quantile_s(0.99)):>8} ms   "
        f"answered {len(crowded.seconds):,} of {crowded.count:,}"
    )


def report(samples: dict[str, list[Sample]]) -> None:
    """The table: medians over the rounds."""
    print(f"\n{'':19}{'good clients alone':>22}{'beside the crowd':>22}")
    columns = f"{'p50 ms':>11}{'p99 ms':>11}" * 2
    print(f"{'':19}{columns}{'p99 x':>8}{'answered':>10}{'CPU':>12}{'memory':>9}")
    for name, rounds in samples.items():
        quiet = [statistics.median(each.quiet.quantile_s(share) for each in rounds) for share in (0.5, 0.99)]
        crowded = [statistics.median(each.crowded.quantile_s(share) for each in rounds) for share in (0.5, 0.99)]
        answered = sum(len(each.crowded.seconds) for each in rounds) / sum(each.crowded.count for each in rounds)
        cpu = [statistics.median(shares) for shares in zip(*(each.cpu for each in rounds), strict=True)]
        grown = statistics.median(each.grown_mib for each in rounds)
        ratio = "none" if crowded[1] == float("inf") else f"{crowded[1] / quiet[1]:.1f}"
        print(
            f"{name:19}{''.join(f'{in_ms(each):>11}' for each in (*quiet, *crowded))}{ratio:>8}{answered:>9.1%} "
            f"{f'{cpu[0]:.0%} → {cpu[1]:.0%}':>11}{grown:>+5.0f} MiB"
        )
    for name, rounds in samples.items():
        for what in sorted({what for each in rounds for what in each.crowded.failed}):
            print(f"{name}: {sum(each.crowded.failed[what] for each in rounds):,} x {what.splitlines()[0]}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    cpus = sorted(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.crowd", description="what good clients notice of a crowd of slow ones"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server (3)")
    parser.add_argument("--seconds", type=float, default=5, help="how long the good ask each time (5)")
    parser.add_argument("--slow", type=int, default=2000, help="slow clients (2000)")
    parser.add_argument("--slow-pause", type=float, default=1.0, help="seconds between two pieces of a slow one (1)")
    parser.add_argument("--good", type=int, default=50, help="good clients (50)")
    parser.add_argument("--good-pause", type=float, default=0.1, help="seconds between requests of a good one (0.1)")
    parser.add_argument("--servers", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="which (all)")
    parser.add_argument("--ahead", action="store_true", help="ahead of what else wants the processors (needs root)")
    parser.add_argument("--server-cpu", type=int, default=cpus[-1], help="processor of the server (the last)")
    parser.add_argument("--client-cpu", type=int, default=cpus[0], help="processor of the clients (the first)")
    return parser.parse_args()


def main() -> int:
    """Run it; 1 when something is missing or does not come up."""
    options = parse_arguments()
    samples: dict[str, list[Sample]] = {name: [] for name in options.servers}
    try:
        if not allow_descriptors(options.slow + options.good):
            raise BenchError("so many connections need more descriptors than the hard limit (ulimit -Hn) allows")
        python = installed_python()
        with ahead(os.getpid(), options):
            for turn in range(options.rounds):
                for name in options.servers:
                    sample = measure(CONTESTANTS[name], python, options)
                    samples[name].append(sample)
                    print(f"round {turn + 1}/{options.rounds}  {name:18}{described(sample)}", flush=True)
        report(samples)
    except (BenchError, OSError) as error:
        print(f"crowd: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
