"""Who the client is: addresses of sockets, proxies in front; over real sockets."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from forkserve.server.access_log import AccessLog
from tests.serving import serving
from tests.unit.server.test_connections import GET, ask


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
