"""What a call of an application costs without a server: the floor that no server can be under.

    python alone.py module:attribute PATH SECONDS      ─▶  microseconds of processor time a call

Run as a program of its own, by the interpreter that the servers have.  The environ is made anew for each call, as
applications put things into it; a copy of a dictionary costs less than 1 µs.
"""

from __future__ import annotations

import io
import sys
import time
from importlib import import_module
from typing import Any

WARM_UP_CALLS = 20


def main(target: str, path: str, seconds: float) -> None:
    """Call it for some seconds."""
    module, _, attribute = target.partition(":")
    application = getattr(import_module(module), attribute)
    base: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "RAW_URI": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "127.0.0.1:8000",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }

    def start_response(status: str, _headers: list[tuple[str, str]], _exc_info: Any = None) -> None:
        if not status.startswith("200"):
            raise SystemExit(f"{target} answers {path} with {status}")

    def call() -> None:
        result = application(base.copy(), start_response)
        for _block in result:
            continue
        if hasattr(result, "close"):
            result.close()

    for _ in range(WARM_UP_CALLS):
        call()
    calls, begun_s, until_s = 0, time.process_time(), time.monotonic() + seconds
    while time.monotonic() < until_s:
        call()
        calls += 1
    print((time.process_time() - begun_s) / calls * 1e6)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
