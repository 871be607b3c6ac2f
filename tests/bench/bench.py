"""forkserve and gunicorn under the same load, in turns, in one run: `make bench`.

    for each round: for each server: start ─ warm up ─ wrk for some seconds ─ stop   (server and wrk on ONE processor)
                                                 └ CPU seconds of all its processes, before and after (/proc/PID/stat)

Prints requests per second and microseconds of server CPU a request, medians over the rounds, and the ratio.  Numbers of
different runs or machines cannot be compared; ratios within one run can.  With ``--strace`` it also counts system calls
a request in a separate short run, since tracing slows the traced; with ``--vary`` no two requests are alike, so that
what a server remembers of earlier ones does not help it.

gunicorn is installed from PyPI into .venv-bench; the load comes from wrk.  Everything stays on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCH_VENV = ROOT / ".venv-bench"
VARY = Path(__file__).parent / "vary.lua"
EXAMPLES = ROOT / "docs" / "examples"
START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 15.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

COMMANDS: dict[str, list[str]] = {
    "forkserve": [sys.executable, "-m", "forkserve"],
    "gunicorn": [str(BENCH_VENV / "bin" / "python"), "-m", "gunicorn"],
}


class BenchError(Exception):
    """The benchmark cannot go on; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one turn of one server gave."""

    requests: int
    seconds: float
    cpu_s: float
    complaints: tuple[str, ...] = ()

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.seconds

    @property
    def cpu_us_per_request(self) -> float:
        return self.cpu_s / self.requests * 1e6 if self.requests else float("inf")


# ---------------------------------------------------------------------------------------------- servers


def processes_of(leader: int) -> list[int]:
    """The processes of the session that ``leader`` began, whatever their parents (proc(5), stat field 6)."""
    return [pid for pid, fields in _all_stats() if int(fields[3]) == leader]


def _all_stats() -> Iterator[tuple[int, list[str]]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                text = Path("/proc", name, "stat").read_text()
            except OSError:
                continue  # ended while we looked
            yield int(name), text.rpartition(")")[2].split()


def cpu_s_of(leader: int) -> float:
    """User and system time of these processes and of their children that have ended, in seconds."""
    return sum(sum(map(int, fields[11:15])) for _pid, fields in _all_stats() if int(fields[3]) == leader) / TICKS_PER_S


@contextmanager
def serving(name: str, arguments: Sequence[str], application: str = "demo:app") -> Iterator[tuple[int, str]]:
    """A running server: its session's leader and its address; afterwards it is gone."""
    paths = f"{EXAMPLES},{ROOT}"
    command = [*COMMANDS[name], "--bind", "127.0.0.1:0", "--workers", "1", "--pythonpath", paths, *arguments]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, application], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=ROOT
        )
        try:
            yield process.pid, _wait_until_it_serves(name, process, log.fileno())
        finally:
            _end(process)


