"""TLS over real sockets: handshakes, records, ends, certificates that change; and clients that do not speak it."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forkserve.clock import monotonic_s
from forkserve.posix.key_material import KeyMaterial, KeyRegion
from forkserve.server.drainage import Stage
from forkserve.server.tls import TlsServer
from forkserve.server.tls_socket import RECORD_BYTES_MAX, TlsSocket
from forkserve.server.transport import PlainSocket, is_encrypted, send_from_file
from forkserve.settings import Hook, Settings
from tests.certificates import Authority, Pair, common_name, openssl
from tests.serving import DEADLINE_S, Served, read_answer, read_answers, serving
from tests.unit.server.test_connections import GET, ask, wait_for
from tests.unit.server.test_peers import PREAMBLE, tell
from tests.unit.server.test_relief import SLOW, Slow, end_slow_call
from tests.unit.server.test_upgrades import UPGRADE, shouting

CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
RESET = struct.pack("ii", 1, 0)


def hello(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"Hello, World\n"]


def digest(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode()]


def material_of(pair: Pair, authority: Authority | None = None) -> KeyMaterial:
    authorities = authority.certificate.read_bytes() if authority else b""
    return KeyMaterial(pair.certificate.read_bytes(), pair.key.read_bytes(), authorities)


class House:
    """A certificate, the memory that it stands in, and clients that trust it."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.region = KeyRegion.create()
        self.region.publish(material_of(authority.issue("first.test"), authority))

    def tls(self, hook: Hook | None = None, **settings: Any) -> TlsServer:
        made = TlsServer(self.region, Settings(certfile="/c.pem", ca_certs="/ca.pem", **settings), hook)
        made.renew()
        return made

    @contextmanager
    def serving(self, application: Callable[..., Any] = hello, **settings: Any) -> Iterator[Served]:
        names = ("cert_reqs", "handshake_timeout", "suppress_ragged_eofs")
        tls_settings = {name: settings.pop(name) for name in names if name in settings}
        tls = self.tls(settings.pop("hook", None), **tls_settings)
        with serving(application, tls=tls, **settings) as served:
            yield served

    def connect(
        self,
        served: Served,
        *,
        pair: Pair | None = None,
        context: ssl.SSLContext | None = None,
        raw: socket.socket | None = None,
        **options: Any,
    ) -> ssl.SSLSocket:
        """A client after its handshake."""
        context = context or self.authority.client_context(pair)
        return context.wrap_socket(raw or served.connect(), server_hostname="localhost", **options)


@pytest.fixture
def house(authority: Authority) -> Iterator[House]:
    made = House(authority)
    yield made
    os.close(made.region.fd)


def read_all(client: socket.socket) -> None:
    while client.recv(1 << 16):
        pass


def codes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [getattr(record.msg, "code", "") for record in caplog.records]


# ------------------------------------------------------------------------------------------- requests


def test_requests_are_answered_on_a_kept_connection(house: House) -> None:
    with house.serving() as server, house.connect(server) as client:
        for _ in range(20):
            answer = ask(client)
            assert (answer.status, answer.body) == (200, b"Hello, World\n")
            assert answer.header("Connection") == "keep-alive"


def test_the_application_is_told(house: House) -> None:
    seen: dict[str, Any] = {}

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        return hello(environ, start_response)

    with house.serving(application) as server, house.connect(server) as client:
        ask(client)
    assert seen["wsgi.url_scheme"] == "https"
    assert (seen["HTTPS"], seen["SSL_PROTOCOL"], seen["SSL_CLIENT_VERIFY"]) == ("on", "TLSv1.3", "NONE")
    assert re.fullmatch(r"TLS_\w+", seen["SSL_CIPHER"])
    assert not [name for name in seen if name.startswith(("SSL_CLIENT_S", "SSL_CLIENT_C", "forkserve.peer"))]


