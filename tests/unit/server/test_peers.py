"""Who the client is: addresses of sockets, proxies in front, the PROXY protocol; over real sockets."""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from forkserve.posix.handover import HandOver, Passed, make_pair
from forkserve.posix.scoreboard import Scoreboard
from forkserve.server.access_log import AccessLog
from forkserve.server.drainage import Stage
from tests.serving import DEADLINE_S, read_answer, serving
from tests.unit.server.test_connections import GET, ask, ends_quietly, hello, wait_for
from tests.unit.server.test_relief import SLOW, Slow, end_slow_call, two_workers

PREAMBLE = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"


def tell(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """An application that tells what it was given."""
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({key: value for key, value in environ.items() if isinstance(value, str)}).encode()]


def told(client: socket.socket, data: bytes = GET) -> dict[str, str]:
    answer = ask(client, data)
    assert answer.status == 200, answer
    found: dict[str, str] = json.loads(answer.body)
    return found


def with_fields(*fields: str, target: str = "/") -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: a", *fields, "\r\n"]).encode()


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# ---------------------------------------------------------------------------------------------- addresses of sockets


@pytest.mark.parametrize(
    ("host", "client", "name"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("::1", "::1", "[::1]"),
        ("::ffff:127.0.0.1", "127.0.0.1", "127.0.0.1"),  # a client of IPv4 at a socket of IPv6
    ],
)
def test_tcp_addresses_are_told_as_cgi_has_them(host: str, client: str, name: str) -> None:
    with serving(validator(tell), host=host) as server, server.connect() as connection:
        environ = told(connection)
        assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == (client, str(connection.getsockname()[1]))
        assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == (name, str(server.address[1]))


def test_peer_of_a_unix_socket_has_no_address(tmp_path: Path) -> None:
    with serving(validator(tell), unix_path=str(tmp_path / "s")) as server, server.connect() as client:
        environ = told(client)
        assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("", "")
        assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("localhost", "80")


def test_flask_takes_a_unix_peer(tmp_path: Path) -> None:
    import flask

    site = flask.Flask("site")

    @site.get("/")
    def index() -> list[Any]:
        return [flask.request.remote_addr, flask.request.url]

    with serving(site, unix_path=str(tmp_path / "s")) as server, server.connect() as client:
        answer = ask(client, with_fields("X-Forwarded-Proto: https"))
        assert json.loads(answer.body) == ["", "https://a/"]


def logged(*requests: bytes, **options: Any) -> list[str]:
    """The access log's lines about these requests, each on a connection of its own."""
    reader, writer = os.pipe()
    with serving(tell, observer=AccessLog(writer, "%(h)s %(s)s"), **options) as server:
        for request in requests:
            server.talk(request)
    lines = os.read(reader, 65536).decode().splitlines()
    os.close(reader)
    os.close(writer)
    return lines


def test_access_log_names_the_client(tmp_path: Path) -> None:
    assert logged(GET, unix_path=str(tmp_path / "s")) == ["- 200"]
    assert logged(with_fields("X-Forwarded-For: 192.0.2.7"), forwarded_for=True) == ["192.0.2.7 200"]
    requests = PREAMBLE + GET, LOCAL + GET, PREAMBLE + b"\0\r\n\r\n", GET
    assert logged(*requests, proxy_protocol="auto") == [
        "192.0.2.7 200",
        "127.0.0.1 200",
        "192.0.2.7 400",
        "127.0.0.1 400",
    ]


# ---------------------------------------------------------------------------------------------- forwarded fields


def test_peers_are_trusted_by_their_address() -> None:
    request = with_fields("X-Forwarded-Proto: https", "SCRIPT_NAME: /a", target="/a/b")
    for trusted, expected in (
        (("127.0.0.0/8",), ("https", "/a", "/b")),
        (("*",), ("https", "/a", "/b")),
        (("127.0.0.2", "::1"), ("http", "", "/a/b")),
        ((), ("http", "", "/a/b")),
    ):
        settings = {"forwarded_allow_ips": trusted, "forwarder_headers": ("SCRIPT_NAME",)}
        with serving(tell, **settings) as server, server.connect() as client:
            for _ in range(3):
                environ = told(client, request)
                assert (environ["wsgi.url_scheme"], environ["SCRIPT_NAME"], environ["PATH_INFO"]) == expected


