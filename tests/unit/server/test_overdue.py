"""``request_timeout``: who gets what when a call takes too long; real processes are in tests/integration."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gevent
import pytest

from forkserve.errors import RequestTimeout
from forkserve.posix.scoreboard import REQUESTS
from forkserve.server.access_log import AccessLog
from tests.serving import DEADLINE_S, read_answer, serving
from tests.unit.server.test_connections import GET, ask, ends_quietly, wait_for
from tests.unit.server.test_upgrades import UPGRADE, shouting

pytestmark = pytest.mark.usefixtures("worker_type")

LIMIT_S = 0.15
SLOW = GET.replace(b" / ", b" /slow ")
POST = b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"

Pause = Callable[[float], None]


@pytest.fixture
def pause(worker_type: str) -> Pause:
    """Waits as code of this worker type does, so that it can be interrupted now and then."""
    sleep = gevent.sleep if worker_type == "gevent" else time.sleep

    def wait(seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            sleep(min(left, 0.01))

    return wait


class Slow:
    """An application whose /slow takes as long as it may, and notes how it ends."""

    def __init__(self, pause: Pause, *, blocks: tuple[bytes, ...] = (), headers: Any = ()) -> None:
        self.pause, self.blocks, self.headers = pause, blocks, list(headers)
        self.ends: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", self.headers)
        yield from self.blocks
        if environ["PATH_INFO"] == "/slow":
            try:
                self.pause(DEADLINE_S)
            except BaseException as error:
                self.ends.append(type(error).__name__)
                raise
            finally:
                self.ends.append("finally")
        yield b"done"


def timeouts(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The fields of the lines about overdue requests; there are no lines about anything else."""
    assert {record.msg.code for record in caplog.records} <= {"request.timeout"}  # type: ignore[attr-defined]
    return [{"message": record.msg.message, **record.msg.fields} for record in caplog.records]  # type: ignore[attr-defined]


def test_an_overdue_request_is_answered_504_and_its_call_interrupted(
    pause: Pause, caplog: pytest.LogCaptureFixture
) -> None:
    application, wishes = Slow(pause), []  # type: ignore[var-annotated]
    options = {"on_interrupted": lambda: wishes.append("replace me")}
    with serving(application, request_timeout=LIMIT_S, reactor_options=options) as server:
        for _ in range(2):
            with server.connect() as client:
                answer = ask(client, SLOW)
                assert (answer.status, answer.header("Connection")) == (504, "close")
                assert answer.body == b"504 Gateway Timeout: the application took too long\n"
                assert ends_quietly(client)
        wait_for(lambda: server.reactor.words[REQUESTS] == 2, "the calls have ended")
        assert application.ends == ["RequestTimeout", "finally"] * 2
        assert server.talk(GET)[0].body == b"done"
    assert wishes == ["replace me"]
    for line in timeouts(caplog):
        assert line["message"] == "a request has taken longer than request_timeout: 504"
        assert (line["method"], line["target"], line["client"]) == ("GET", "/slow", "127.0.0.1")
        assert LIMIT_S <= line["after_s"] < DEADLINE_S
        assert "in __call__" in line["traceback"]
        assert "in wait" in line["traceback"]
        assert "exchange.py" not in line["traceback"].partition("in __call__")[0]
    assert [line["id"] for line in timeouts(caplog)] == ["0.1", "0.2"]


def test_head_is_answered_504_without_a_body(pause: Pause) -> None:
    with serving(Slow(pause), request_timeout=LIMIT_S) as server, server.connect() as client:
        client.sendall(SLOW.replace(b"GET", b"HEAD"))
        data = b"".join(iter(lambda: client.recv(1000), b""))
        assert data.startswith(b"HTTP/1.1 504 ")
        assert data.endswith(b"\r\n\r\n")