def test_a_port_without_tls_says_nothing_of_it() -> None:
    seen: dict[str, Any] = {}

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        return hello(environ, start_response)

    with serving(application) as server, server.connect() as client:
        ask(client)
    assert seen["wsgi.url_scheme"] == "http"
    assert not [name for name in seen if name.startswith(("SSL_", "HTTPS"))]


def test_unix_sockets_speak_tls_too(house: House, tmp_path: Path) -> None:
    with house.serving(unix_path=f"{tmp_path}/s") as server, house.connect(server) as client:
        assert ask(client).status == 200


@pytest.mark.parametrize("waits", [False, True], ids=["with the handshake", "before it"])
def test_the_proxy_protocol_comes_in_clear_before_the_handshake(house: House, waits: bool) -> None:
    with house.serving(tell, proxy_protocol="v1") as server:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = house.authority.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        assert not is_done(client)
        with server.connect() as raw:
            raw.sendall(PREAMBLE if waits else PREAMBLE + outgoing.read())
            wait_for(lambda: server.reactor.connection_count == 1, "it is accepted")
            raw.sendall(outgoing.read())
            while not is_done(client):
                incoming.write(raw.recv(65536))
            client.write(CLOSE)
            raw.sendall(outgoing.read())
            while data := raw.recv(65536):
                incoming.write(data)
            answer = client.read(65536)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"REMOTE_ADDR": "192.0.2.7"' in answer
    assert b'"HTTPS": "on"' in answer


def test_tls_1_2_is_spoken(house: House) -> None:
    context = house.authority.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with house.serving() as server, house.connect(server, context=context) as client:
        assert client.version() == "TLSv1.2"
        assert ask(client).status == 200


def test_http_1_1_is_what_alpn_gives(house: House) -> None:
    context = house.authority.client_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with house.serving() as server, house.connect(server, context=context) as client:
        assert client.selected_alpn_protocol() == "http/1.1"


# ------------------------------------------------------------------------------------------- records


def test_a_request_in_many_small_records(house: House) -> None:
    with house.serving(digest) as server, house.connect(server) as client:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"
        for byte in head + b"x" * 999:
            client.send(bytes([byte]))
        answer = ask(client, b"x")
        assert answer.body == f"1000 {hashlib.sha256(b'x' * 1000).hexdigest()}".encode()


