"""PEP 3333 as an application sees it, and what the client gets when an application breaks it.

That wsgiref's validator has nothing to say is in tests/conformance/test_wsgi.py, wsgi.input in test_input.py beside it.
"""

from __future__ import annotations

import io
import itertools
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.serving import Answer, serving

pytestmark = pytest.mark.usefixtures("worker_type")

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET10 = b"GET / HTTP/1.0\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
PLAIN = [("Content-Type", "text/plain")]


def answers_of(application: Callable[..., Any], data: bytes, **options: Any) -> list[Answer]:
    with serving(application, **options) as server:
        return server.talk(data, methods=("HEAD",) if data.startswith(b"HEAD") else ())


def codes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [getattr(record.msg, "code", "") for record in caplog.records]


def giving(*blocks: bytes, status: str = "200 OK", headers: list[tuple[str, str]] | None = None) -> Callable[..., Any]:
    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response(status, list(PLAIN if headers is None else headers))
        yield from blocks

    return application


def whole(*blocks: bytes, status: str = "200 OK", headers: list[tuple[str, str]] | None = None) -> Callable[..., Any]:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(status, list(PLAIN if headers is None else headers))
        return list(blocks)

    return application


# ── framing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_block_gets_a_content_length() -> None:
    (answer,) = answers_of(whole(b"abc"), GET)
    assert (answer.header("Content-Length"), answer.body) == ("3", b"abc")


def test_several_blocks_in_a_list_get_one_content_length() -> None:
    (answer,) = answers_of(whole(b"ab", b"", b"c"), GET)
    assert (answer.header("Content-Length"), answer.body) == ("3", b"abc")


@pytest.mark.parametrize("application", [whole(), whole(b""), giving(), giving(b"", b"")])
def test_empty_answer_has_length_zero(application: Callable[..., Any]) -> None:
    (answer,) = answers_of(application, GET)
    assert (answer.status, answer.header("Content-Length"), answer.body) == (200, "0", b"")


def test_generator_is_chunked_and_the_connection_kept() -> None:
    answers = answers_of(giving(b"ab", b"", b"c"), GET + GET)
    assert [(a.header("Transfer-Encoding"), a.body, a.is_whole) for a in answers] == [("chunked", b"abc", True)] * 2


def test_generator_for_http10_ends_with_the_connection() -> None:
    (answer,) = answers_of(giving(b"ab", b"c"), GET10)
    assert (answer.header("Transfer-Encoding"), answer.header("Connection"), answer.body) == (None, "close", b"abc")


def test_keep_alive_of_http10_is_granted_when_asked_for() -> None:
    request = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    answers = answers_of(whole(b"abc"), request + request)
    assert [answer.header("Connection") for answer in answers] == ["keep-alive", "keep-alive"]


@pytest.mark.parametrize("make", [giving, whole])
def test_content_length_of_the_application_is_used(make: Callable[..., Any]) -> None:
    (answer,) = answers_of(make(b"ab", b"c", headers=[("content-length", "3")]), GET)
    assert (answer.header("Content-Length"), answer.header("Transfer-Encoding"), answer.body) == ("3", None, b"abc")