def _wait_until_it_serves(name: str, process: subprocess.Popen[bytes], log_fd: int) -> str:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        said = os.pread(log_fd, 65536, 0).decode("utf-8", "replace")
        found = re.search(r"http://127\.0\.0\.1:[1-9]\d*", said)
        if found and _answers(found[0]):
            return found[0]
        time.sleep(0.02)
    said = os.pread(log_fd, 65536, 0).decode("utf-8", "replace")
    raise BenchError(f"{name} did not come up within {START_DEADLINE_S:g} s; it said:\n{said.strip() or '(nothing)'}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url + "/hello", timeout=2) as answer:
            return bool(answer.read() == b"Hello, world!")
    except (urllib.error.URLError, OSError):
        return False  # not yet: asked again until the deadline


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop the server gracefully, and whatever is left of its session at once."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        print(f"  (it did not stop within {STOP_DEADLINE_S:g} s and was killed)", file=sys.stderr)
    for pid in processes_of(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # ended by itself meanwhile
    process.wait()


# ---------------------------------------------------------------------------------------------- load


def load(url: str, seconds: float, options: argparse.Namespace) -> tuple[int, float, tuple[str, ...]]:
    """Requests answered, seconds taken, and what wrk complained about."""
    command = ["wrk", "-t1", f"-c{options.connections}", f"-d{max(1, round(seconds))}s", "--timeout", "5s"]
    command += ["-s", str(VARY)] * options.vary + [url + options.path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    found = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", done.stdout)
    if done.returncode or not found:
        raise BenchError(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    unit = {"ms": 0.001, "s": 1.0, "m": 60.0}[found[3]]
    complaints = re.findall(r"(?:Socket errors|Non-2xx).*", done.stdout)
    return int(found[1]), float(found[2]) * unit, tuple(complaints)


def measure(name: str, options: argparse.Namespace, arguments: Sequence[str]) -> Sample:
    """One turn of one server."""
    with serving(name, arguments) as (leader, url):
        load(url, 1, options)
        before = cpu_s_of(leader)
        requests, seconds, complaints = load(url, options.seconds, options)
        return Sample(requests, seconds, cpu_s_of(leader) - before, complaints)


def count_calls(name: str, options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, float]:
    """System calls a request by name, traced for two seconds."""
    with serving(name, arguments) as (leader, url), tempfile.NamedTemporaryFile("r") as table:
        pids = [flag for pid in processes_of(leader) for flag in ("-p", str(pid))]
        tracer = subprocess.Popen(
            ["strace", "-f", "-c", "-U", "calls,name", "-o", table.name, *pids], stderr=subprocess.PIPE
        )
        assert tracer.stderr is not None
        tracer.stderr.readline()  # "Process N attached": it traces from here on
        requests, _seconds, _complaints = load(url, 2, options)
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=10)
        rows = re.findall(r"^\s*(\d+)\s+([a-z_0-9]+)\s*$", table.read(), re.M)
    return {call: int(count) / max(requests, 1) for count, call in rows if call != "total"}


# ---------------------------------------------------------------------------------------------- what is needed


def prepare(options: argparse.Namespace) -> None:
    """Everything that a run needs, or one line that says what is missing."""
    for program, package in [("wrk", "wrk")] + [("strace", "strace")] * options.strace:
        if shutil.which(program) is None:
            raise BenchError(f"{program} is not installed (Debian: apt install {package})")
    if "gunicorn" in options.servers:
        install_gunicorn()


def install_gunicorn() -> None:
    """Into a virtual environment of its own, unless it is there."""
    if not (BENCH_VENV / "installed").exists():
        print("Installing gunicorn into .venv-bench …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", BENCH_VENV], check=True)
        pip = [COMMANDS["gunicorn"][0], "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "gunicorn"]
        subprocess.run(pip, check=True)
        (BENCH_VENV / "installed").touch()


def version_of(name: str) -> str:
    """What the server calls itself."""
    done = subprocess.run([*COMMANDS[name], "--version"], capture_output=True, text=True, check=False, cwd=ROOT)
    found = re.search(r"\d+\.\d+\S*", done.stdout + done.stderr)
    return found[0].rstrip(")") if found else "?"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="forkserve and gunicorn under the same load, in turns, on one processor"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server (3)")
    parser.add_argument("--seconds", type=float, default=5, help="load of a turn, in seconds (5)")
    parser.add_argument("--connections", type=int, default=64, help="connections at once (64)")
    parser.add_argument("--path", default="/hello", help="what is asked of docs/examples/demo.py (/hello)")
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)), help="processor for all (the last)")
    parser.add_argument("--servers", nargs="+", choices=list(COMMANDS), default=list(COMMANDS), help="which (both)")
    parser.add_argument("--worker-class", default="sync", help="worker type of both (sync)")
    parser.add_argument("--vary", action="store_true", help="no two requests alike: nothing remembered helps")
    parser.add_argument("--strace", action="store_true", help="also count system calls a request")
    return parser.parse_args()


# ---------------------------------------------------------------------------------------------- the run


def report(samples: dict[str, list[Sample]]) -> None:
    """The table: medians, and each server against the first."""
    first = next(iter(samples))
    print(f"\n{'server':24}{'requests/s':>12}{'CPU µs/request':>17}{'spread':>16}{'x ' + first:>14}")
    base = statistics.median(sample.cpu_us_per_request for sample in samples[first])
    for name, turns in samples.items():
        costs = [sample.cpu_us_per_request for sample in turns]
        cost, speed = statistics.median(costs), statistics.median(sample.requests_per_s for sample in turns)
        spread = f"{min(costs):.1f} … {max(costs):.1f}"
        print(f"{name + ' ' + version_of(name):24}{speed:12,.0f}{cost:17.1f}{spread:>16}{cost / base:14.2f}")
    for name, turns in samples.items():
        for complaint in sorted({complaint for sample in turns for complaint in sample.complaints}):
            print(f"{name}: {complaint}")


def main() -> int:
    """Run it; 1 when something is missing or does not come up."""
    options = parse_arguments()
    arguments = ["--worker-class", options.worker_class]
    try:
        prepare(options)
        os.sched_setaffinity(0, {options.cpu})  # inherited by servers and load alike
        samples: dict[str, list[Sample]] = {name: [] for name in options.servers}
        for turn in range(options.rounds):
            for name in options.servers:
                sample = measure(name, options, arguments)
                samples[name].append(sample)
                print(
                    f"round {turn + 1}/{options.rounds}  {name:10}{sample.requests_per_s:10,.0f} requests/s"
                    f"{sample.cpu_us_per_request:9.1f} µs CPU",
                    flush=True,
                )
        report(samples)
        if options.strace:
            for name in options.servers:
                calls = count_calls(name, options, arguments)
                shown = ", ".join(
                    f"{call} {count:.2f}" for call, count in sorted(calls.items(), key=lambda item: -item[1])[:8]
                )
                print(f"\nsystem calls a request, {name}: {sum(calls.values()):.2f} ({shown})")
    except (BenchError, OSError, subprocess.SubprocessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