def test_requests_that_fill_one_record_are_all_answered(house: House) -> None:
    """What OpenSSL has decrypted is not seen by an epoll: nothing of a record may stay there."""
    filler = RECORD_BYTES_MAX % len(GET)
    requests = GET * (RECORD_BYTES_MAX // len(GET) - 1) + GET[:-2] + b"X: " + b"x" * (filler - 5) + b"\r\n\r\n"
    assert len(requests) == RECORD_BYTES_MAX
    with house.serving() as server, house.connect(server) as client:
        assert client.send(requests) == RECORD_BYTES_MAX
        stream = client.makefile("rb")
        for _ in range(RECORD_BYTES_MAX // len(GET)):
            answer = read_answer(stream)
            assert answer is not None
            assert answer.status == 200


def test_a_head_and_a_body_in_one_full_record(house: House) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    body = b"y" * (RECORD_BYTES_MAX - len(head % RECORD_BYTES_MAX))
    with house.serving(digest) as server, house.connect(server) as client:
        answer = ask(client, head % len(body) + body)
        assert answer.body.split()[0] == str(len(body)).encode()


def test_a_chunked_upload_of_megabytes(house: House) -> None:
    blocks = [os.urandom(70_001) for _ in range(60)]
    with house.serving(digest) as server, house.connect(server) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for block in blocks:
            client.sendall(b"%x\r\n%b\r\n" % (len(block), block))
        answer = ask(client, b"0\r\n\r\n")
        body = b"".join(blocks)
        assert answer.body == f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode()


@pytest.mark.parametrize("block_bytes", [700, 60_000, 3_000_000])
@pytest.mark.parametrize("limit", [4096, 1 << 30], ids=["the request waits", "all is kept"])
def test_an_answer_that_a_slow_reader_takes_arrives_whole(house: House, block_bytes: int, limit: int) -> None:
    """Through memory, then a temporary file; each write that did not go through is repeated with the same bytes."""
    total = max(6_000_000 if block_bytes > 700 else 1_000_000, block_bytes)
    content = os.urandom(total)

    def application(_environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", str(total))])
        return (content[at : at + block_bytes] for at in range(0, total, block_bytes))

    settings = {"write_buffer_memory": min(50_000, limit), "write_buffer_limit": limit}
    with house.serving(application, **settings) as server:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(DEADLINE_S)
        raw.connect(server.address)
        with house.connect(server, raw=raw) as client:
            client.sendall(CLOSE)
            wait_for(lambda: bool(select.select([client], [], [], 0)[0]), "the answer begins")
            (answer,) = read_answers(client.makefile("rb"))
            assert answer.is_whole
            assert hashlib.sha256(answer.body).digest() == hashlib.sha256(content).digest()


def test_the_kernel_sends_no_file_past_the_encryption(house: House, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(300_000))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    server = house.tls().wrap(ours)
    assert is_encrypted(server)
    assert not is_encrypted(theirs)
    received = bytearray()

    def read() -> None:
        with house.authority.client_context().wrap_socket(theirs, server_hostname="localhost") as client:
            while len(received) < 300_000 and (data := client.recv(65536)):
                received.extend(data)

    thread = threading.Thread(target=read)
    thread.start()
    finish_handshake(server)
    with path.open("rb") as file:
        at = 0
        while at < 300_000:
            try:
                at += send_from_file(server, file.fileno(), at, 300_000 - at)
            except BlockingIOError:
                select.select([], [server.fileno()], [], DEADLINE_S)
        assert send_from_file(server, file.fileno(), at, 1000) == 0
    thread.join(DEADLINE_S)
    assert bytes(received) == path.read_bytes()
    server.close()


def test_a_body_that_is_read_as_it_comes(house: House) -> None:
    with house.serving(digest, request_buffering=False) as server, house.connect(server) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n")
        for _ in range(300):
            client.sendall(b"z" * 1000)
        answer = read_answer(client.makefile("rb"))
        assert answer is not None
        assert answer.body == f"300000 {hashlib.sha256(b'z' * 300_000).hexdigest()}".encode()
        assert ask(client).status == 200


def test_a_file_of_the_application_arrives_whole(house: House, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3_000_000))

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "3000000")])
        return environ["wsgi.file_wrapper"](path.open("rb"))

    with house.serving(application) as server, house.connect(server) as client:
        for _ in range(2):
            assert ask(client).body == path.read_bytes()


def test_an_application_may_take_the_connection(house: House) -> None:
    with house.serving(shouting) as server, house.connect(server) as client:
        client.sendall(UPGRADE + b"early ")
        stream = client.makefile("rb")
        answer = read_answer(stream)
        assert answer is not None
        assert answer.status == 101
        client.sendall(b"bird\n")
        assert stream.readline() == b"EARLY BIRD\n"
        client.sendall(b"end\n\n")
        assert stream.read() == b"END\n\n"


def test_while_a_call_runs_others_have_their_handshakes_and_the_limit_is_kept(house: House) -> None:
    application = Slow()
    with house.serving(application, handshake_timeout=3) as server, house.connect(server) as busy:
        busy.sendall(SLOW)
        assert application.begun.acquire(timeout=DEADLINE_S)
        with server.connect() as silent, house.connect(server) as other:
            other.sendall(GET)
            assert silent.recv(1000) == b""
            end_slow_call(application, busy)
            answer = read_answer(other.makefile("rb"))
            assert answer is not None
            assert answer.status == 200


def finish_handshake(server: TlsSocket) -> None:
    while awaited := server.handshake():
        poll = select.poll()
        poll.register(server.fileno(), awaited)
        assert poll.poll(DEADLINE_S * 1000), "no handshake"


