"""An application with a clock around each call: what it costs where it runs, with the caches as they are there.

Between two calls the kernel and the server have used the processor's caches, so that the same call costs more than in a
loop without a server (alone.py): it is no server's fault, and no server can change it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from importlib import import_module
from typing import Any

COST_PATH = "/bench-cost"
TARGET_VARIABLE = "BENCH_TIMED_TARGET"

_module, _, _attribute = os.environ[TARGET_VARIABLE].partition(":")
application = getattr(import_module(_module), _attribute)
spent_ns: list[int] = []


def _clock_cost_ns() -> int:
    """What reading the clock adds to the time of a call."""
    return min(-time.thread_time_ns() + time.thread_time_ns() for _ in range(1000))


CLOCK_COST_NS = _clock_cost_ns()


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """The application's answer, or in COST_PATH the median cost of a call in microseconds."""
    if environ["PATH_INFO"] == COST_PATH:
        body = str(sorted(spent_ns)[len(spent_ns) // 2] / 1e3).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
    begun_ns = time.thread_time_ns()
    result = application(environ, start_response)
    body = b"".join(result)
    if hasattr(result, "close"):
        result.close()
    spent_ns.append(time.thread_time_ns() - begun_ns - CLOCK_COST_NS)
    return [body]
