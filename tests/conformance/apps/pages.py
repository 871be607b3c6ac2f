"""What the pages of both frameworks have in common; flask_pages.py and django_pages.py serve the same addresses.

/hello                5 bytes                             /stream            LINES, without a length
/echo/ANY/PATH        JSON: the request as it was seen    /gate/NAME         a line, then one for the FIFO
/form                 JSON: fields and files of a form    /file/NAME         a file of the folder
/cookies              sets COOKIES                        /large             LARGE, with its length
/redirect/CODE        to /echo/redirected                 /header/SIZE       a header as long as that
/status/CODE          that status, without a body         /fail              raises an exception
"""

from __future__ import annotations

import hashlib
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FOLDER = "PAGES_FOLDER"
"""The variable that names the folder of the files and FIFOs."""

GATE_S = 10.0
"""How long a gate waits."""

METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS PROPFIND".split()
LINES = [f"line {number}\n" for number in range(100)]
LARGE = bytes(range(256)) * 20_000
COOKIES = {"first": "1", "second": "two"}


def measured(read: Callable[[int], bytes]) -> dict[str, Any]:
    """Length and digest of what a file object gives, read in blocks."""
    digest, count = hashlib.sha256(), 0
    while block := read(65536):
        digest.update(block)
        count += len(block)
    return {"bytes": count, "sha256": digest.hexdigest()}


def seen(environ: dict[str, Any]) -> dict[str, Any]:
    """What the environ says of a request."""
    return {
        "protocol": environ["SERVER_PROTOCOL"],
        "target": environ["RAW_URI"],
        "length": environ.get("CONTENT_LENGTH"),
        "port": environ["REMOTE_PORT"],
        "fields": {key[5:].replace("_", "-").lower(): environ[key] for key in environ if key.startswith("HTTP_")},
    }


def path_of(name: str) -> Path:
    """A file of the folder."""
    return Path(os.environ[FOLDER], name)


def gated(fifo: Path) -> Iterator[bytes]:
    """Two lines, the second when something was written into the FIFO: so the first has left before it was there."""
    descriptor = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    try:
        yield b"first\n"
        readable, _, _ = select.select([descriptor], [], [], GATE_S)
        yield b"second\n" if readable else b"nobody has opened the gate\n"
    finally:
        os.close(descriptor)