@pytest.mark.parametrize("make", [giving, whole])
def test_more_than_the_content_length_is_not_sent(make: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    answers = answers_of(make(b"abc", b"de", headers=[("Content-Length", "4")]), GET + GET)
    assert [answer.body for answer in answers] == [b"abcd", b"abcd"]
    assert "response.long" in codes(caplog)


@pytest.mark.parametrize("make", [giving, whole])
def test_less_than_the_content_length_ends_the_connection(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    answers = answers_of(make(b"abc", headers=[("Content-Length", "4")]), GET + GET)
    assert [(answer.body, answer.is_whole) for answer in answers] == [(b"abc", False)]
    assert "response.short" in codes(caplog)


@pytest.mark.parametrize("make", [giving, whole])
def test_head_has_the_headers_but_no_body(make: Callable[..., Any]) -> None:
    answers = answers_of(make(b"abc", headers=[*PLAIN, ("Content-Length", "3")]), HEAD + GET)
    assert [(a.header("Content-Length"), a.body) for a in answers] == [("3", b""), ("3", b"abc")]


def test_head_of_an_application_that_gives_no_body_claims_no_length() -> None:
    (answer,) = answers_of(whole(), HEAD)
    assert answer.header("Content-Length") is None


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("make", [giving, whole])
def test_bodyless_statuses_have_no_body(make: Callable[..., Any], status: str) -> None:
    answers = answers_of(make(b"abc", status=status, headers=[]), GET + GET)
    assert [(a.status, a.body, a.header("Transfer-Encoding")) for a in answers] == [(int(status[:3]), b"", None)] * 2
    if status.startswith("204"):
        assert answers[0].header("Content-Length") is None


def test_long_block_arrives_whole() -> None:
    body = b"0123456789" * 100_000
    answers = answers_of(whole(body), GET + GET)
    assert [answer.body == body for answer in answers] == [True, True]


def test_date_and_server_are_sent_unless_the_application_does() -> None:
    (ours,) = answers_of(whole(b"x"), GET)
    assert ours.header("Server") == "forkserve"
    assert (ours.header("Date") or "").endswith(" GMT")
    (theirs,) = answers_of(whole(b"x", headers=[("Server", "mine"), ("date", "then")]), GET)
    assert (theirs.header("Server"), theirs.header("Date")) == ("mine", "then")


# ── start_response, write, close ──────────────────────────────────────────────────────────────────────────────────────


def test_write_sends_before_the_iterable() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", list(PLAIN))
        write(b"one ")
        write(b"")
        write(b"two ")
        return [b"three"]

    (answer,) = answers_of(application, GET)
    assert answer.body == b"one two three"


def test_exc_info_before_the_head_replaces_it() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("X-Old", "1")])
        try:
            raise ValueError("x")
        except ValueError:
            start_response("503 Later", [("X-New", "1")], sys.exc_info())
        return [b"sorry"]

    (answer,) = answers_of(application, GET)
    assert (answer.status, answer.header("X-Old"), answer.header("X-New")) == (503, None, "1")