def test_an_application_that_catches_everything_has_its_client_answered_all_the_same(
    pause: Pause, caplog: pytest.LogCaptureFixture
) -> None:
    caught: list[type[BaseException]] = []

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            pause(DEADLINE_S)
        except BaseException as error:
            caught.append(type(error))
        start_response("200 OK", [])
        return [b"too late"]

    with serving(application, request_timeout=LIMIT_S) as server:
        assert [(answer.status, answer.is_whole) for answer in server.talk(SLOW)] == [(504, True)]
        wait_for(lambda: server.reactor.words[REQUESTS] == 1, "the call has ended")
    assert caught == [RequestTimeout]
    assert len(timeouts(caplog)) == 1


@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_an_answer_that_has_begun_is_cut_visibly(
    pause: Pause, framing: str, caplog: pytest.LogCaptureFixture
) -> None:
    application = Slow(pause, blocks=(b"part",), headers=[("Content-Length", "8")] if framing == "length" else [])
    with serving(application, request_timeout=LIMIT_S) as server:
        answers = server.talk(SLOW + GET, finish=False)
        assert [(answer.status, answer.body, answer.is_whole) for answer in answers] == [(200, b"part", False)]
        wait_for(lambda: application.ends == ["RequestTimeout", "finally"], "the call has ended")
    (line,) = timeouts(caplog)
    assert line["message"].endswith("its answer is cut")


def test_an_answer_that_ends_with_its_connection_is_reset(pause: Pause) -> None:
    with serving(Slow(pause, blocks=(b"part",)), request_timeout=LIMIT_S) as server, server.connect() as client:
        client.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            client.makefile("rb").read()


def test_what_ends_late_behind_a_whole_answer_costs_the_client_nothing(
    pause: Pause, caplog: pytest.LogCaptureFixture
) -> None:
    class Lingering(list[bytes]):
        def close(self) -> None:
            pause(DEADLINE_S)

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "4")])
        return Lingering([b"done"]) if environ["PATH_INFO"] == "/slow" else [b"next"]

    with serving(application, request_timeout=LIMIT_S) as server, server.connect() as client:
        assert ask(client, SLOW).body == b"done"
        assert ask(client).body == b"next"
    (line,) = timeouts(caplog)
    assert line["message"].endswith("it goes on after its answer")


@pytest.mark.parametrize("buffering", [True, False])
def test_the_access_log_has_one_line_for_each(pause: Pause, buffering: bool) -> None:
    reader, writer = os.pipe()
    begun = Slow(pause, blocks=(b"part",))

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        chosen = begun if environ["QUERY_STRING"] else Slow(pause)
        return chosen(environ, start_response)

    log = AccessLog(writer, "%(r)s %(s)s %(B)s")
    with serving(application, request_timeout=LIMIT_S, observer=log, request_buffering=buffering) as server:
        for target in (b"/slow", b"/slow?begun", b"/"):
            server.talk(GET.replace(b"/ ", target + b" ", 1))
        wait_for(lambda: server.reactor.words[REQUESTS] == 3, "the calls have ended")
    lines = os.read(reader, 65536).decode().splitlines()
    os.close(reader)
    os.close(writer)
    assert sorted(line.rsplit(" ", 1)[0] for line in lines) == [
        "GET / HTTP/1.1 200",
        "GET /slow HTTP/1.1 504",
        "GET /slow?begun HTTP/1.1 200",
    ]


