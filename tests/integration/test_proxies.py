"""Behind a real HAProxy and a real nginx, as people run them.

The proxies get their listening sockets from the test, on ports that the system has chosen: a client may connect before
they are up.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.harness import DEADLINE_S, Server, UnixConnection, read_all

Start = Callable[..., Server]
Proxy = Callable[..., None]

APP = """
import json, os
def app(environ, start_response):
    line = "asked for {PATH_INFO} by {REMOTE_ADDR} as {PROXY_PROTOCOL}\\n".format_map({"PROXY_PROTOCOL": ""} | environ)
    os.write(1, line.encode())  # at once: two workers write
    body = json.dumps({key: value for key, value in environ.items() if isinstance(value, str)}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
"""
CLIENT = "127.0.0.5"
"""Loopback, and not the address that the proxies connect from."""


def program(name: str) -> str:
    """The path of a proxy; without it the test is skipped, but in continuous integration it fails."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        missing = f"{name} is not installed (apt install {name})"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    return path


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket for the proxy to inherit."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Proxy]:
    """``run("haproxy", "-f", …, inherit=[fd])`` starts a proxy that ends with the test."""
    with ExitStack() as stack:

        def start_proxy(*command: str, inherit: tuple[int, ...], environ: dict[str, str] | None = None) -> None:
            log_path = tmp_path / "proxy.log"
            with log_path.open("ab") as log:
                process = subprocess.Popen(
                    command,
                    cwd=tmp_path,
                    env=os.environ | (environ or {}),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=inherit,
                )
            stack.callback(lambda: print(f"--- log of {command[0]}:\n{log_path.read_text()}"))
            stack.callback(process.wait, DEADLINE_S)
            stack.callback(process.terminate)

        yield start_proxy


@pytest.fixture
def haproxy(tmp_path: Path, run: Proxy) -> Callable[[dict[str, socket.socket], str], None]:
    """``haproxy({"section": listener}, configuration)``, in which ``{section}`` is where that one listens."""

    def start_haproxy(listeners: dict[str, socket.socket], configuration: str) -> None:
        places = {name: f"fd@{sock.fileno()}" for name, sock in listeners.items()}
        path = tmp_path / "haproxy.cfg"
        path.write_text(
            "global\n    maxconn 100\n"
            "defaults\n    timeout connect 10s\n    timeout client 30s\n    timeout server 30s\n"
            + configuration.format(**places)
        )
        run(program("haproxy"), "-db", "-f", str(path), inherit=tuple(sock.fileno() for sock in listeners.values()))

    return start_haproxy


def ask(address: Any, path: str = "/", source: str = CLIENT, **fields: str) -> tuple[dict[str, str], str]:
    """What the application was told, and the port of the client that asked."""
    connection = http.client.HTTPConnection(*address[:2], timeout=DEADLINE_S, source_address=(source, 0))
    try:
        connection.request("GET", path, headers={name.replace("__", "-"): value for name, value in fields.items()})
        port = connection.sock.getsockname()[1]
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, (answer.status, body)
        return json.loads(body), str(port)
    finally:
        connection.close()


# ---------------------------------------------------------------------------------------------- HAProxy


@pytest.mark.parametrize(
    ("option", "checked_as"),
    [
        ("send-proxy", "TCP4"),  # a check is HAProxy's own connection, with its addresses
        ("send-proxy-v2", "LOCAL"),
        ("send-proxy-v2 proxy-v2-options crc32c,authority", "LOCAL"),
    ],
)
def test_haproxy_tells_its_clients_by_the_proxy_protocol(
    start: Start,
    write_app: Callable[..., None],
    haproxy: Callable[..., None],
    listener: socket.socket,
    option: str,
    checked_as: str,
) -> None:
    write_app(code=APP)
    server = start("app:app", "--proxy-protocol", "auto", "--access-logfile", "-")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener6:
        haproxy(
            {"v4": listener, "v6": listener6},
            "listen site\n    mode tcp\n    bind {v4}\n    bind {v6}\n"
            "    option httpchk\n    http-check send meth GET uri /health ver HTTP/1.1 hdr Host check\n"
            f"    server one 127.0.0.1:{server.port} {option} check inter 200ms\n",
        )
        environ, port = ask(listener.getsockname())
        assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"], environ["PROXY_PROTOCOL"]) == (CLIENT, port, "TCP4")
        assert (environ["PROXY_ADDR"], environ["PROXY_PORT"]) == ("127.0.0.1", str(listener.getsockname()[1]))
        environ, port = ask(listener6.getsockname(), source="::1")
        assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"], environ["PROXY_PROTOCOL"]) == ("::1", port, "TCP6")
        server.wait_for_log(rf"asked for /health by 127\.0\.0\.1 as {checked_as}\n")
        assert '"status": 400' not in server.log()


@pytest.mark.parametrize(("option", "protocol"), [("send-proxy", "UNKNOWN"), ("send-proxy-v2", "LOCAL")])
def test_client_that_haproxy_has_no_address_of_has_haproxys(
    start: Start,
    write_app: Callable[..., None],
    haproxy: Callable[..., None],
    tmp_path: Path,
    option: str,
    protocol: str,
) -> None:
    write_app(code=APP)
    server = start("app:app", "--proxy-protocol")
    path = str(tmp_path / "front.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        haproxy(
            {"front": listener},
            f"listen site\n    mode tcp\n    bind {{front}}\n    server one 127.0.0.1:{server.port} {option}\n",
        )
        connection = UnixConnection(path, DEADLINE_S)
        connection.request("GET", "/")
        environ = json.loads(connection.getresponse().read())
        connection.close()
    assert (environ["PROXY_PROTOCOL"], environ["REMOTE_ADDR"]) == (protocol, "127.0.0.1")


def test_haproxy_tells_the_scheme_and_the_client_by_fields(
    start: Start, write_app: Callable[..., None], haproxy: Callable[..., None], listener: socket.socket
) -> None:
    write_app(code=APP)
    server = start("app:app", "--forwarded-for")
    haproxy(
        {"front": listener},
        "listen site\n    mode http\n    bind {front}\n    option forwardfor\n"
        "    http-request set-header X-Forwarded-Proto https\n"
        f"    server one 127.0.0.1:{server.port}\n",
    )
    forged = {"X__Forwarded__For": "203.0.113.9", "X__Forwarded__Proto": "http", "SCRIPT_NAME": "/a"}
    environ, _ = ask(listener.getsockname(), "/a/b", **forged)
    assert (environ["wsgi.url_scheme"], environ["REMOTE_ADDR"]) == ("https", CLIENT)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("", "/a/b")


def test_client_that_comes_past_the_balancer_is_refused(start: Start, write_app: Callable[..., None]) -> None:
    write_app(code=APP)
    server = start("app:app", "--proxy-protocol", "--proxy-allow-from", "192.0.2.1")
    with server.raw() as client:
        client.sendall(b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read_all(client).startswith(b"HTTP/1.1 403 ")


def test_kept_connection_of_a_balancer_keeps_its_client_through_a_reload(
    start: Start, write_app: Callable[..., None], haproxy: Callable[..., None], listener: socket.socket
) -> None:
    write_app(code=APP)
    server = start("app:app", "--proxy-protocol", "v2")
    haproxy(
        {"front": listener},
        f"listen site\n    mode tcp\n    bind {{front}}\n    server one 127.0.0.1:{server.port} send-proxy-v2\n",
    )
    connection = http.client.HTTPConnection(*listener.getsockname(), timeout=DEADLINE_S, source_address=(CLIENT, 0))
    connection.connect()
    connection.auto_open = 0  # it is this one or none
    for generation in (1, 2, 3):
        connection.request("GET", "/")
        environ = json.loads(connection.getresponse().read())
        assert (environ["REMOTE_ADDR"], environ["PROXY_PROTOCOL"]) == (CLIENT, "TCP4")
        assert environ["REMOTE_PORT"] == str(connection.sock.getsockname()[1])
        server.hup()
        server.wait_for_workers(2, generation=generation + 1)
    connection.close()


# ---------------------------------------------------------------------------------------------- nginx


NGINX = """
daemon off;
worker_processes 1;
{user}
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    upstream app {{ server unix:{directory}/app.sock; keepalive 4; }}
    proxy_http_version 1.1;
    server {{
        listen 127.0.0.1:{port};
        proxy_set_header Host $http_host;
        proxy_set_header Connection "";
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto https;
        location / {{ proxy_pass http://app; }}
        location /shop/ {{
            proxy_set_header Host $http_host;
            proxy_set_header Connection "";
            proxy_set_header SCRIPT_NAME /shop;
            proxy_pass http://app;
        }}
    }}
}}
"""


def test_nginx_in_front_of_a_unix_socket(
    start: Start, write_app: Callable[..., None], run: Proxy, listener: socket.socket, tmp_path: Path
) -> None:
    write_app(code=APP)
    options = ("--forwarded-for", "--forwarded-allow-ips", "", "--forwarder-headers", "SCRIPT_NAME")
    server = start("app:app", *options, "--access-logfile", "-", bind=[f"unix:{tmp_path}/app.sock"])
    path = tmp_path / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # else its worker could not reach the socket in our directory
    path.write_text(NGINX.format(directory=tmp_path, port=listener.getsockname()[1], user=user))
    fd = listener.fileno()
    run(program("nginx"), "-c", str(path), "-p", str(tmp_path), inherit=(fd,), environ={"NGINX": f"{fd};"})
    address = listener.getsockname()

    environ, _ = ask(address, X__Forwarded__For="203.0.113.9", X__Forwarded__Proto="http", SCRIPT_NAME="/x")
    assert (environ["wsgi.url_scheme"], environ["REMOTE_ADDR"]) == ("https", CLIENT)
    assert environ["HTTP_X_FORWARDED_FOR"] == f"203.0.113.9, {CLIENT}"
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("localhost", "80")
    assert environ["HTTP_HOST"] == f"127.0.0.1:{address[1]}"
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("", "/")

    environ, _ = ask(address, "/shop/cart")
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/shop", "/cart")
    assert environ["wsgi.url_scheme"] == "http"  # that location does not say it

    server.wait_for_log(rf'"client": "{CLIENT}", "method": "GET", "path": "/"')
