"""Every kind of answer under the eyes of wsgiref's validator, and the same without it.

    KINDS of answers x REQUESTS x {TCP, unix socket, bodies that are read as they come}
        ── application ─────────────▶ the answer that its kind describes; the next request of the connection is answered
        ── validator(application) ──▶ the same, and the validator has nothing to say

The validator hides what an application gives (a list, a file wrapper) behind an iterator of its own; so each request is
asked twice.  Applications that break a rule are those of tests/unit/server/test_exchanges.py.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from tests.serving import Answer, Served, serving

Environ = dict[str, Any]
Application = Callable[[Environ, Any], Iterable[bytes]]

PLAIN = [("Content-Type", "text/plain")]
LARGE = bytes(range(256)) * 4096
"""1 MiB: far more than a socket takes at once."""
LARGE_BLOCKS = [LARGE[start : start + 5000] for start in range(0, len(LARGE), 5000)]
ERROR_PAGE = b"Internal Server Error\n"


@dataclass(frozen=True)
class Kind:
    """What an application gives and what the client gets.

    Attributes:
        body: of the answer to GET.
        log: codes of the lines that it brings.
        is_whole: False where it fails too late, and the answer is cut.
    """

    application: Application
    status: int = 200
    body: bytes = b"abc"
    log: tuple[str, ...] = ()
    is_whole: bool = True


def answering(
    make: Callable[[], Iterable[bytes]], *headers: tuple[str, str], status: str = "200 OK", write: bytes | None = None
) -> Application:
    """An application that starts the answer, writes what it is told to, and returns what ``make`` makes."""

    def application(_environ: Environ, start_response: Any) -> Iterable[bytes]:
        sender = start_response(status, [*([] if status[:3] in ("204", "304") else PLAIN), *headers])
        if write is not None:
            sender(write)
        return make()

    return application


def length(count: int) -> tuple[str, str]:
    return "Content-Length", str(count)


class WithClose:
    """An iterator object with a ``close``; it must be called, once."""

    def __init__(self, *blocks: bytes) -> None:
        self.blocks = iter(blocks)
        self.is_closed = False

    def __iter__(self) -> WithClose:
        return self

    def __next__(self) -> bytes:
        return next(self.blocks)

    def close(self) -> None:
        assert not self.is_closed, "closed a second time"
        self.is_closed = True


class OldSequence:
    """Iterable by ``__getitem__`` alone, as objects were before iterators."""

    def __getitem__(self, index: int) -> bytes:
        return (b"a", b"bc")[index]


def started_late(_environ: Environ, start_response: Any) -> Iterator[bytes]:
    """Calls start_response at the first step of its iterator."""
    start_response("200 OK", list(PLAIN))
    yield b"abc"


def wrapping_a_file(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [*PLAIN, length(len(LARGE))])
    return environ["wsgi.file_wrapper"](io.BytesIO(LARGE), 4000)  # type: ignore[no-any-return]


def wrapping_a_file_on_disk(environ: Environ, start_response: Any) -> Iterable[bytes]:
    file = Path(__file__).open("rb")  # noqa: SIM115 closed by the server, through the wrapper
    start_response("200 OK", list(PLAIN))
    return environ["wsgi.file_wrapper"](file)  # type: ignore[no-any-return]


def echoing(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Gives the body of the request back, in the pieces in which it was read."""
    stream = environ["wsgi.input"]
    blocks = [stream.read(3), stream.readline(), *stream.readlines(), *stream, stream.read(10)]
    environ["wsgi.errors"].write("")
    environ["wsgi.errors"].writelines([])
    environ["wsgi.errors"].flush()
    start_response("200 OK", list(PLAIN))
    return blocks


