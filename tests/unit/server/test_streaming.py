"""``request_buffering = off``: the application reads the body as it comes."""

from __future__ import annotations

import io
import logging
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from forkserve.clock import monotonic_s
from forkserve.server import connection as connection_module
from forkserve.server.body import BodyRefused
from forkserve.server.connection import UNREAD_BYTES_MAX, paced_deadline_ns
from forkserve.server.exchange import ClientGone
from tests.serving import DEADLINE_S, Answer, Served, read_answer, serving
from tests.unit.server.test_connections import GET, ask, ends_quietly, read_all, wait_for

pytestmark = pytest.mark.usefixtures("worker_type")

POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def with_length(size: int) -> bytes:
    return POST + b"Content-Length: %d\r\n\r\n" % size


class Reading:
    """An application that reads as it is told, and tells block by block what it has."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes
        self.blocks: list[bytes] = []
        self.errors: list[Exception] = []
        self.environ: dict[str, Any] = {}

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.environ = dict(environ)
        stream = environ["wsgi.input"]
        try:
            if environ["REQUEST_METHOD"] == "POST":
                for size in self.sizes or (-1,):
                    self.blocks.append(stream.read(size))
        except Exception as error:
            self.errors.append(error)
            raise
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"".join(self.blocks)]


def streaming(application: Any, **settings: Any) -> Any:
    return serving(application, request_buffering=False, **settings)


def final(client: socket.socket) -> Answer:
    answer = read_answer(client.makefile("rb"))
    assert answer is not None
    return answer


def test_the_application_has_the_first_part_before_the_rest_is_sent() -> None:
    application = Reading(3, 4)
    with streaming(application) as server, server.connect() as client:
        client.sendall(with_length(7) + b"abc")
        wait_for(lambda: application.blocks == [b"abc"], "the first part is read")
        client.sendall(b"defg")
        assert final(client).body == b"abcdefg"
        assert application.environ["CONTENT_LENGTH"] == "7"


def test_a_chunked_body_is_decoded_as_it_comes_and_the_environ_says_so() -> None:
    application = Reading(3, -1)
    with streaming(application) as server, server.connect() as client:
        client.sendall(CHUNKED + b"3\r\nabc\r\n")
        wait_for(lambda: application.blocks == [b"abc"], "the first chunk is read")
        client.sendall(b"2\r\nde\r\n0\r\nX: y\r\n\r\n" + GET)
        stream = client.makefile("rb")
        assert [answer and answer.status for answer in (read_answer(stream), read_answer(stream))] == [200, 200]
        assert application.blocks[:2] == [b"abc", b"de"]
    assert application.environ["wsgi.input_terminated"] is True


@pytest.mark.parametrize("framing", [with_length(11) + b"one\ntwo\nend", CHUNKED + b"b\r\none\ntwo\nend\r\n0\r\n\r\n"])
def test_every_way_of_reading_stops_at_the_end(framing: bytes) -> None:
    seen: list[Any] = []

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        stream = environ["wsgi.input"]
        if environ["REQUEST_METHOD"] == "POST":
            seen.extend(
                (stream.readline(), stream.readline(2), stream.read(2), list(stream), stream.read(), stream.read(5))
            )
            seen.extend((stream.readline(), stream.readlines()))
        start_response("200 OK", [])
        return [b"ok"]

    with streaming(application) as server:
        assert [answer.status for answer in server.talk(framing + GET)] == [200, 200]
    assert seen == [b"one\n", b"tw", b"o\n", [b"end"], b"", b"", b"", []]


def test_continue_is_said_when_the_application_reads() -> None:
    may_read = threading.Event()

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert may_read.wait(DEADLINE_S)
        body = environ["wsgi.input"].read()
        start_response("200 OK", [])
        return [body]

    with streaming(application) as server, server.connect() as client:
        stream = client.makefile("rb")
        client.sendall(POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1, socket.MSG_PEEK)
        client.settimeout(DEADLINE_S)
        may_read.set()
        interim = read_answer(stream)
        assert interim is not None
        assert interim.status == 100
        client.sendall(b"ab")
        answer = read_answer(stream)
        assert answer is not None
        assert answer.body == b"ab"


def refusing(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("403 Forbidden", [])
    return [b"no"]


def test_continue_is_not_said_to_an_application_that_does_not_read() -> None:
    with streaming(refusing) as server, server.connect() as client:
        client.sendall(POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        answer = final(client)
        assert (answer.status, answer.header("Connection")) == (403, "close")
        assert ends_quietly(client)


def test_a_short_body_that_is_not_read_is_skipped_and_the_connection_kept() -> None:
    with streaming(refusing) as server, server.connect() as client:
        client.sendall(with_length(10) + b"abc")
        answer = final(client)
        assert (answer.status, answer.header("Connection")) == (403, "keep-alive")
        client.sendall(b"defghij" + GET)
        assert final(client).status == 403


def test_a_chunked_body_that_is_not_read_is_skipped_too() -> None:
    with streaming(refusing) as server:
        answers = server.talk(CHUNKED + b"3\r\nabc\r\n0\r\n\r\n" + GET)
        assert [answer.status for answer in answers] == [403, 403]
        answers = server.talk(CHUNKED + b"3\r\nabcX" + GET)  # the rest cannot be framed: nothing of it is a request
        assert [answer.status for answer in answers] == [403]


def test_a_long_body_that_is_not_read_ends_the_connection_and_the_answer_is_seen() -> None:
    with streaming(refusing) as server, server.connect() as client:
        client.sendall(with_length(64 * UNREAD_BYTES_MAX))
        sender = threading.Thread(target=_send_until_refused, args=(client, 64 * UNREAD_BYTES_MAX))
        sender.start()
        answer = final(client)
        assert (answer.status, answer.body, answer.header("Connection")) == (403, b"no", "close")
        sender.join(DEADLINE_S)
        assert not sender.is_alive()


def _send_until_refused(client: socket.socket, size: int) -> None:
    try:
        client.sendall(b"x" * size)
    except OSError:
        return  # closed: it has been long enough


def test_an_endless_chunked_body_that_is_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "LINGER_MAX_S", 0.3)
    with streaming(refusing) as server, server.connect() as client:
        client.sendall(CHUNKED)
        assert final(client).status == 403
        with pytest.raises(OSError, match=r"reset|pipe"):
            _send_for_ever(client, b"8000\r\n" + b"x" * 0x8000 + b"\r\n")


def _send_for_ever(client: socket.socket, block: bytes) -> None:
    deadline = monotonic_s() + DEADLINE_S
    while monotonic_s() < deadline:
        client.sendall(block)


def test_a_body_that_is_cut_raises_and_the_client_is_told() -> None:
    application = Reading()
    with streaming(application) as server:
        assert [answer.status for answer in server.talk(with_length(5) + b"abc")] == [400]
    assert [type(error) for error in application.errors] == [BodyRefused]
    assert isinstance(application.errors[0], OSError)


def test_a_client_that_resets_raises(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    application = Reading(3, -1)
    with streaming(application) as server, server.connect() as client:
        client.sendall(with_length(5) + b"abc")
        wait_for(lambda: application.blocks == [b"abc"], "the first part is read")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        wait_for(lambda: application.errors != [], "the application hears of it")
    assert [type(error) for error in application.errors] == [ClientGone]
    assert caplog.records == []


@pytest.mark.parametrize(
    ("rest", "status"), [(b"zz\r\n", 400), (b"ffff\r\n", 413)], ids=["malformed chunk", "over the limit"]
)
def test_a_body_that_turns_out_bad_has_its_status(rest: bytes, status: int) -> None:
    application = Reading(3, -1)
    with streaming(application, limit_request_body=100) as server, server.connect() as client:
        client.sendall(CHUNKED + b"3\r\nabc\r\n")
        wait_for(lambda: application.blocks == [b"abc"], "the first chunk is read")
        client.sendall(rest)
        answer = final(client)
        assert (answer.status, answer.header("Connection")) == (status, "close")


def test_a_body_that_stops_coming_is_answered_408() -> None:
    application = Reading()
    with streaming(application, body_timeout=0.2) as server, server.connect() as client:
        client.sendall(with_length(5) + b"abc")
        assert final(client).status == 408


def test_an_application_that_handles_the_cut_has_the_last_word() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            start_response("499 Cut", [])
            return [str(error).encode()]
        return []

    with streaming(application) as server:
        (answer,) = server.talk(with_length(5) + b"abc")
        assert (answer.status, answer.header("Connection")) == (499, "close")
        assert b"cut" in answer.body


def test_what_follows_a_bad_body_is_no_request_even_if_the_application_has_begun_to_answer_before() -> None:
    paths: list[str] = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        paths.append(environ["PATH_INFO"])
        start_response("200 OK", [("Content-Length", "2")])
        yield b"o"
        try:
            environ["wsgi.input"].read()
        except OSError:
            yield b"k"

    with streaming(application) as server, server.connect() as client:
        client.sendall(CHUNKED)
        stream = client.makefile("rb")
        while stream.readline() != b"\r\n":
            continue
        assert stream.read(1) == b"o"
        client.sendall(b"bad\n")
        assert stream.read(1) == b"k"
        client.sendall(b"0\r\n\r\n" + GET)
        client.shutdown(socket.SHUT_WR)
        assert stream.read() == b""
    assert paths == ["/"]


def test_a_stream_that_the_application_has_kept_reads_nothing_of_the_next_request() -> None:
    kept: list[Any] = []

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["REQUEST_METHOD"] == "POST":
            kept.append(environ["wsgi.input"])
        start_response("200 OK", [])
        return [b"ok"]

    with streaming(application) as server, server.connect() as client:
        client.sendall(with_length(3) + b"abc")
        assert final(client).status == 200
        assert ask(client).status == 200  # now the first request is over on the server's side, too
        with pytest.raises(ValueError, match="over"):
            kept[0].read()


def test_streams_are_binary_buffered_readers() -> None:
    application = Reading()
    with streaming(application) as server:
        server.talk(with_length(3) + b"abc")
        assert isinstance(application.environ["wsgi.input"], io.BufferedReader)


# ── minimum rates ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("now", "moved", "rate", "deadline"),
    [
        (0, 0, 100, 10),  # at the beginning: the timeout
        (5, 1000, 100, 15),  # ahead of the rate: silence counts from the last bytes
        (30, 1000, 100, 20),  # behind it: what has come is worth 10 s, and the timeout comes on top
        (30, 1000, 0, 40),  # no rate
    ],
)
def test_a_transfer_may_be_silent_or_behind_for_the_timeout(now: int, moved: int, rate: int, deadline: int) -> None:
    second = 1_000_000_000
    assert paced_deadline_ns(now * second, 0, 10 * second, moved, rate) == deadline * second


def drip_until_answered(client: socket.socket) -> Answer | None:
    """Send a byte now and then until the server has something to say."""
    client.settimeout(0.02)
    stream = client.makefile("rb")
    for _ in range(int(DEADLINE_S / 0.02)):
        try:
            client.recv(1, socket.MSG_PEEK)
            break
        except TimeoutError:
            client.sendall(b"x")
    client.settimeout(DEADLINE_S)
    return read_answer(stream)


@pytest.mark.parametrize("buffering", [True, False])
def test_a_body_that_drips_is_answered_408(buffering: bool) -> None:
    application = Reading()
    with (
        serving(application, request_buffering=buffering, body_timeout=0.3, body_min_rate=10_000) as server,
        server.connect() as client,
    ):
        client.sendall(with_length(100_000))
        answer = drip_until_answered(client)
        assert answer is not None
        assert answer.status == 408


def test_a_reader_that_sips_is_disconnected(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [bytes(64 << 20)]

    with serving(application, write_timeout=0.3, write_min_rate=1 << 30) as server, _small_window(server) as client:
        client.sendall(GET)
        with pytest.raises(ConnectionResetError):
            read_all(client)


def _small_window(server: Served) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(DEADLINE_S)
    client.connect(server.address)
    return client