def test_peers_of_unix_sockets_are_trusted(tmp_path: Path) -> None:
    settings = {"unix_path": str(tmp_path / "s"), "forwarded_allow_ips": (), "forwarded_for": True}
    with serving(tell, **settings) as server, server.connect() as client:
        environ = told(client, with_fields("X-Forwarded-Proto: https", "X-Forwarded-For: 192.0.2.7:99"))
        assert environ["wsgi.url_scheme"] == "https"
        assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("192.0.2.7", "99")
        assert told(client)["REMOTE_ADDR"] == ""  # one request's field says nothing of the next


def test_path_outside_of_the_prefix_is_answered_404() -> None:
    with serving(tell, forwarder_headers=("SCRIPT_NAME",)) as server:
        answers = server.talk(with_fields("SCRIPT_NAME: /a", target="/b"))
        assert [answer.status for answer in answers] == [404]


def test_loopback_cannot_move_the_application_unless_that_is_asked_for() -> None:
    with serving(tell) as server, server.connect() as client:
        assert told(client, with_fields("SCRIPT_NAME: /a", target="/a/b"))["PATH_INFO"] == "/a/b"


def test_other_scheme_headers_can_be_named() -> None:
    with serving(tell, secure_scheme_headers={"Front-End-Https": "on"}) as server, server.connect() as client:
        assert told(client, with_fields("Front-End-Https: on"))["wsgi.url_scheme"] == "https"
        assert told(client, with_fields("X-Forwarded-Proto: https"))["wsgi.url_scheme"] == "http"


# ---------------------------------------------------------------------------------------------- the PROXY protocol


def test_address_holds_for_all_requests_of_a_connection() -> None:
    with serving(tell, proxy_protocol="v1") as server, server.connect() as client:
        for data in (PREAMBLE + GET, GET, GET):
            environ = told(client, data)
            assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("192.0.2.7", "56324")
            assert environ["PROXY_PROTOCOL"] == "TCP4"
            assert (environ["PROXY_ADDR"], environ["PROXY_PORT"]) == ("198.51.100.1", "443")


def test_one_connections_address_is_not_anothers() -> None:
    with serving(tell, proxy_protocol="auto") as server, server.connect() as first, server.connect() as second:
        assert told(first, PREAMBLE + GET)["REMOTE_ADDR"] == "192.0.2.7"
        environ = told(second, LOCAL + GET)
        assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("127.0.0.1", str(second.getsockname()[1]))
        assert (environ["PROXY_PROTOCOL"], environ.get("PROXY_ADDR")) == ("LOCAL", None)
        assert told(first)["REMOTE_ADDR"] == "192.0.2.7"


@pytest.mark.parametrize("data", [PREAMBLE + GET, LOCAL, GET, b"x"])
def test_peer_that_may_not_connect_is_refused_whatever_it_sends(data: bytes) -> None:
    with serving(tell, proxy_protocol="auto", proxy_allow_ips=("192.0.2.0/24",)) as server:
        assert [answer.status for answer in server.talk(data)] == [403]


def test_peers_of_unix_sockets_may_connect(tmp_path: Path) -> None:
    settings = {"unix_path": str(tmp_path / "s"), "proxy_protocol": "auto", "proxy_allow_ips": ()}
    with serving(tell, **settings) as server, server.connect() as client:
        assert told(client, PREAMBLE + GET)["REMOTE_ADDR"] == "192.0.2.7"


def test_nothing_is_read_as_a_preamble_where_it_is_off() -> None:
    with serving(tell) as server:
        assert [answer.status for answer in server.talk(PREAMBLE + GET)] == [400]


