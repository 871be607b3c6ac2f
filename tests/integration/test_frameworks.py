"""Flask and Django projects run without a change to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
import simple_websocket

from tests.harness import DEADLINE_S, EXAMPLES, Server

pytestmark = pytest.mark.usefixtures("worker_type")

Start = Callable[..., Server]


@pytest.fixture
def flask(start: Start) -> Server:
    return start("flask_app:app")


@pytest.fixture
def django(start: Start) -> Server:
    return start("mysite.wsgi:application", "--chdir", str(EXAMPLES / "django_site"))


def test_flask_answers(flask: Server) -> None:
    assert flask.get("/").text == "Hello from Flask!"
    assert flask.get("/nowhere").status == 404
    assert flask.get("/stream").text == "line 0\nline 1\nline 2\n"


def test_flask_reads_json_forms_and_files(flask: Server) -> None:
    url = flask.urls[0]
    with requests.Session() as session:  # one connection, kept alive
        for number in range(5):
            assert session.post(f"{url}/echo", json={"number": number}, timeout=10).json() == {"number": number}
        answer = session.post(
            f"{url}/form", data={"name": "Jörg"}, files={"a": b"x" * 200_000, "b": b""}, timeout=10
        ).json()
        assert answer == {"fields": {"name": "Jörg"}, "files": {"a": 200_000, "b": 0}}


def test_flask_reads_a_chunked_body(flask: Server) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"a": '
        yield b"1}"

    answer = requests.post(
        f"{flask.urls[0]}/echo", data=chunks(), headers={"Content-Type": "application/json"}, timeout=10
    )
    assert answer.json() == {"a": 1}


def test_a_bug_in_a_flask_view_is_a_500(flask: Server) -> None:
    assert flask.get("/error").status == 500
    assert flask.get("/").status == 200


def test_a_flask_factory_is_called_with_its_arguments(start: Start) -> None:
    assert start("flask_app:create_app()").get().text == "Hello from a factory!"
    assert start("flask_app:create_app('Good morning')").get().text == "Good morning from a factory!"


WEBSOCKET_APP = """
from flask import Flask
from flask_sock import Sock

app = Flask(__name__)
app.config["SOCK_SERVER_OPTIONS"] = {"ping_interval": 25}
sock = Sock(app)

@sock.route("/echo")
def echo(ws):
    while True:
        text = ws.receive()
        if text == "bye":
            break
        ws.send(text[::-1])
"""


def test_a_websocket_of_flask_sock_works_and_a_reload_waits_for_it(
    start: Start, write_app: Callable[..., None]
) -> None:
    write_app(name="chat", code=WEBSOCKET_APP)
    server = start("chat:app", workers=1)
    client = simple_websocket.Client(server.urls[0].replace("http", "ws") + "/echo")
    client.send("hello")
    assert client.receive(timeout=DEADLINE_S) == "olleh"
    server.hup()
    server.wait_for("reload.done")
    client.send("x" * 100_000 + "y")
    assert client.receive(timeout=DEADLINE_S) == "y" + "x" * 100_000
    client.send("bye")
    with pytest.raises(simple_websocket.ConnectionClosed):
        client.receive(timeout=DEADLINE_S)
    server.wait_for_workers(1, generation=2)
    assert not server.events("request.failed")


def test_django_answers(django: Server) -> None:
    assert django.get("/").text == "Hello from Django!"
    assert django.get("/nowhere").status == 404
    facts = json.loads(django.get("/whoami").text)
    assert facts["pid"] in django.worker_pids()
    assert facts["scheme"] == "http"


def test_django_takes_a_unix_peer_behind_tls(start: Start, tmp_path: Path) -> None:
    django = start("mysite.wsgi:application", "--chdir", str(EXAMPLES / "django_site"), bind=[f"unix:{tmp_path}/s"])
    answer = django.request("GET", "/whoami", headers={"X-Forwarded-Proto": "https"})
    assert json.loads(answer.text)["scheme"] == "https"


def test_django_reads_bodies_of_known_and_unknown_length(django: Server) -> None:
    url = f"{django.urls[0]}/upload"
    assert requests.post(url, data=b"x" * 100_000, timeout=10).json() == {"bytes": 100_000}
    assert requests.post(url, data=iter([b"x" * 1000] * 20), timeout=10).json() == {"bytes": 20_000}


def test_django_streams_while_a_cursor_is_open(django: Server) -> None:
    assert django.get("/rows").text.split() == [str(number) for number in range(1, 101)]


def test_a_bug_in_a_django_view_is_a_500(django: Server) -> None:
    assert django.get("/error").status == 500
    assert django.get("/").status == 200
