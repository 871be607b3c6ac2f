"""The head writer: what it renders, and that its caches change nothing (refusals: test_exchanges)."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from forkserve.http.errors import BadResponse, RefusedRequest
from forkserve.http.response import CACHE_PAIRS_MAX, CHUNKED, NO_BODY, UNTIL_CLOSE, HeadWriter, Rendered, http_date

NOW = 1_700_000_000


def render(
    writer: HeadWriter,
    headers: list[tuple[str, str]],
    *,
    status: str = "200 OK",
    known: int | None = None,
    is_head: bool = False,
    is_http11: bool = True,
    keep: bool = True,
) -> Rendered:
    return writer.render(status, headers, NOW, known, is_head, is_http11, keep)


def test_whole_head() -> None:
    assert render(HeadWriter(keepalive_s=5), [("X-A", "1"), ("Content-Type", "a/b")], known=3) == (
        b"HTTP/1.1 200 OK\r\nServer: forkserve\r\nDate: Tue, 14 Nov 2023 22:13:20 GMT\r\n"
        b"X-A: 1\r\nContent-Type: a/b\r\nContent-Length: 3\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\n",
        3,
        True,
    )


@pytest.mark.parametrize(
    ("options", "mode", "kept"),
    [
        ({"known": 3}, 3, True),
        ({}, CHUNKED, True),
        ({"is_http11": False}, UNTIL_CLOSE, False),
        ({"is_http11": False, "known": 3}, 3, True),
        ({"is_head": True, "known": 3}, NO_BODY, True),
        ({"status": "204 No Content"}, NO_BODY, True),
        ({"status": "304 Not Modified", "is_http11": False}, NO_BODY, True),
        ({"keep": False}, CHUNKED, False),
        ({"status": "304 Not Modified", "known": 0}, NO_BODY, True),
    ],
)
def test_framing(options: dict[str, object], mode: int, kept: bool) -> None:
    _, found_mode, found_kept = render(HeadWriter(), [], **options)  # type: ignore[arg-type]
    assert (found_mode, found_kept) == (mode, kept)


def test_304_claims_no_length_of_its_own() -> None:
    head, *_ = render(HeadWriter(), [], status="304 Not Modified", known=0)
    assert b"Content-Length" not in head


def test_cached_lines_are_the_same_as_new_ones() -> None:
    writer = HeadWriter()
    headers = [
        ("Content-Type", "a/b"),
        ("content-type", "a/b"),
        ("Vary", "x"),
        ("Set-Cookie", "a"),
        ("Set-Cookie", "a"),
    ]
    assert render(writer, headers) == render(writer, headers) == render(HeadWriter(), headers)


def test_cache_is_bounded_and_keeps_no_cookies() -> None:
    writer = HeadWriter()
    for number in range(2 * CACHE_PAIRS_MAX):
        head, *_ = render(writer, [("Vary", str(number)), ("Set-Cookie", "secret")])
        assert b"Vary: %d\r\n" % number in head
    assert 0 < len(writer._lines) <= CACHE_PAIRS_MAX
    assert all("secret" not in value for _, value in writer._lines)


def test_bad_header_is_refused_each_time() -> None:
    writer = HeadWriter()
    for _ in range(2):
        with pytest.raises(BadResponse, match="Content-Type"):
            render(writer, [("Content-Type", "a\r\nb")])


def test_pairs_that_are_lists_are_taken() -> None:
    head, *_ = render(HeadWriter(), [["X-A", "1"]])  # type: ignore[list-item]
    assert b"X-A: 1\r\n" in head


@pytest.mark.parametrize("wall_s", [0, NOW, 951_782_400, 4_102_444_800])
def test_date_is_that_of_the_standard_library(wall_s: int) -> None:
    assert http_date(wall_s) == formatdate(wall_s, usegmt=True)


def test_date_changes_with_the_second() -> None:
    writer = HeadWriter()
    first, *_ = writer.render("200 OK", [], NOW, 0, False, True, True)
    second, *_ = writer.render("200 OK", [], NOW + 1, 0, False, True, True)
    assert first != second


def test_refusal_closes_and_tells_the_reason() -> None:
    refused = RefusedRequest(431, "header field of more than 8190 bytes")
    answer = HeadWriter().refusal(refused, NOW, is_head=False)
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert b"Connection: close\r\n" in answer
    assert answer.endswith(b"\r\n\r\n431 Request Header Fields Too Large: header field of more than 8190 bytes\n")
    assert HeadWriter().refusal(refused, NOW, is_head=True).endswith(b"\r\n\r\n")
