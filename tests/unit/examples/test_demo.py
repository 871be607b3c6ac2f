"""The demo application, called as PEP 3333 says and checked by the standard library's validator."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", EXAMPLES / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def get(demo: ModuleType, path: str, query: str = "", **environ: Any) -> tuple[str, bytes]:
    """Call the application through the validator, with the arguments that it wants to be positional."""
    asked: dict[str, Any] = {"SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": query, **environ}
    setup_testing_defaults(asked)
    said: list[str] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        said.append(status)
        return lambda data: None

    answer = cast(Iterable[bytes], validator(demo.app)(asked, start_response))
    try:
        body = b"".join(answer)
    finally:
        cast(Any, answer).close()
    return said[0], body


def test_hello_is_thirteen_bytes(demo: ModuleType) -> None:
    assert get(demo, "/hello") == ("200 OK", b"Hello, world!")


def test_the_front_page_names_the_process_and_every_page(demo: ModuleType) -> None:
    status, body = get(demo, "/", **{"forkserve.generation": "3"})
    assert status == "200 OK"
    assert b"worker process" in body
    assert all(path.encode() in body for path in demo.PAGES)


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("/slow", "s=0", "200 OK"),
        ("/slow", "s=x", "400 Bad Request"),
        ("/slow", "s=61", "400 Bad Request"),
        ("/slow", "s=nan", "400 Bad Request"),
        ("/upload", "", "405 Method Not Allowed"),
        ("/nowhere", "", "404 Not Found"),
    ],
)
def test_each_page_answers_with_its_status(demo: ModuleType, path: str, query: str, status: str) -> None:
    assert get(demo, path, query)[0] == status


def test_a_stream_has_ten_lines(demo: ModuleType) -> None:
    assert len(get(demo, "/stream")[1].splitlines()) == 10


def test_an_upload_is_measured(demo: ModuleType) -> None:
    body = b"x" * 100_000
    environ = {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
    status, text = get(demo, "/upload", **environ)
    assert (status, text.decode().split()) == (
        "200 OK",
        ["100000", "bytes,", "SHA-256", hashlib.sha256(body).hexdigest()],
    )


def test_an_error_is_raised_to_the_server(demo: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="always fails"):
        demo.app({"PATH_INFO": "/error"}, None)


def test_the_module_needs_only_the_standard_library(demo: ModuleType) -> None:
    source = (EXAMPLES / "demo.py").read_text()
    imported = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imported - {"__future__"} <= sys.stdlib_module_names