def test_exc_info_after_the_head_raises_it_and_cuts(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[BaseException] = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", list(PLAIN))
        yield b"part"
        try:
            raise ValueError("too late")
        except ValueError:
            try:
                start_response("500 No", [], sys.exc_info())
            except ValueError as error:
                seen.append(error)
                raise

    (answer,) = answers_of(application, GET + GET)
    assert (answer.body, answer.is_whole) == (b"part", False)
    assert seen
    assert "request.failed" in codes(caplog)


def test_start_response_may_be_called_at_the_first_iteration() -> None:
    class Late:
        def __init__(self, start_response: Any) -> None:
            self.start_response = start_response

        def __iter__(self) -> Iterator[bytes]:
            self.start_response("200 OK", list(PLAIN))
            yield b"late"

    (answer,) = answers_of(lambda environ, start_response: Late(start_response), GET)
    assert answer.body == b"late"


class Closing:
    """An iterable that counts its closes and may fail anywhere."""

    def __init__(self, blocks: list[Any], fail_at_close: bool = False) -> None:
        self.blocks = iter(blocks)
        self.closes = 0
        self.fail_at_close = fail_at_close

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block = next(self.blocks)
        if isinstance(block, BaseException):
            raise block
        return block  # type: ignore[no-any-return]

    def close(self) -> None:
        self.closes += 1
        if self.fail_at_close:
            raise RuntimeError("in close")


@pytest.mark.parametrize(
    ("blocks", "status", "is_whole"),
    [
        ([b"a", b"b"], 200, True),
        ([ValueError("x")], 500, True),
        ([b"a", ValueError("x")], 200, False),
        (["text"], 500, True),
        ([b"a", None], 200, False),
        ([SystemExit(3)], 500, True),
        ([KeyboardInterrupt()], 500, True),
        ([GeneratorExit()], 500, True),
    ],
)
def test_close_is_called_exactly_once(blocks: list[Any], status: int, is_whole: bool) -> None:
    result = Closing(blocks)

    def application(environ: dict[str, Any], start_response: Any) -> Closing:
        start_response("200 OK", list(PLAIN))
        return result

    (answer,) = answers_of(application, GET)
    assert (answer.status, answer.is_whole, result.closes) == (status, is_whole, 1)


def test_failing_close_is_logged_and_the_answer_stays_whole(caplog: pytest.LogCaptureFixture) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Closing:
        start_response("200 OK", [("Content-Length", "1")])
        return Closing([b"a"], fail_at_close=True)

    answers = answers_of(application, GET + GET)
    assert [(answer.status, answer.is_whole) for answer in answers] == [(200, True)] * 2
    assert codes(caplog).count("request.failed") == 2


# ── what an application may not do ────────────────────────────────────────────────────────────────────────────────────


def never_starts(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    return [b"x"]


def starts_twice(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    start_response("200 OK", [])
    return [b"x"]


def raises(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    raise LookupError("a secret of the application")


def exits(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    sys.exit(1)


BROKEN = {
    "never-starts": never_starts,
    "starts-twice": starts_twice,
    "raises": raises,
    "exits": exits,
    "gives-none": lambda environ, start_response: start_response("200 OK", []) and None,
    "gives-text-in-a-list": whole("text"),  # type: ignore[arg-type]
    "gives-text": lambda environ, start_response: start_response("200 OK", []) and "text",
    "status-of-two-digits": whole(b"x", status="20 OK"),
    "status-without-reason": whole(b"x", status="200"),
    "status-informational": whole(b"x", status="101 Switching Protocols"),
    "status-with-line-end": whole(b"x", status="200 OK\r\nX-Evil: 1"),
    "status-as-bytes": whole(b"x", status=b"200 OK"),  # type: ignore[arg-type]
    "status-as-number": whole(b"x", status=200),  # type: ignore[arg-type]
    "status-beyond-latin1": whole(b"x", status="200 \u2713"),
    "header-value-with-crlf": whole(b"x", headers=[("X-A", "1\r\nX-Evil: 1")]),
    "header-value-with-lf": whole(b"x", headers=[("X-A", "1\nX-Evil: 1")]),
    "header-value-with-nul": whole(b"x", headers=[("X-A", "1\0")]),
    "header-value-beyond-latin1": whole(b"x", headers=[("X-A", "\u2713")]),
    "header-value-as-number": whole(b"x", headers=[("X-A", 1)]),  # type: ignore[list-item]
    "header-name-with-space": whole(b"x", headers=[("X A", "1")]),
    "header-name-with-colon": whole(b"x", headers=[("X-A:", "1")]),
    "header-name-with-crlf": whole(b"x", headers=[("X-A\r\nX-Evil", "1")]),
    "header-name-empty": whole(b"x", headers=[("", "1")]),
    "header-name-as-bytes": whole(b"x", headers=[(b"X-A", "1")]),  # type: ignore[list-item]
    "header-no-pair": whole(b"x", headers=["X-A"]),  # type: ignore[list-item]
    "header-triple": whole(b"x", headers=[("a", "b", "c")]),  # type: ignore[list-item]
    "headers-as-dict": lambda environ, start_response: start_response("200 OK", {"X-A": "1"}) and [b"x"],
    "length-negative": whole(b"x", headers=[("Content-Length", "-1")]),
    "length-signed": whole(b"x", headers=[("Content-Length", "+1")]),
    "length-words": whole(b"x", headers=[("Content-Length", "one")]),
    "length-twice": whole(b"x", headers=[("Content-Length", "1"), ("content-length", "1")]),
    "transfer-encoding": whole(b"x", headers=[("Transfer-Encoding", "chunked")]),
    "upgrade": whole(b"x", headers=[("Upgrade", "h2c")]),
    "keep-alive": whole(b"x", headers=[("Keep-Alive", "timeout=5")]),
}


@pytest.mark.parametrize("application", BROKEN.values(), ids=BROKEN.keys())
def test_broken_application_is_a_logged_500_on_a_connection_that_lives(
    application: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    answers = answers_of(application, GET + GET)
    assert [answer.status for answer in answers] == [500, 500]
    assert answers[0].body == b"Internal Server Error\n"
    assert all(name.lower() != "x-evil" for name, _ in answers[0].headers)
    assert codes(caplog).count("request.failed") == 2


def test_500_in_reply_to_head_has_no_body() -> None:
    answers = answers_of(raises, HEAD + GET)
    assert [(answer.status, bool(answer.body)) for answer in answers] == [(500, False), (500, True)]


def test_log_of_a_failure_begins_at_the_applications_own_frame(caplog: pytest.LogCaptureFixture) -> None:
    answers_of(raises, b"GET /x?y HTTP/1.1\r\nHost: a\r\n\r\n")
    (event,) = [record.msg for record in caplog.records if record.levelno == logging.ERROR]
    assert event.fields["target"] == "/x?y"
    assert "a secret of the application" in event.fields["traceback"]
    assert "exchange.py" not in event.fields["traceback"]


def test_log_of_a_failing_iterator_begins_at_the_applications_own_frame(caplog: pytest.LogCaptureFixture) -> None:
    def broken(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b""
        raise ValueError("in the middle")

    answers_of(broken, GET)
    (event,) = [record.msg for record in caplog.records if record.levelno == logging.ERROR]
    assert "in the middle" in event.fields["traceback"]
    assert "exchange.py" not in event.fields["traceback"]


def test_failure_in_a_close_delimited_answer_resets_the_connection() -> None:
    with serving(giving(b"part", ValueError("x"))) as server, server.connect() as client:  # type: ignore[arg-type]
        client.sendall(GET10)
        stream = client.makefile("rb")
        with pytest.raises(ConnectionResetError):
            stream.read()


@pytest.mark.parametrize(("value", "kept"), [("close", False), ("keep-alive", True)])
def test_connection_header_of_the_application_is_taken_as_a_wish(value: str, kept: bool) -> None:
    (answer,) = answers_of(whole(b"x", headers=[("Connection", value)]), GET)
    assert answer.header("Connection") == ("keep-alive" if kept else "close")


# ── the environ ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_environ_is_one_requests_own() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        was_there = "my.key" in environ
        environ["my.key"] = environ["wsgi.version"] = None
        start_response("200 OK", [])
        return [repr(was_there).encode()]

    assert [answer.body for answer in answers_of(application, GET + GET)] == [b"False", b"False"]


@pytest.mark.parametrize("has_close", [True, False])
def test_file_wrapper_sends_the_file_and_closes_it(has_close: bool) -> None:
    class Source:
        def __init__(self) -> None:
            self.file = io.BytesIO(b"x" * 200_000)
            self.read = self.file.read

    closed: list[bool] = []

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        source = Source()
        if has_close:
            source.close = lambda: closed.append(True)  # type: ignore[attr-defined]
        start_response("200 OK", list(PLAIN))
        return environ["wsgi.file_wrapper"](source, 1000)

    (answer,) = answers_of(application, GET)
    assert (len(answer.body), closed) == (200_000, [True] * has_close)


# ── an application that goes further than it may ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("change", [dict.clear, lambda environ: environ.update(REQUEST_METHOD="GET")])
def test_head_stays_head_whatever_becomes_of_the_environ(change: Callable[[dict[str, Any]], None]) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        change(environ)
        start_response("200 OK", list(PLAIN))
        return [b"body"]

    with serving(application) as server:
        answers = server.talk(HEAD + HEAD, methods=("HEAD", "HEAD"))
    assert [(answer.status, answer.header("Content-Length")) for answer in answers] == [(200, "4")] * 2


def test_failure_after_clearing_the_environ_is_a_500() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ.clear()
        raise ValueError("afterwards")

    assert [answer.status for answer in answers_of(application, GET + GET)] == [500, 500]


@pytest.mark.parametrize("failure", [ValueError, SystemExit])
def test_exception_that_cannot_be_shown_is_a_logged_500(
    failure: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    class Unshowable(Exception):
        def __str__(self) -> str:
            raise failure

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise Unshowable

    assert [answer.status for answer in answers_of(application, GET + GET)] == [500, 500]
    assert codes(caplog) == ["request.failed"] * 2


def test_write_after_the_end_reaches_no_other_answer() -> None:
    kept: list[Callable[[bytes], None]] = []

    class Body:
        def __init__(self, write: Callable[[bytes], None]) -> None:
            self.write = write

        def __iter__(self) -> Iterator[bytes]:
            return iter([b"a", b"b"])

        def close(self) -> None:
            self.write(b"in close")

    def application(environ: dict[str, Any], start_response: Any) -> Body:
        write = start_response("200 OK", list(PLAIN))
        for old in kept:
            with pytest.raises(Exception, match="after the end"):
                old(b"from a later request")
        kept.append(write)
        return Body(write)

    answers = answers_of(application, GET + GET)
    assert [(answer.body, answer.is_whole) for answer in answers] == [(b"ab", True)] * 2


def test_failing_close_after_the_end_keeps_the_connection() -> None:
    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"a", b"b"])

        def close(self) -> None:
            raise ValueError("close")

    def application(environ: dict[str, Any], start_response: Any) -> Body:
        start_response("200 OK", list(PLAIN))
        return Body()

    assert [answer.body for answer in answers_of(application, GET + GET)] == [b"ab", b"ab"]


def test_body_that_never_ends_is_left_at_its_content_length(caplog: pytest.LogCaptureFixture) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [*PLAIN, ("Content-Length", "5")])
        return itertools.repeat(b"abc")

    assert [answer.body for answer in answers_of(application, GET + GET)] == [b"abcab", b"abcab"]
    assert codes(caplog) == ["response.long"] * 2


def test_bytes_of_a_class_of_their_own_are_bytes() -> None:
    class Safe(bytes):
        pass

    assert [answer.body for answer in answers_of(whole(Safe(b"abc")), GET)] == [b"abc"]