def replacing(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Thinks better of it before anything was sent."""
    start_response("200 OK", [*PLAIN, length(1000), ("X-Old", "1")])
    try:
        raise ValueError("found in time")
    except ValueError:
        start_response("503 Later", list(PLAIN), sys.exc_info())
    return [b"abc"]


def replacing_too_late(environ: Environ, start_response: Any) -> Iterator[bytes]:
    """Tries to think better of it after a block was sent."""
    start_response("200 OK", list(PLAIN))
    yield b"abc"
    try:
        raise ValueError("found too late")
    except ValueError:
        start_response("503 Later", list(PLAIN), sys.exc_info())
    yield b"def"


def failing(_environ: Environ, _start_response: Any) -> Iterable[bytes]:
    raise LookupError("before start_response")


def failing_after_start(_environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [*PLAIN, length(1000)])
    raise LookupError("after start_response")


def failing_at_the_first_step(_environ: Environ, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [*PLAIN, length(1000)])
    yield b""
    raise LookupError("before the first block")


def failing_amid(_environ: Environ, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", list(PLAIN))
    yield b"abc"
    raise LookupError("after the first block")


def failing_after_write(_environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", list(PLAIN))(b"abc")
    raise LookupError("after write()")


FAILED = ("request.failed",)

KINDS: dict[str, Kind] = {
    "list": Kind(answering(lambda: [b"abc"])),
    "list-of-blocks": Kind(answering(lambda: [b"a", b"", b"bc"])),
    "list-with-length": Kind(answering(lambda: [b"a", b"bc"], length(3))),
    "empty-list": Kind(answering(list), body=b""),
    "list-of-nothing": Kind(answering(lambda: [b"", b""]), body=b""),
    "empty-list-with-length": Kind(answering(list, length(0)), body=b""),
    "tuple": Kind(answering(lambda: (b"a", b"bc"))),
    "empty-tuple": Kind(answering(tuple), body=b""),
    "large-list": Kind(answering(lambda: [LARGE]), body=LARGE),
    "large-list-with-length": Kind(answering(lambda: [LARGE[:1000], LARGE[1000:]], length(len(LARGE))), body=LARGE),
    "generator": Kind(answering(lambda: (block for block in (b"a", b"", b"bc")))),
    "generator-with-length": Kind(answering(lambda: (block for block in (b"a", b"bc")), length(3))),
    "empty-generator": Kind(answering(lambda: (block for block in ())), body=b""),
    "large-generator": Kind(answering(lambda: (block for block in LARGE_BLOCKS)), body=LARGE),
    "iterator-with-close": Kind(answering(lambda: WithClose(b"a", b"bc"))),
    "iterator-with-close-and-length": Kind(answering(lambda: WithClose(b"a", b"bc"), length(3))),
    "old-sequence": Kind(answering(OldSequence)),  # type: ignore[arg-type]
    "set": Kind(answering(lambda: {b"abc"})),
    "started-late": Kind(started_late),
    "write": Kind(answering(list, write=b"abc")),
    "write-with-length": Kind(answering(list, length(3), write=b"abc")),
    "write-nothing": Kind(answering(list, write=b""), body=b""),
    "large-write": Kind(answering(list, write=LARGE), body=LARGE),
    "write-and-list": Kind(answering(lambda: [b"b", b"c"], write=b"a")),
    "write-and-generator": Kind(answering(lambda: (block for block in (b"b", b"c")), write=b"a")),
    "write-and-list-with-length": Kind(answering(lambda: [b"b", b"c"], length(3), write=b"a")),
    "file-wrapper": Kind(wrapping_a_file, body=LARGE),
    "file-wrapper-of-a-file": Kind(wrapping_a_file_on_disk, body=Path(__file__).read_bytes()),
    "204": Kind(answering(list, status="204 No Content"), 204, b""),
    "204-with-blocks": Kind(answering(lambda: (b"abc" for _ in range(3)), status="204 No Content"), 204, b""),
    "304": Kind(answering(list, ("ETag", '"a"'), status="304 Not Modified"), 304, b""),
    "304-with-length": Kind(answering(lambda: [b"abc"], length(3), status="304 Not Modified"), 304, b""),
    "404": Kind(answering(lambda: [b"abc"], status="404 Not Found"), 404),
    "echo": Kind(echoing),
    "exc-info-before": Kind(replacing, 503),
    "exc-info-after": Kind(replacing_too_late, log=FAILED, is_whole=False),
    "failure": Kind(failing, 500, ERROR_PAGE, FAILED),
    "failure-after-start": Kind(failing_after_start, 500, ERROR_PAGE, FAILED),
    "failure-at-the-first-step": Kind(failing_at_the_first_step, 500, ERROR_PAGE, FAILED),
    "failure-amid": Kind(failing_amid, log=FAILED, is_whole=False),
    "failure-after-write": Kind(failing_after_write, log=FAILED, is_whole=False),
}

BODY = b"line\n" * 40
FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"
CHUNKS = b"a\r\n%b\r\n" % BODY[:10] + b"%x\r\n%b\r\n" % (len(BODY) - 10, BODY[10:]) + b"0\r\nX-Trailer: 1\r\n\r\n"


@dataclass(frozen=True)
class Request:
    """What a client asks: request line, fields and body; the framing of the body is in the fields."""

    line: bytes
    fields: bytes = b""
    body: bytes = b""

    @property
    def is_head(self) -> bool:
        return self.line.startswith(b"HEAD")

    @property
    def is_http11(self) -> bool:
        return self.line.endswith(b"/1.1")

    def for_kind(self, kind: str, *, judged: bool) -> bytes:
        """As it goes to the server."""
        own = f"Host: a\r\nX-Kind: {kind}\r\nX-Judged: {'yes' if judged else 'no'}\r\n".encode()
        return b"%b\r\n%b%b\r\n%b" % (self.line, own, self.fields, self.body)


REQUESTS: dict[str, Request] = {
    "get": Request(b"GET /a%20b/%C3%A9?q=%20 HTTP/1.1", b"Cookie: a=1\r\nCookie: b=2\r\n"),
    "get-url": Request(b"GET http://other.example:81?q HTTP/1.1"),
    "get-http10": Request(b"GET / HTTP/1.0"),
    "get-http10-kept": Request(b"GET / HTTP/1.0", b"Connection: keep-alive\r\n"),
    "head": Request(b"HEAD / HTTP/1.1"),
    "options-asterisk": Request(b"OPTIONS * HTTP/1.1"),
    "post": Request(b"POST / HTTP/1.1", FORM + b"Content-Length: 200\r\n", BODY),
    "post-http10": Request(b"POST / HTTP/1.0", FORM + b"Content-Length: 200\r\n", BODY),
    "post-chunked": Request(b"POST / HTTP/1.1", FORM + b"Transfer-Encoding: chunked\r\n", CHUNKS),
    "put-empty": Request(b"PUT / HTTP/1.1", b"Content-Length: 0\r\n"),
    "delete": Request(b"DELETE / HTTP/1.1"),
}

_judged = {name: validator(kind.application) for name, kind in KINDS.items()}  # type: ignore[arg-type]


def application(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """The kind of answer that the request names, judged if it asks for that."""
    kind = environ["HTTP_X_KIND"]
    chosen = _judged[kind] if environ["HTTP_X_JUDGED"] == "yes" else KINDS[kind].application
    return chosen(environ, start_response)


@pytest.fixture(scope="module", params=["tcp", "unix", "streamed"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, worker_type: str
) -> Iterator[Served]:
    path = str(tmp_path_factory.mktemp("wsgi") / "socket") if request.param == "unix" else None
    is_buffering = request.param != "streamed"
    with serving(application, unix_path=path, body_memory=100, request_buffering=is_buffering) as served:
        yield served


FRAMING = frozenset({"connection", "content-length", "date", "keep-alive", "transfer-encoding"})
"""Fields that depend on how an application gives its answer, or on time."""


def ask(server: Served, request: Request, kind: str, *, judged: bool) -> tuple[Answer, list[Answer]]:
    """The answer, and what comes for a second request on the same connection."""
    second = REQUESTS["get"].for_kind("list", judged=judged)
    methods = ("HEAD",) if request.is_head else ()
    first, *rest = server.talk(request.for_kind(kind, judged=judged) + second, methods=methods)
    return first, rest


def codes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [getattr(record.msg, "code", "") for record in caplog.records]


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.is_whole])
@pytest.mark.parametrize("asked", REQUESTS)
def test_answer_is_that_of_its_kind_and_the_validator_has_nothing_to_say(
    server: Served, kind: str, asked: str, caplog: pytest.LogCaptureFixture
) -> None:
    request, expected = REQUESTS[asked], KINDS[kind]
    body = BODY[: len(request.body)] if kind == "echo" else expected.body
    fields = []
    for judged in (True, False):
        caplog.clear()
        answer, rest = ask(server, request, kind, judged=judged)
        assert (answer.status, answer.body) == (expected.status, b"" if request.is_head else body), caplog.text
        assert answer.is_whole
        assert codes(caplog) == list(expected.log)
        is_kept = answer.header("Connection") == "keep-alive"
        assert is_kept or not request.is_http11
        assert [other.body for other in rest] == ([b"abc"] if is_kept else [])
        fields.append([(name, value) for name, value in answer.headers if name.lower() not in FRAMING])
    assert fields[0] == fields[1]


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if not kind.is_whole])
@pytest.mark.parametrize("asked", ["get", "post", "post-chunked"])
def test_answer_that_fails_too_late_is_cut_and_the_validator_has_nothing_to_say(
    server: Served, kind: str, asked: str, caplog: pytest.LogCaptureFixture
) -> None:
    for judged in (True, False):
        caplog.clear()
        answer, rest = ask(server, REQUESTS[asked], kind, judged=judged)
        assert (answer.status, answer.body, answer.is_whole, rest) == (200, b"abc", False, [])
        assert codes(caplog) == list(KINDS[kind].log)


def test_the_validator_would_have_something_to_say(caplog: pytest.LogCaptureFixture) -> None:
    def without_type(_environ: Environ, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"abc"]

    with serving(validator(without_type)) as server:  # type: ignore[arg-type]
        (answer,) = server.talk(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (answer.status, codes(caplog)) == (500, ["request.failed"])
    assert "No Content-Type header found" in caplog.text
