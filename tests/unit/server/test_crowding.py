"""A worker with as many connections as it may have: who gives way, who waits."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from forkserve.posix.scoreboard import REQUESTS
from forkserve.server import doors
from forkserve.server.connection import Phase
from tests.serving import DEADLINE_S, read_answer, serving
from tests.unit.server.test_connections import GET, PART, ask, ends_quietly, hello, wait_for

pytestmark = pytest.mark.usefixtures("worker_type")

HALF_A_BODY = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx"


def test_the_idlest_connection_gives_way_to_a_newcomer() -> None:
    with serving(hello, worker_connections=2) as server, server.connect() as first, server.connect() as second:
        for number, client in enumerate((second, first), 1):
            ask(client)
            wait_for(lambda: server.reactor.words[REQUESTS] == number, "its call has ended")  # noqa: B023 used at once
        with server.connect() as third:
            ask(third)
            assert ends_quietly(second)
            assert ask(first).status == 200
            assert server.reactor.connection_count == 2


def test_a_silent_connection_gives_way_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "PATIENCE_NS", 0)
    with serving(hello, worker_connections=1) as server, server.connect() as silent, server.connect() as client:
        assert ask(client).status == 200
        assert ends_quietly(silent)


def test_a_connection_whose_request_is_on_its_way_is_not_given_up() -> None:
    with serving(hello, worker_connections=1) as server, server.connect() as late:
        wait_for(lambda: server.reactor.connection_count == 1, "taken")
        with server.connect() as other:
            other.sendall(GET)
            other.settimeout(0.3)
            with pytest.raises(TimeoutError):
                other.recv(100)
            assert ask(late).status == 200
            other.settimeout(DEADLINE_S)
            answer = read_answer(other.makefile("rb"))
            assert answer is not None
            assert answer.status == 200


def test_connections_with_a_request_are_not_given_up() -> None:
    with serving(hello, worker_connections=2) as server, server.connect() as first, server.connect() as second:
        first.sendall(HALF_A_BODY)
        second.sendall(HALF_A_BODY)
        phases = server.reactor.connections.values()
        wait_for(lambda: [each.phase for each in phases] == [Phase.BODY, Phase.BODY], "both send bodies")
        with server.connect() as third:
            third.sendall(GET)
            third.settimeout(0.3)
            with pytest.raises(TimeoutError):
                third.recv(100)
            assert server.reactor.connection_count == 2
            third.settimeout(DEADLINE_S)
            assert ask(first, b"x").status == 200
            answer = read_answer(third.makefile("rb"))
            assert answer is not None
            assert answer.status == 200


def test_a_connection_with_pipelined_requests_is_not_given_up() -> None:
    newcomers: list[socket.socket] = []
    with serving(hello, worker_connections=1) as server, server.connect() as client:
        ask(client)

        def crowd() -> None:
            client.sendall(GET * 3)
            newcomers.append(server.connect())

        server.wake(crowd)
        stream = client.makefile("rb")
        answers = [read_answer(stream) for _ in range(3)]
        assert [answer and answer.status for answer in answers] == [200] * 3
        with newcomers[0] as newcomer:
            assert ask(newcomer).status == 200


def test_a_head_that_dribbles_gives_way_with_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "PATIENCE_NS", 0)
    with serving(hello, worker_connections=1) as server, server.connect() as slow:
        slow.sendall(PART)
        wait_for(lambda: server.reactor.connection_count == 1, "taken")
        with server.connect() as client:
            assert ask(client).status == 200
        answer = read_answer(slow.makefile("rb"))
        assert answer is not None
        assert answer.status == 408


def test_many_newcomers_over_the_limit_are_all_answered() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    with serving(application, worker_connections=8) as server:
        clients = []
        for number in range(100):
            clients.append(server.connect())
            answer = ask(clients[-1], b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
            assert answer.body == b"/%d" % number
        assert server.reactor.connection_count <= 8
        for client in clients:
            client.close()
