"""The command line of the benchmark, and the order of its turns: ``python -m tests.bench --help``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Final, NoReturn

from tests.bench import report, servers
from tests.bench.calls import TRACERS
from tests.bench.errors import BenchError
from tests.bench.idle import IdleCost, allow_files, idle_connections, still_open
from tests.bench.load import load
from tests.bench.report import Result, median_of
from tests.bench.samples import Sample, used_s
from tests.bench.servers import Running
from tests.bench.usage import ahead_of_others, busy_s, cpu_s_by_process, memory_bytes
from tests.bench.workloads import WORKERS, WORKLOADS, Workload

ALONE: Final = Path(__file__).parent / "alone.py"
ALONE_S: Final = 1.0
ALONE_DEADLINE_S: Final = 60.0
WARM_UP_S: Final = 1
SETTLE_S_MAX: Final = 30.0
"""wrk leaves without its last answers; a server that calls one at a time may be busy with them for seconds."""
CONNECTIONS_MIN: Final = 1000
"""Servers are told to hold at least so many, which is the default of gunicorn and of forkserve."""


class Bench:
    """One run."""

    def __init__(self, options: argparse.Namespace, python: Path) -> None:
        self._options = options
        self._python = python
        self._begun_s = time.monotonic()
        self._turns_done = 0
        per_round = len(options.servers)
        self._turns = options.rounds * per_round * len(options.workloads) * len(options.workers)

    def run(self, worker: str) -> Result:
        """All that is asked for of one worker type; tables come as soon as they are whole."""
        options = self._options
        result = Result(worker, options.connections)
        for name in options.workloads:
            workload = WORKLOADS[name]
            result.samples[name] = {server: [] for server in options.servers}
            for number in range(options.rounds):
                if workload.is_judged_alone:
                    result.alone.setdefault(name, []).append(self._alone_us(workload))
                for server in options.servers:
                    sample = self._turn(server, worker, workload)
                    result.samples[name][server].append(sample)
                    self._tell(f"{worker} {name} {number + 1}/{options.rounds} {server}", sample)
            if workload.is_judged_alone:
                result.in_place[name] = self._in_place_us(worker, workload)
        if options.workloads:
            print(f"\n{report.table(result, is_coloured=report.has_colours())}\n", flush=True)
        if options.tracer:
            self._count_calls(result)
            print(f"\n{report.calls_table(result)}\n", flush=True)
        if options.idle:
            self._look_at_idle(result)
            print(f"\n{report.idle_table(result)}\n", flush=True)
        return result

    @contextmanager
    def _serving(
        self, server: str, worker: str, workload: Workload, variables: Mapping[str, str] = MappingProxyType({})
    ) -> Iterator[Running]:
        options = self._options
        port = servers.free_port()
        room = max(CONNECTIONS_MIN, options.connections + options.idle + servers.SPARE_CONNECTIONS)
        argv = servers.command(self._python, server, worker, workload, port, room)
        with (
            servers.serving(argv, port, workload.path, variables) as running,
            ahead_of_others(running.leader) if options.ahead else nullcontext(),
        ):
            yield running

    def _turn(self, server: str, worker: str, workload: Workload) -> Sample:
        with self._serving(server, worker, workload) as running:
            self._load(running, workload, WARM_UP_S)
            return self._load(running, workload, self._options.seconds)

    def _load(self, running: Running, workload: Workload, seconds: int) -> Sample:
        """Load it, and count what that costs, when it has answered what an earlier load has left behind."""
        options = self._options
        if servers.status_of(running.url + workload.path, SETTLE_S_MAX) != 200:
            raise BenchError(f"the server does not answer {workload.path} within {SETTLE_S_MAX:g} s any more")
        all_before, before = busy_s(), cpu_s_by_process(running.leader)
        seen = load(
            running.url, workload, seconds=seconds, connections=options.connections, is_varied=options.vary
        )
        cpu_s, complaints = used_s(before, cpu_s_by_process(running.leader))
        others_s = busy_s() - all_before - cpu_s - seen.cpu_s
        return Sample(
            requests=seen.requests,
            seconds=seen.seconds,
            cpu_s=cpu_s,
            p50_ms=seen.p50_ms,
            p99_ms=seen.p99_ms,
            max_ms=seen.max_ms,
            others=max(0.0, others_s / seen.seconds),
            complaints=seen.complaints + complaints,
        )

    def _alone_us(self, workload: Workload) -> float:
        places = os.pathsep.join(map(str, servers.APPLICATIONS))
        done = subprocess.run(
            [self._python, ALONE, workload.target, workload.path, str(ALONE_S)],
            env={**os.environ, "PYTHONPATH": places},
            capture_output=True,
            text=True,
            check=False,
            timeout=ALONE_DEADLINE_S,
        )
        if done.returncode:
            raise BenchError(f"{workload.target} cannot be called without a server:\n{done.stderr.strip()}")
        return float(done.stdout)

    def _in_place_us(self, worker: str, workload: Workload) -> float:
        """What a call of the application costs inside forkserve (apps/timed.py)."""
        timed, variables = replace(workload, target="timed:app"), {"BENCH_TIMED_TARGET": workload.target}
        with self._serving("forkserve", worker, timed, variables) as running:
            self._load(running, timed, WARM_UP_S)
            self._load(running, timed, WARM_UP_S)
            return float(servers.text_of(f"{running.url}/bench-cost"))

    def _count_calls(self, result: Result) -> None:
        count = TRACERS[self._options.tracer]
        for name in self._options.workloads:
            for server in self._options.servers:
                print(f"  counting system calls: {result.worker} {name} {server} …", flush=True)
                with self._serving(server, result.worker, WORKLOADS[name]) as running:
                    self._load(running, WORKLOADS[name], WARM_UP_S)
                    found = count(running, WORKLOADS[name], self._options.connections)
                result.calls.setdefault(name, {})[server] = found

    def _look_at_idle(self, result: Result) -> None:
        options, workload = self._options, WORKLOADS["hello"]
        for server in options.servers:
            print(f"  {options.idle:,} idle connections: {result.worker} {server} …", flush=True)
            with self._serving(server, result.worker, workload) as running:
                self._load(running, workload, WARM_UP_S)
                alone = [self._load(running, workload, options.seconds) for _ in range(options.rounds)]
                before = memory_bytes(running.leader)
                with idle_connections(running.port, options.idle) as opened:
                    growth, kept = memory_bytes(running.leader) - before, still_open(opened)
                    beside = [self._load(running, workload, options.seconds) for _ in range(options.rounds)]
                    kept_last = still_open(opened)
            result.idle[server] = IdleCost(
                asked=options.idle,
                kept=(kept, kept_last),
                bytes_each=growth / max(kept, 1),
                alone_us=median_of([sample.cpu_us for sample in alone]),
                beside_us=median_of([sample.cpu_us for sample in beside]),
                alone_p99_ms=median_of([sample.p99_ms for sample in alone]),
                beside_p99_ms=median_of([sample.p99_ms for sample in beside]),
            )

    def _tell(self, turn: str, sample: Sample) -> None:
        self._turns_done += 1
        left_s = (time.monotonic() - self._begun_s) / self._turns_done * (self._turns - self._turns_done)
        print(
            f"  {self._turns_done}/{self._turns}  {turn:36}{sample.per_s:10,.0f} requests/s{sample.cpu_us:10.1f} µs CPU"
            f"   (about {left_s / 60:.0f} min left)",
            flush=True,
        )


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="forkserve, gunicorn and granian under the same load, in turns (make bench WORKER=… BENCH_ARGS=…)",
    )
    whole = positive_int
    parser.add_argument("--worker", choices=[*WORKERS, "all"], default="sync", help="worker type (sync)")
    parser.add_argument(
        "--workloads", nargs="*", choices=list(WORKLOADS), default=list(WORKLOADS), metavar="NAME",
        help=f"what is asked (all): {', '.join(f'{each.name} = {each.what}' for each in WORKLOADS.values())}",
    )  # fmt: skip
    parser.add_argument("--servers", nargs="+", choices=servers.SERVERS, default=list(servers.SERVERS), help="(all)")
    parser.add_argument("--rounds", type=whole, default=3, help="turns of each server for each workload (3)")
    parser.add_argument("--seconds", type=whole, default=2, help="load of a turn (2)")
    parser.add_argument("--connections", type=whole, default=64, help="connections that are kept busy (64)")
    parser.add_argument("--cpus", type=int, choices=(1, 2), default=1, help="processors for server and load (1)")
    parser.add_argument("--vary", action="store_true", help="no two requests alike: nothing remembered helps")
    parser.add_argument(
        "--strace", dest="tracer", action="store_const", const="strace", help="also count system calls a request"
    )
    parser.add_argument(
        "--perf", dest="tracer", action="store_const", const="perf", help="the same by perf, which disturbs less"
    )
    parser.add_argument("--idle", type=whole, default=0, metavar="N", help="also hold N idle connections (10000)")
    parser.add_argument("--ahead", action="store_true", help="ahead of what else wants the processors (needs root)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    parser.add_argument(
        "--python", type=Path, help="interpreter that has the servers (that of .venv-bench, made when needed)"
    )
    options = parser.parse_args(arguments)
    options.workers = list(WORKERS) if options.worker == "all" else [options.worker]
    return options


def positive_int(text: str) -> int:
    """A number of the command line that is at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _pin(count: int) -> list[int]:
    """Bind this program, and all that it starts, to the last processors."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < count:
        raise BenchError(f"--cpus {count}: only {len(allowed)} may be used here")
    os.sched_setaffinity(0, allowed[-count:])
    return allowed[-count:]


def _leave(_signum: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(143)  # as a shell says it: 128 + SIGTERM; what runs is ended on the way


def _run(options: argparse.Namespace) -> None:
    packages = {"wrk": "wrk", "strace": "strace", "perf": "linux-perf"}
    servers.require({name: packages[name] for name in ("wrk", options.tracer) if name})
    if options.idle:
        allow_files(options.idle)
    python = options.python.absolute() if options.python else servers.installed_python()
    versions = servers.versions(python)
    cpus = _pin(options.cpus)
    where = "one of them" if len(cpus) == 1 else f"{len(cpus)} of them"
    machine = f"Linux {platform.release()}, {os.cpu_count()} processors; server and load share {where}"
    asked = (
        f"{options.connections} connections, medians of {options.rounds} turns of {options.seconds} s"
        + ", no two requests alike" * options.vary
    )
    print(report.heading(versions, machine, asked), flush=True)
    bench = Bench(options, python)
    results = [bench.run(worker) for worker in options.workers]
    if options.json is not None:
        written = {
            "versions": versions,
            "machine": machine,
            "load": asked,
            "results": [report.document(result) for result in results],
        }
        options.json.write_text(json.dumps(written, indent=1) + "\n", "utf-8")


def main() -> int:
    """Run it; 1 when something is missing or does not come up."""
    options = parse_arguments()
    signal.signal(signal.SIGTERM, _leave)
    try:
        with ahead_of_others(os.getpid()) if options.ahead else nullcontext():
            _run(options)
    except (BenchError, OSError, subprocess.SubprocessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbench: interrupted; nothing is left running", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