def made_of(ssl_socket: Any) -> TlsSocket:
    """One around another thing than an ssl.SSLSocket."""
    context: Any = SimpleNamespace(wrap_socket=lambda *_words, **_options: ssl_socket)
    with socket.socket() as unused:
        return TlsSocket(unused, context, suppress_ragged_eofs=True)


def test_a_read_that_has_to_write_first_ends_the_connection() -> None:
    """It is no BlockingIOError: an epoll that waits for bytes would report them at once, again and again."""

    class Busy:
        def recv(self, _size: int) -> bytes:
            raise ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "a key update cannot be answered")

    busy = made_of(Busy())
    with pytest.raises(OSError, match="key update") as caught:
        busy.recv(RECORD_BYTES_MAX)
    assert not isinstance(caught.value, BlockingIOError)


def test_a_socket_that_takes_nothing_without_an_error_is_one_that_would_block() -> None:
    """gevent's, where an application has patched the ssl module."""

    class Patched:
        def __init__(self) -> None:
            self.room = RECORD_BYTES_MAX

        def send(self, data: memoryview) -> int:
            taken, self.room = min(len(data), self.room), 0
            return taken

    patched = made_of(Patched())
    assert patched.send(b"x" * 100_000) == RECORD_BYTES_MAX
    with pytest.raises(BlockingIOError):
        patched.send(b"x" * 100_000)
    assert patched.send(b"") == 0


# ------------------------------------------------------------------------------------------- handshakes


def test_silent_clients_do_not_keep_others_from_their_handshakes(house: House) -> None:
    with house.serving(worker_connections=200) as server:
        silent = [server.connect() for _ in range(100)]
        for number, each in enumerate(silent):
            each.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01"[: number % 9])  # silent from different moments on
        with house.connect(server) as client:
            assert ask(client).status == 200
        for each in silent:
            each.close()


