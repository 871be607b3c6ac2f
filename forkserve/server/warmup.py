"""Warm-up: requests that a new worker answers to nobody before it says that it is ready.

    application loaded ─▶ GET each path of ``warmup`` ─▶ ready
                              └ 5xx or an exception: the worker, and with it the generation, does not come up

They fill caches, open connections and find out what an import alone does not: that the application answers.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import Any, Final

from forkserve import tracebacks
from forkserve.errors import BootError
from forkserve.http.errors import RefusedRequest
from forkserve.http.request import HeadLimits, HeadParser

SERVER_ERRORS: Final = "5"
"""The first digit of the statuses that fail a warm-up: 404 may be what a path is there for, 500 never."""


def warm_up(application: Callable[..., Any], paths: Iterable[str], base: dict[str, Any]) -> None:
    """Ask the application for each path, in order.

    Args:
        base: constants of the environs.

    Raises:
        BootError: one was answered with a server error, or not at all.
    """
    parser = HeadParser(HeadLimits())
    for path in paths:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: forkserve-warmup".encode()
        try:
            environ, *_framing = parser.parse(head, base | {"REMOTE_ADDR": "127.0.0.1", "REMOTE_PORT": "0"})
            status = copy_context().run(_ask, application, environ)
        except RefusedRequest as refused:
            raise BootError(f"warmup = {path!r} is no path that can be asked for: {refused.reason}") from refused
        except Exception as error:
            trace = tracebacks.first_own_frame(error, (__file__,)) or error.__traceback__
            text = "".join(traceback.format_exception(type(error), error, trace))
            raise BootError(f"the warm-up request GET {path} failed: {type(error).__name__}: {error}", text) from error
        if status.startswith(SERVER_ERRORS):
            raise BootError(f"the warm-up request GET {path} was answered {status}")


def _ask(application: Callable[..., Any], environ: dict[str, Any]) -> str:
    """One call by PEP 3333 whose blocks go nowhere; returns its status."""
    said: list[str] = []

    def start_response(status: str, _headers: object, _exc_info: object = None) -> Callable[[bytes], None]:
        said.append(status)
        return lambda _block: None

    result = application(environ, start_response)
    try:
        for _block in result:
            continue
    finally:
        close = getattr(result, "close", None)
        if close is not None:
            close()
    if not said:
        raise RuntimeError("the application did not call start_response")
    return said[-1]
