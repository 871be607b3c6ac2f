"""Small pieces: what is held weighs what its bytes weigh, and taking them does not keep the others waiting."""

from __future__ import annotations

import socket
import tracemalloc
from collections.abc import Iterator

import pytest

from forkserve.http.request import CHUNKED
from forkserve.server.body import CHUNKS_OF_A_READ, READ_BYTES_MAX, READ_BYTES_MIN, BodyFraming, BodyReader
from forkserve.server.output import Output
from forkserve.settings import Settings

SIZE = 60_000
OVERHEAD_MAX = 1.5
"""A buffer that grows has room in hand."""


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("length", [SIZE, CHUNKED])
@pytest.mark.usefixtures("traced")
def test_a_body_in_small_pieces_weighs_what_its_bytes_weigh(length: int) -> None:
    settings = Settings()
    assert settings.body_memory > SIZE
    reader = BodyReader(BodyFraming(length, settings), settings)
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(SIZE // 2 - 1):
        assert reader.feed(b"1\r\nx\r\n1\r\ny\r\n" if length == CHUNKED else bytes(bytearray(b"xy"))) is None
    assert tracemalloc.get_traced_memory()[0] - before < SIZE * OVERHEAD_MAX


@pytest.mark.usefixtures("traced")
def test_an_answer_in_small_pieces_weighs_what_its_bytes_weigh() -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.setblocking(False)
        output = Output(1 << 20, None)
        output.append(memoryview(bytes(1 << 20)))
        output.flush(ours)  # the peer reads nothing: from here on all is kept
        before, kept = tracemalloc.get_traced_memory()[0], output.size
        for number in range(SIZE // 6):
            output.append(memoryview(b"1\r\n%c\r\n" % (97 + number % 26)))
            output.flush(ours)
        assert output.size - kept == SIZE
        assert tracemalloc.get_traced_memory()[0] - before < SIZE * OVERHEAD_MAX
        expected = bytes(1 << 20) + b"".join(b"1\r\n%c\r\n" % (97 + number % 26) for number in range(SIZE // 6))
        received = b""
        while len(received) < len(expected):
            received += peer.recv(1 << 20)
            output.flush(ours)
        assert received == expected
        assert output.is_empty


@pytest.mark.parametrize("chunk", [1, 16, 100, 1000])
def test_a_read_holds_a_bounded_number_of_chunks(chunk: int) -> None:
    framing = BodyFraming(CHUNKED, Settings())
    encoded = b"%x\r\n%b\r\n" % (chunk, bytes(chunk))
    stream = encoded * (2 * READ_BYTES_MAX // len(encoded))
    reads = []
    while len(stream) > READ_BYTES_MAX:
        data, stream = stream[: framing.read_bytes], stream[framing.read_bytes :]
        framing.feed(data)
        reads.append(len(data))
    assert all(size <= max(READ_BYTES_MIN, CHUNKS_OF_A_READ * 1.1 * len(encoded)) for size in reads)
    assert min(READ_BYTES_MAX, CHUNKS_OF_A_READ * 0.9 * len(encoded)) <= max(reads)


def test_a_body_in_large_chunks_is_read_in_full_reads() -> None:
    framing = BodyFraming(CHUNKED, Settings())
    framing.feed(b"ffffff\r\n" + bytes(READ_BYTES_MIN))
    assert framing.read_bytes == READ_BYTES_MAX