@pytest.mark.parametrize("begin", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00"], ids=["nothing", "a byte", "some"])
def test_a_handshake_that_does_not_come_ends_at_its_limit(
    house: House, begin: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with house.serving(handshake_timeout=0.2) as server, server.connect() as client:
        client.sendall(begin)
        assert client.recv(1000) == b""
    assert codes(caplog) == []


def test_the_limit_is_for_the_whole_handshake(house: House) -> None:
    with house.serving(handshake_timeout=0.3) as server, server.connect() as client:
        deadline = monotonic_s() + DEADLINE_S
        hello_of_512_bytes = iter(b"\x16\x03\x01\x02\x00" + b"\x01\x00\x01\xfc" + b"\x03" * 508)
        with suppress(OSError):  # it was ended: that is the point
            while True:
                client.sendall(bytes([next(hello_of_512_bytes)]))
                if select.select([client], [], [], 0.01)[0]:
                    break
        assert monotonic_s() < deadline


def test_after_the_handshake_a_silent_client_has_the_time_of_a_new_connection(house: House) -> None:
    with house.serving(header_timeout=0.2) as server, house.connect(server) as client:
        assert client.recv(1000) == b""


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"PROPFIND", b"get"])
def test_http_in_clear_is_answered_in_clear(house: House, method: bytes) -> None:
    with house.serving() as server:
        (answer,) = server.talk(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n", methods=(method.decode(),))
        assert answer.status == 400
        assert answer.header("Connection") == "close"
        assert answer.body == b"" if method == b"HEAD" else b"https://" in answer.body


def test_a_client_that_uploads_in_clear_reads_the_answer_rather_than_a_reset(house: House) -> None:
    with house.serving() as server:
        body = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 3_000_000
        (answer,) = server.talk(body)
        assert answer.status == 400


def test_http_in_clear_is_in_the_access_log(house: House) -> None:
    seen: list[tuple[int, bytes]] = []

    class Observer:
        def begin(self, exchange: Any) -> None: ...
        def end(self, exchange: Any, now_ns: int) -> None: ...
        def flush(self) -> None: ...
        def refused(self, _connection: Any, refused: Any, head: bytes, _answer_bytes: int) -> None:
            seen.append((refused.status, head))

    with house.serving(observer=Observer()) as server:
        server.talk(GET)
    assert seen == [(400, GET)]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 100,
        b"\x16\x03\x01\x00\x05hello",
        b"\x16" * 2000,
        b"\x16\x03\x01\xff\xff" + b"\xff" * 70000,
        b"\x80\x2e\x01\x00\x02",
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\xff",
        b"\r\n\r\n",
    ],
    ids=["zeros", "hello", "sixteens", "overlong", "SSLv2", "alert", "one byte", "empty lines"],
)
def test_garbage_costs_a_line_of_debug_at_most(house: House, garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with house.serving() as server:
        with server.connect() as client, suppress(OSError):  # ended before all was sent
            client.sendall(garbage)
            client.shutdown(socket.SHUT_WR)
            read_all(client)
        with house.connect(server) as client:
            assert ask(client).status == 200
    assert [record.levelno for record in caplog.records] in ([], [logging.DEBUG])
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_a_client_that_does_not_trust_us_costs_a_line_of_debug(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with house.serving() as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(server.connect(), server_hostname="localhost")
        wait_for(lambda: codes(caplog) == ["tls.failed"], "the line")


def test_a_client_that_leaves_amid_the_handshake_costs_its_connection_alone(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes between our look at its first byte and the making of its TLS socket, which closes the descriptor."""
    tls = house.tls()
    wrap = tls.wrap

    def late_wrap(sock: PlainSocket) -> TlsSocket:
        sock.getpeername()
        leaving.set()
        with pytest.raises(OSError, match=r".") as caught:
            wait_for(lambda: sock.getpeername() == (), "the client has left")
        assert caught.value.errno == errno.ENOTCONN
        tls.wrap = wrap  # type: ignore[method-assign]
        return wrap(sock)

    tls.wrap = late_wrap  # type: ignore[method-assign]
    leaving = threading.Event()
    with serving(hello, tls=tls) as server:
        client = server.connect()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        wait_for(lambda: server.reactor.connection_count == 1, "it is accepted")
        client.sendall(b"\x16")
        assert leaving.wait(DEADLINE_S)
        client.close()
        with house.connect(server) as other:
            assert ask(other).status == 200
            wait_for(lambda: server.reactor.connection_count == 1, "the one that left is forgotten")
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


# ------------------------------------------------------------------------------------------- ends


def until_close(content: bytes, *, fails: bool = False) -> Callable[..., Iterator[bytes]]:
    def application(_environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])

        def blocks() -> Iterator[bytes]:
            yield content
            if fails:
                raise RuntimeError("midway")
            yield content

        return blocks()

    return application


def test_an_answer_that_ends_with_its_connection_ends_with_a_farewell(house: House) -> None:
    with house.serving(until_close(b"abc")) as server, house.connect(server, suppress_ragged_eofs=False) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        (answer,) = read_answers(client.makefile("rb"))
        assert answer.body == b"abcabc"


def test_an_answer_that_was_cut_does_not_end_like_a_whole_one(house: House) -> None:
    application = until_close(b"abc", fails=True)
    with house.serving(application) as server, house.connect(server, suppress_ragged_eofs=False) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(OSError, match=r"reset|EOF"):
            read_all(client)


@pytest.mark.parametrize("request_bytes", [CLOSE, b"nonsense\r\n\r\n"], ids=["answer", "refusal"])
def test_the_last_answer_is_followed_by_a_farewell(house: House, request_bytes: bytes) -> None:
    with house.serving() as server, house.connect(server, suppress_ragged_eofs=False) as client:
        client.sendall(request_bytes)
        assert len(read_answers(client.makefile("rb"))) == 1


def test_an_idle_connection_is_closed_with_a_farewell(house: House) -> None:
    with house.serving(header_timeout=0.1) as server, house.connect(server, suppress_ragged_eofs=False) as client:
        assert client.recv(1000) == b""


def test_a_client_that_is_refused_in_mid_upload_reads_why(house: House) -> None:
    with house.serving(limit_request_body=1000) as server, house.connect(server) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n")
        for _ in range(100):
            client.sendall(b"x" * 30_000)
        (answer,) = read_answers(client.makefile("rb"))
        assert answer.status == 413


def end_without_farewell(client: ssl.SSLSocket) -> None:
    socket.socket.shutdown(client, socket.SHUT_WR)


def test_a_client_that_ends_its_side_without_a_farewell_is_answered(house: House) -> None:
    with house.serving() as server, house.connect(server) as client:
        client.sendall(GET)
        end_without_farewell(client)
        assert [each.status for each in read_answers(client.makefile("rb"))] == [200]


def test_a_body_that_is_cut_without_a_farewell_does_not_reach_the_application(house: House) -> None:
    with house.serving() as server, house.connect(server) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        end_without_farewell(client)
        assert [each.status for each in read_answers(client.makefile("rb"))] == [400]


def test_an_end_without_a_farewell_can_be_refused(house: House) -> None:
    with house.serving(suppress_ragged_eofs=False) as server, house.connect(server) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        end_without_farewell(client)
        with suppress(ssl.SSLError):  # OpenSSL 3 says by an alert what it thinks of that
            assert client.recv(1000) == b""


def test_a_drain_waits_for_a_handshake_that_has_begun_but_not_for_silence(house: House) -> None:
    with house.serving(handshake_timeout=30, header_timeout=30) as server:
        begun, silent = server.connect(), server.connect()
        begun.sendall(b"\x16")
        wait_for(lambda: server.reactor.connection_count == 2, "both are accepted")
        server.wake(lambda: server.reactor.drain(stopping=False))
        assert silent.recv(1000) == b""
        assert server.reactor.stage is Stage.DRAINING
        begun.close()
        server.join()
        silent.close()


def test_a_request_that_comes_with_the_drain_is_answered(house: House) -> None:
    with house.serving(handshake_timeout=30, header_timeout=30) as server:
        raw = server.connect()
        wait_for(lambda: server.reactor.connection_count == 1, "it is accepted")
        server.wake(lambda: server.reactor.drain(stopping=False))
        wait_for(lambda: server.reactor.stage is Stage.DRAINING, "the drain begins")
        with house.connect(server, raw=raw) as client:
            answer = ask(client)
            assert (answer.status, answer.header("Connection")) == (200, "close")
        server.join()


def test_a_client_that_is_silent_after_a_late_handshake_does_not_hold_up_a_drain(house: House) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = house.authority.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    assert not is_done(client)
    patient = house.serving(handshake_timeout=30, header_timeout=30)
    with patient as server, server.connect() as late, server.connect() as silent:
        late.sendall(outgoing.read(1))
        wait_for(lambda: server.reactor.connection_count == 2, "both are accepted")
        server.wake(lambda: server.reactor.drain(stopping=False))
        assert silent.recv(1000) == b""  # those that were idle have been closed
        late.sendall(outgoing.read())
        while not is_done(client):
            incoming.write(late.recv(65536))
        late.sendall(outgoing.read())
        server.join()


def is_done(client: ssl.SSLObject) -> bool:
    """Whether that was the last step of its handshake."""
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


# ------------------------------------------------------------------------------------------- client certificates


def seen_of_client(house: House, pair: Pair | None, cert_reqs: int) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        return hello(environ, start_response)

    with house.serving(application, cert_reqs=cert_reqs) as server, house.connect(server, pair=pair) as client:
        ask(client)
    return seen


def test_the_application_is_told_of_a_clients_certificate(house: House) -> None:
    pair = house.authority.issue("client.test", subject="/C=GB/O=Engines, Ltd./CN=Ada Zoë")
    seen = seen_of_client(house, pair, cert_reqs=2)
    assert seen["SSL_CLIENT_VERIFY"] == "SUCCESS"
    named = openssl("x509", "-in", pair.certificate, "-noout", "-subject", "-issuer", "-serial", "-nameopt", "RFC2253")
    subject, issuer, serial = (line.partition("=")[2].strip() for line in named.splitlines())
    assert seen["SSL_CLIENT_S_DN"] == subject == "CN=Ada Zo\\C3\\AB,O=Engines\\, Ltd.,C=GB"
    assert seen["SSL_CLIENT_I_DN"] == issuer == "CN=Authority of the tests"
    assert seen["SSL_CLIENT_M_SERIAL"] == serial
    assert seen["SSL_CLIENT_S_DN_CN"].encode("latin-1").decode() == "Ada Zoë"
    assert seen["SSL_CLIENT_CERT"].split() == pair.certificate.read_text().split()
    assert ("commonName", "Ada Zoë") in seen["forkserve.peercert"]["subject"][-1]


def test_a_certificate_that_is_not_demanded_may_be_missing_or_shown(house: House) -> None:
    assert seen_of_client(house, None, cert_reqs=1)["SSL_CLIENT_VERIFY"] == "NONE"
    assert seen_of_client(house, house.authority.issue("client.test"), cert_reqs=1)["SSL_CLIENT_VERIFY"] == "SUCCESS"


def test_a_client_that_is_not_asked_is_not_told_of(house: House) -> None:
    seen = seen_of_client(house, house.authority.issue("client.test"), cert_reqs=0)
    assert seen["SSL_CLIENT_VERIFY"] == "NONE"
    assert "SSL_CLIENT_S_DN" not in seen


@pytest.mark.parametrize("cert_reqs", [1, 2], ids=["optional", "required"])
def test_a_clients_certificate_of_another_authority_is_refused(
    house: House, tmp_path: Path, cert_reqs: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    stranger = Authority(tmp_path, "Another authority").issue("client.test")
    assert is_refused(house, stranger, cert_reqs)
    assert codes(caplog) == ["tls.failed"]


def test_a_client_without_the_demanded_certificate_reads_why(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert is_refused(house, None, 2)
    assert codes(caplog) == ["tls.failed"]


def is_refused(house: House, pair: Pair | None, cert_reqs: int) -> bool:
    """Whether the client is told so: in TLS 1.3 it learns only after it has sent its request."""
    with house.serving(cert_reqs=cert_reqs) as server, house.connect(server, pair=pair) as client:
        try:
            ask(client, GET + b"x" * 100_000)
        except ssl.SSLError as error:
            return "ALERT" in str(error)
    return False


# ------------------------------------------------------------------------------------------- certificates that change


def test_a_new_certificate_is_for_new_connections_and_old_ones_go_on(house: House) -> None:
    with house.serving() as server, house.connect(server) as old:
        assert common_name(old) == "first.test"
        assert ask(old).status == 200
        house.region.publish(material_of(house.authority.issue("second.test")))
        with house.connect(server) as new:
            assert common_name(new) == "second.test"
            assert ask(new).status == 200
        assert ask(old).status == 200


def test_a_certificate_that_the_hook_does_not_like_leaves_the_old_one(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def ssl_context(_config: Any, default_ssl_context_factory: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise LookupError("no such vault")
        return default_ssl_context_factory()

    with house.serving(hook=ssl_context) as server:
        house.region.publish(material_of(house.authority.issue("second.test")))
        for _ in range(3):
            with house.connect(server) as client:
                assert common_name(client) == "first.test"
        assert codes(caplog) == ["tls.kept"]
        assert "no such vault" in caplog.records[0].getMessage()
        house.region.publish(material_of(house.authority.issue("third.test")))
        with house.connect(server) as client:
            assert common_name(client) == "third.test"


def test_workers_of_one_context_resume_each_others_sessions(house: House) -> None:
    """What the zygote does: one context before the forks; here two reactors share it."""
    tls = house.tls()
    context = house.authority.client_context()
    with serving(hello, tls=tls) as first, serving(hello, tls=tls) as second:
        with house.connect(first, context=context) as client:
            assert ask(client).status == 200
            session = client.session
        with house.connect(second, context=context, session=session) as client:
            assert ask(client).status == 200
            assert client.session_reused