def test_a_call_that_waits_for_its_body_is_overdue_too(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[BaseException] = []

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except BaseException as error:
            errors.append(error)
            raise
        return []

    with serving(application, request_timeout=LIMIT_S, request_buffering=False) as server, server.connect() as client:
        client.sendall(POST + b"part")
        answer = read_answer(client.makefile("rb"))
        assert answer is not None
        assert (answer.status, answer.header("Connection")) == (504, "close")
        wait_for(lambda: server.reactor.words[REQUESTS] == 1, "the call has ended")
        wait_for(lambda: server.reactor.connection_count == 0, "so has its connection")
    assert len(errors) == 1
    assert len(timeouts(caplog)) == 1


def test_a_connection_that_the_application_has_taken_has_no_limit() -> None:
    with serving(shouting, request_timeout=LIMIT_S) as server, server.connect() as client:
        client.sendall(UPGRADE)
        stream = client.makefile("rb")
        assert read_answer(stream) is not None
        time.sleep(3 * LIMIT_S)  # that nothing happens meanwhile is the behaviour
        client.sendall(b"still here\n\n")
        assert stream.read() == b"STILL HERE\n\n"


def test_time_that_a_request_waits_for_its_turn_does_not_count(pause: Pause, worker_type: str) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        pause(LIMIT_S)
        start_response("200 OK", [])
        return [b"done"]

    settings = {"gthread": {"threads": 1}, "gevent": {}, "sync": {}}[worker_type]
    with serving(application, request_timeout=3 * LIMIT_S, **settings) as server:
        clients = [server.connect() for _ in range(6)]
        for client in clients:
            client.sendall(GET)
        for client in clients:
            answer = read_answer(client.makefile("rb"))
            assert answer is not None
            assert answer.status == 200
            client.close()


@pytest.mark.worker_types("gevent")
def test_greenlets_that_were_overdue_before_they_began_are_answered_and_forgotten() -> None:
    """Calls that compute keep the others from beginning: gevent turns its loop after some dozens of them."""
    calls: Counter[str] = Counter()

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        calls["begun"] += 1
        until = time.monotonic() + 0.01
        while time.monotonic() < until:
            pass
        start_response("200 OK", [])
        return [b"done"]

    with serving(application, request_timeout=0.1) as server:
        clients = [server.connect() for _ in range(150)]
        statuses: Counter[int] = Counter()
        is_taken, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            is_taken.set()
            assert go_on.wait(DEADLINE_S)

        server.wake(hold)  # so that all requests come in one turn
        assert is_taken.wait(DEADLINE_S)
        for client in clients:
            client.sendall(GET)
        go_on.set()
        for client in clients:
            answer = read_answer(client.makefile("rb"))
            assert answer is not None
            statuses[answer.status] += 1
            client.close()
        wait_for(lambda: server.reactor.calls == 0, "no slot is lost")
        assert server.talk(GET)[0].status == 200
    assert set(statuses) == {200, 504}, statuses
    assert calls["begun"] < 151, "all have begun: the test has shown nothing"


# ── stress ────────────────────────────────────────────────────────────────────────────────────────────────────────────


STRESS_REQUESTS = {"sync": 400, "gthread": 2000, "gevent": 2000}
"""In sync one after the other, about 20 ms each."""
STRESS_CLIENTS = 16


def test_around_the_limit_no_request_is_hit_but_those_that_are_overdue(
    pause: Pause, worker_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    limit_s, count = 0.02, STRESS_REQUESTS[worker_type]
    hit: set[str] = set()

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        number = environ["QUERY_STRING"]
        try:
            kind = int(number) % 4
            if kind == 1:
                pause(limit_s * 0.9)
            elif kind == 2:
                pause(limit_s * 1.1)
            elif kind == 3:
                pause(limit_s * 3)
        except RequestTimeout:
            hit.add(number)
            if int(number) % 3:
                raise
        start_response("200 OK", [])
        return [number.encode()]

    def ask_some(first: int) -> list[tuple[str, int, bytes]]:
        seen = []
        for number in range(first, count, STRESS_CLIENTS):
            answers = server.talk(b"GET /?%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
            assert len(answers) == 1
            seen.append((str(number), answers[0].status, answers[0].body))
        return seen

    with serving(application, request_timeout=limit_s) as server, ThreadPoolExecutor(STRESS_CLIENTS) as clients:
        results = [each for some in clients.map(ask_some, range(STRESS_CLIENTS)) for each in some]
        wait_for(lambda: server.reactor.calls == 0, "all calls have ended")
    assert len(results) == count
    overdue = {line["target"].removeprefix("/?") for line in timeouts(caplog)}
    for number, status, body in results:
        assert (status, body) == (200, number.encode()) or (status == 504 and number in overdue)
    assert hit <= overdue
    assert len(overdue) == len(timeouts(caplog))
    assert len(hit) > count // 8
