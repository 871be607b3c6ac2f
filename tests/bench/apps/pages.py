"""The application that the benchmark asks: plain WSGI (PEP 3333), the same for all servers.

    /hello     13 bytes            /wait      20 ms of time.sleep, then 13 bytes
    /json      a small document    /compute   about 2 ms of Python, then 13 bytes
    /upload    reads the body      /stream    20 blocks of 1 KB from a generator
                                   /file      100 KB by wsgi.file_wrapper

The work of ``/compute`` is an amount, not a time: a time would count as work what others take of the processor.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any
from wsgiref.util import FileWrapper

Environ = dict[str, Any]
StartResponse = Callable[..., Any]

WAIT_S = 0.02
COMPUTE_STEPS = 30_000
STREAM_BLOCKS = 20
BLOCK = b"x" * 1024
FILE_BYTES = 100 * 1024
READ_BYTES = 64 * 1024
HELLO = b"Hello, world!"
DOCUMENT = {
    "items": [
        {"id": number, "name": f"item {number}", "price": number * 1.25, "tags": ["a", "b", "c"], "is_sold": False}
        for number in range(10)
    ]
}


def _made_file() -> int:
    """A file without a name, open for the life of the process."""
    with tempfile.TemporaryFile() as file:
        file.write(b"f" * FILE_BYTES)
        file.flush()
        return os.dup(file.fileno())


FILE_FD = _made_file()


def _answer(
    start_response: StartResponse, body: bytes = HELLO, content_type: str = "text/plain; charset=utf-8"
) -> list[bytes]:
    start_response("200 OK", [("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return [body]


def hello(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Thirteen bytes."""
    return _answer(start_response)


def document(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """About 900 bytes of JSON."""
    return _answer(start_response, json.dumps(DOCUMENT).encode(), "application/json")


def wait(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """What a call of a database or of another service looks like from here."""
    time.sleep(WAIT_S)
    return _answer(start_response)


def compute(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Pure Python that never lets go of the interpreter's lock by itself."""
    value = 1
    for _ in range(COMPUTE_STEPS):
        value = (value * 1103515245 + 12345) & 0x7FFFFFFF
    return _answer(start_response)


def upload(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Read the body; 500 where it is not whole."""
    read, count = environ["wsgi.input"].read, 0
    while block := read(READ_BYTES):
        count += len(block)
    if count != int(environ.get("CONTENT_LENGTH") or 0):
        raise ValueError(f"{count} bytes came of {environ.get('CONTENT_LENGTH')}")
    return _answer(start_response)


def stream(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Blocks whose number the server cannot know before."""

    def blocks() -> Iterator[bytes]:
        for _ in range(STREAM_BLOCKS):
            yield BLOCK

    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return blocks()


def file(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """A file from the disk's cache; opened anew each time, as an application does.  granian has no file_wrapper."""
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(FILE_BYTES))])
    opened = open(f"/proc/self/fd/{FILE_FD}", "rb")  # noqa: SIM115 the server closes it (PEP 3333)
    wrapper: Callable[[IO[bytes], int], Iterable[bytes]] = environ.get("wsgi.file_wrapper", FileWrapper)
    return wrapper(opened, READ_BYTES)


PAGES = {
    "/hello": hello,
    "/json": document,
    "/wait": wait,
    "/compute": compute,
    "/upload": upload,
    "/stream": stream,
    "/file": file,
}


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The WSGI application."""
    return PAGES[environ["PATH_INFO"]](environ, start_response)
