"""The load: wrk, what it is told, and what it says.

wrk keeps each connection busy: it asks again as soon as it has an answer.  The p50 and p99 of wrk 4.1 (Debian's) are
"corrected for coordinated omission": an answer that took longer than twice the average stands for those that would have
been asked meanwhile, so a p99 is rather too long than too short.
"""

from __future__ import annotations

import json
import resource
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.errors import BenchError
from tests.bench.workloads import Workload

SCRIPT: Final = Path(__file__).parent / "wrk.lua"
ANSWER_S_MAX: Final = 10
"""An answer that takes longer is an error."""
PATIENCE_S: Final = 60.0
"""wrk is given up when it takes so much longer than it was told to."""

ERRORS: Final = {
    "connect": "connections failed",
    "read": "reads failed",
    "write": "writes failed",
    "status": "answers were no 2xx or 3xx",
    "timeout": f"answers took longer than {ANSWER_S_MAX} s",
}


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    complaints: tuple[str, ...] = ()
    cpu_s: float = 0.0


def load(
    url: str,
    workload: Workload,
    *,
    seconds: int,
    connections: int,
    is_varied: bool = False,
    prefix: Sequence[str] = (),
) -> Load:
    """Load a server for some seconds.

    Args:
        is_varied: are no two requests alike?
        prefix: a program that runs wrk, with its arguments.

    Raises:
        BenchError: wrk failed, or got no answer.
    """
    command = [*prefix, *f"wrk -t1 -c{connections} -d{seconds}s --timeout {ANSWER_S_MAX}s -s {SCRIPT}".split()]
    command += [url + workload.path, "--", workload.method, str(workload.body_bytes)]
    command += [str(workload.headers), str(int(is_varied))]
    before = _children_cpu_s()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise BenchError(f"wrk did not end within {seconds + PATIENCE_S:g} s: {' '.join(command)}") from None
    if done.returncode:
        raise BenchError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return parse(done.stdout, cpu_s=_children_cpu_s() - before)


def parse(text: str, *, cpu_s: float = 0.0) -> Load:
    """What ``wrk.lua`` wrote in the end.

    Raises:
        BenchError: it is not there, or there was no answer.
    """
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if not lines:
        raise BenchError(f"wrk did not say what came of it: {text.strip() or '(nothing)'}")
    said = json.loads(lines[-1])
    complaints = tuple(f"{said['errors'][kind]} {what}" for kind, what in ERRORS.items() if said["errors"][kind])
    if not said["requests"]:
        raise BenchError(f"no request was answered: {', '.join(complaints) or 'no errors either'}")
    return Load(
        requests=said["requests"],
        seconds=said["seconds"],
        p50_ms=said["p50_ms"],
        p99_ms=said["p99_ms"],
        max_ms=said["max_ms"],
        complaints=complaints,
        cpu_s=cpu_s,
    )


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
