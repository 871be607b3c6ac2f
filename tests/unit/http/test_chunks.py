"""The chunked decoder: limits, leftover, and the same answer for every cut (the raw files hold the malformed ones)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkserve.http.chunked import EXTENSION_BYTES_MAX, ChunkedDecoder
from forkserve.http.errors import RefusedRequest


def encode(blocks: list[bytes], trailers: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(block), block) for block in blocks if block) + b"0\r\n" + trailers + b"\r\n"


@given(st.lists(st.binary(max_size=300), max_size=8), st.binary(max_size=40), st.lists(st.integers(1, 60)))
def test_body_and_leftover_do_not_depend_on_the_cuts(blocks: list[bytes], rest: bytes, sizes: list[int]) -> None:
    data = encode(blocks, b"X-T: 1\r\n") + rest
    decoder = ChunkedDecoder()
    body = b""
    for size in sizes:
        piece, data = data[:size], data[size:]
        if decoder.is_done:
            data = piece + data
            break
        body += b"".join(decoder.feed(piece))
    if not decoder.is_done:
        body += b"".join(decoder.feed(data))
        data = b""
    assert decoder.is_done
    assert body == b"".join(blocks)
    assert decoder.leftover() + data == rest


@pytest.mark.parametrize("end", range(1, len(encode([b"hello", b"x"], b"A: b\r\n"))))
def test_cut_body_is_never_done(end: int) -> None:
    decoder = ChunkedDecoder()
    decoder.feed(encode([b"hello", b"x"], b"A: b\r\n")[:end])
    assert not decoder.is_done


def test_limit_of_the_body_is_exact() -> None:
    assert ChunkedDecoder(body_bytes_max=6).feed(encode([b"abc", b"def"])) == [b"abc", b"def"]
    with pytest.raises(RefusedRequest) as caught:
        ChunkedDecoder(body_bytes_max=5).feed(encode([b"abc", b"def"]))
    assert caught.value.status == 413


def test_extensions_of_all_chunks_together_are_limited() -> None:
    decoder = ChunkedDecoder()
    for _ in range(EXTENSION_BYTES_MAX // 1001):
        decoder.feed(b"1;" + b"a" * 1000 + b"\r\nx\r\n")
    with pytest.raises(RefusedRequest):
        decoder.feed(b"1;" + b"a" * 1000 + b"\r\nx\r\n")


def test_size_line_without_end_is_refused() -> None:
    decoder = ChunkedDecoder()
    for _ in range(40):
        decoder.feed(b"0" * 100)
    with pytest.raises(RefusedRequest):
        decoder.feed(b"0" * 100)