def test_body_behind_the_preamble_arrives_whole() -> None:
    def length(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [str(len(environ["wsgi.input"].read())).encode()]

    with serving(length, proxy_protocol="auto") as server, server.connect() as client:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n"
        assert ask(client, PREAMBLE + head + b"x" * 200_000).body == b"200000"


def test_preamble_that_dribbles_is_answered_408() -> None:
    with serving(tell, proxy_protocol="auto", header_timeout=0.2) as server, server.connect() as client:
        client.sendall(PREAMBLE[:20])
        answer = read_answer(client.makefile("rb"))
        assert answer is not None
        assert answer.status == 408


@pytest.mark.parametrize("data", [b"", PREAMBLE, LOCAL])
def test_connection_that_begins_no_request_is_closed_silently_in_time(data: bytes) -> None:
    with serving(tell, proxy_protocol="auto", header_timeout=0.2) as server, server.connect() as client:
        client.sendall(data)
        assert ends_quietly(client)


@pytest.mark.parametrize("data", [b"", PREAMBLE, LOCAL])
def test_check_that_connects_and_leaves_is_not_answered(data: bytes) -> None:
    with serving(tell, proxy_protocol="auto") as server:
        assert server.talk(data) == []


def test_reset_amid_the_preamble_costs_one_connection() -> None:
    with serving(tell, proxy_protocol="auto") as server:
        client = server.connect()
        client.sendall(PREAMBLE[:20])
        wait_for(lambda: server.reactor.connection_count == 1, "accepted")
        reset(client)
        wait_for(lambda: server.reactor.connection_count == 0, "closed")
        assert [answer.status for answer in server.talk(PREAMBLE + GET)] == [200]


@pytest.mark.parametrize("data", [b"", PREAMBLE])
def test_drain_closes_connections_that_have_begun_nothing(data: bytes) -> None:
    with serving(tell, proxy_protocol="auto") as server, server.connect() as client:
        client.sendall(data)
        wait_for(lambda: server.reactor.connection_count == 1, "accepted")
        server.wake(lambda: server.reactor.drain(stopping=True))
        assert ends_quietly(client)
        server.join()


def test_preamble_that_has_begun_may_go_on_while_draining() -> None:
    with serving(tell, proxy_protocol="auto") as server, server.connect() as client:
        client.sendall(PREAMBLE[:20])
        wait_for(lambda: server.reactor.connection_count == 1, "accepted")
        server.wake(lambda: server.reactor.drain(stopping=False))
        wait_for(lambda: server.reactor.stage is Stage.DRAINING, "draining")
        assert told(client, PREAMBLE[20:] + GET)["REMOTE_ADDR"] == "192.0.2.7"
        server.join()


def test_silent_connections_give_way_to_newcomers() -> None:
    with serving(hello, proxy_protocol="auto", worker_connections=5) as server:
        silent = [server.connect() for _ in range(5)]
        for index, client in enumerate(silent):
            client.sendall(PREAMBLE[:index])
        wait_for(lambda: server.reactor.connection_count == 5, "accepted")
        assert [answer.status for answer in server.talk(PREAMBLE + GET)] == [200]
        for client in silent:
            client.close()


def test_connection_that_goes_to_a_sibling_keeps_its_client() -> None:
    board = Scoreboard.create(2)
    for slot in range(2):
        board.row(slot).claim(worker_id=slot + 1, generation=1, now_ns=0)
    busy = Slow()
    handover, one, other = two_workers(busy, tell, board, proxy_protocol="auto")
    with one as server, other, server.connect() as parked, server.connect() as long:
        assert ask(parked, PREAMBLE + GET).body == b"/"
        long.sendall(LOCAL + SLOW)
        assert busy.begun.acquire(timeout=DEADLINE_S)
        for _ in range(2):
            environ = told(parked, with_fields("X-Forwarded-Proto: https"))
            assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("192.0.2.7", "56324")
            assert (environ["PROXY_PROTOCOL"], environ["PROXY_ADDR"]) == ("TCP4", "198.51.100.1")
            assert environ["wsgi.url_scheme"] == "https"  # as said by the balancer, which is trusted, not by the client
        end_slow_call(busy, long)
    handover.close()


def test_connection_from_another_worker_has_its_preamble_behind_it() -> None:
    handover = HandOver(*make_pair())
    with serving(tell, proxy_protocol="auto", reactor_options={"handover": handover}):
        for extras, address in (({}, "127.0.0.1"), ({"REMOTE_ADDR": "192.0.2.7"}, "192.0.2.7")):
            client, accepted = socket.socketpair()
            passed = Passed(0, "127.0.0.1", "4711", extras, GET, True)  # {}: of a generation that expects no preamble
            with client, accepted:
                assert handover.give(accepted.fileno(), passed)
                assert told(client)["REMOTE_ADDR"] == address
    handover.close()


# ---------------------------------------------------------------------------------------------- both together


def test_with_the_proxy_protocol_fields_are_trusted_by_who_has_connected() -> None:
    request = with_fields("X-Forwarded-Proto: https", "X-Forwarded-For: 203.0.113.9")
    for trusted, scheme, address in (
        (("127.0.0.1",), "https", "192.0.2.7"),  # the balancer sets the scheme; the client is not ours: who says that?
        (("127.0.0.1", "192.0.2.0/24"), "https", "203.0.113.9"),  # behind it is another proxy of ours
        (("192.0.2.0/24",), "http", "192.0.2.7"),
    ):
        settings = {"proxy_protocol": "auto", "forwarded_for": True, "forwarded_allow_ips": trusted}
        with serving(tell, **settings) as server, server.connect() as client:
            environ = told(client, PREAMBLE + request)
            assert (environ["wsgi.url_scheme"], environ["REMOTE_ADDR"]) == (scheme, address)
