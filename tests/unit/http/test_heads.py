"""The head parser beyond the raw files: limits, caches, early refusal."""

from __future__ import annotations

import pytest

from forkserve.http.errors import RefusedRequest
from forkserve.http.request import (
    CACHE_LINE_CHARS_MAX,
    CACHE_LINES_MAX,
    CHUNKED,
    HEAD_BYTES_MAX,
    VALUES_OF_A_NAME_MAX,
    HeadLimits,
    HeadParser,
)

BASE = {"SCRIPT_NAME": ""}


def parser(**limits: int) -> HeadParser:
    return HeadParser(HeadLimits(**limits))


def refusal(head: bytes, **limits: int) -> int:
    with pytest.raises(RefusedRequest) as caught:
        parser(**limits).parse(head, BASE)
    return caught.value.status


def test_base_environ_is_copied_not_changed() -> None:
    environ, *_ = parser().parse(b"GET / HTTP/1.1\r\nHost: a", BASE)
    assert environ["SCRIPT_NAME"] == ""
    assert BASE == {"SCRIPT_NAME": ""}


def test_framing_facts_are_returned() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\n"
    assert parser().parse(head + b"Content-Length: 7", BASE)[1:] == (7, True, False)
    assert parser().parse(head + b"Transfer-Encoding: chunked\r\nConnection: close", BASE)[1:] == (
        CHUNKED,
        False,
        False,
    )
    for value, is_awaited in ((b"100-continue", True), (b"100-Continue,, 100-continue", True), (b"", False)):
        found = parser().parse(head + b"Content-Length: 7\r\nExpect: " + value, BASE)
        assert found[1:] == (7, True, is_awaited)


@pytest.mark.parametrize(
    ("limits", "at", "over", "status"),
    [
        ({"line_bytes": 18}, b"GET /abcd HTTP/1.1\r\nHost: a", b"GET /abcde HTTP/1.1\r\nHost: a", 414),
        ({"fields": 2}, b"GET / HTTP/1.1\r\nHost: a\r\nA: 1", b"GET / HTTP/1.1\r\nHost: a\r\nA: 1\r\nB: 1", 431),
        ({"field_bytes": 7}, b"GET / HTTP/1.1\r\nHost: a", b"GET / HTTP/1.1\r\nHost: ab", 431),
        ({"field_bytes": 7}, b"GET / HTTP/1.1\r\nHost: a\r\nX: 1234", b"GET / HTTP/1.1\r\nHost: a\r\nX: 12345", 431),
        (
            {"body_bytes": 5},
            b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5",
            b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 6",
            413,
        ),
    ],
)
def test_limits_are_exact(limits: dict[str, int], at: bytes, over: bytes, status: int) -> None:
    parser(**limits).parse(at, BASE)
    assert refusal(over, **limits) == status


def test_a_line_that_was_refused_is_refused_again() -> None:
    subject = parser()
    for _ in range(2):
        with pytest.raises(RefusedRequest):
            subject.parse(b"GET / HTTP/1.1\r\nHost: a b", BASE)
        with pytest.raises(RefusedRequest):
            subject.parse(b"GET x HTTP/1.1\r\nHost: a", BASE)
        with pytest.raises(RefusedRequest):
            subject.parse(b"GET / HTTP/1.1\r\nHost: a\r\nX Y: 1", BASE)


def test_caches_are_bounded_and_keep_no_secrets() -> None:
    subject = parser()
    for number in range(3 * CACHE_LINES_MAX):
        head = b"GET /%d HTTP/1.1\r\nHost: h%d\r\nX-%d: 1\r\nX-Id: %d" % ((number,) * 4)
        head += b"\r\nCookie: secret\r\nAuthorization: secret\r\nX-Api-Key: secret"
        environ, *_ = subject.parse(head, BASE)
        assert environ["HTTP_HOST"] == f"h{number}"
        assert environ[f"HTTP_X_{number}"] == "1"
    for cache in (subject._requests, subject._lines, subject._names):
        assert 0 < len(cache) <= CACHE_LINES_MAX
        assert not any("secret" in key for key in cache)
    assert sum(line.startswith("X-Id") for line in subject._lines) <= VALUES_OF_A_NAME_MAX
    assert all(line.startswith(("X-Id", "Host")) for line in subject._lines), "a line of a name that came once"
    subject.parse(b"GET /%b HTTP/1.1\r\nHost: %b" % (b"x" * CACHE_LINE_CHARS_MAX, b"y" * CACHE_LINE_CHARS_MAX), BASE)
    assert all(len(key) <= CACHE_LINE_CHARS_MAX for key in (*subject._requests, *subject._lines))


@pytest.mark.parametrize(
    ("buffer", "status"),
    [
        (b"GET / HTTP/1.1\n", 400),
        (b"\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\nX", 400),
        (b"G" * 8192, 414),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 20000, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * (HEAD_BYTES_MAX // 6), 431),
    ],
)
def test_what_cannot_become_a_head_is_refused_before_its_end(buffer: bytes, status: int) -> None:
    with pytest.raises(RefusedRequest) as caught:
        parser().check_partial(buffer, 0)
    assert caught.value.status == status


@pytest.mark.parametrize("buffer", [b"G", b"GET / HTTP/1.1\r", b"GET / HTTP/1.1\r\nHost: a\r\nX", b"G" * 8190])
def test_what_may_become_a_head_is_waited_for(buffer: bytes) -> None:
    parser().check_partial(buffer, 0)


def head_of(size: int) -> bytes:
    """A head of exactly this many bytes, each of its lines within the limits."""
    lines = [b"GET / HTTP/1.1", b"Host: a", *[b"X-A: " + b"a" * 8000] * ((size - 200) // 8007)]
    return b"\r\n".join([*lines, b"X-A:"]) + b"a" * (size - len(b"\r\n".join(lines)) - 6)


def test_limit_of_the_head_is_exact_whether_its_end_has_come_or_not() -> None:
    head = head_of(HEAD_BYTES_MAX)
    assert len(head) == HEAD_BYTES_MAX
    parser().check_partial(head + b"\r\n\r", 0)
    parser().parse(head, BASE)
    with pytest.raises(RefusedRequest) as caught:
        parser().check_partial(head + b"a\r\n\r", 0)
    assert caught.value.status == refusal(head + b"a") == 431


@pytest.mark.parametrize("before", [0, 5000, 20_000])
def test_line_of_the_longest_length_may_be_cut_before_its_line_feed(before: int) -> None:
    subject = parser()
    start = b"GET /" + b"a" * (8190 - 14) + b" HTTP/1.1"
    subject.check_partial(start + b"\r", 0)
    fields = b"\r\nHost: a\r\n" + b"X-B: 12345\r\n" * (before // 12)
    for line in (b"X-A: " + b"a" * 8185, b"a" * 8190):
        subject.check_partial(start + fields + line + b"\r", 0)
    subject.parse(b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 8185, BASE)


def test_reason_of_a_refusal_tells_nothing_of_the_request() -> None:
    with pytest.raises(RefusedRequest) as caught:
        parser().parse(b"GET / HTTP/1.1\r\nHost: <script>", BASE)
    assert (caught.value.reason, caught.value.phrase) == ("invalid Host", "Bad Request")
