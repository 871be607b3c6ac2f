"""An interruption reaches the call that it is meant for, and nothing else: not the books, not the next call.

    runner        call 1, call 2, …   each a little longer or shorter than the interrupter waits
    interrupter   picks what runs, waits for a moment, interrupts: before the end, at the end, too late
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from forkserve.errors import RequestTimeout
from forkserve.server.exchange import Exchange
from forkserve.server.interruption import SIGNAL, ByException, BySignal, Calls, Way
from forkserve.workers.ggevent import ByThrow
from tests.unit.server.test_connections import wait_for

ROUNDS = 2000
CALL_S = 0.0004
"""A call takes twice as long at most, and is interrupted within twice that."""


class Call(Exchange):
    """An exchange without a connection: what it is asked to do, and what has come of it."""

    def __init__(self, run: Callable[[], None]) -> None:
        self.may_interrupt, self.place, self.is_interrupted = [None], None, False
        self.done: list[str] = []
        self._run_it = run

    def call(self) -> None:
        self.done.append("call")
        try:
            self._run_it()
        except RequestTimeout:  # as Exchange.call, which lets nothing pass
            self.done.append("interrupted")

    def skip(self) -> None:
        self.done.append("skip")

    def close_books(self) -> None:
        try:
            for _ in range(100):
                self.done.append("books")
        except RequestTimeout:
            self.done.append("interrupted too late")

    @property
    def steps(self) -> list[str]:
        return list(dict.fromkeys(self.done))


@pytest.fixture
def nervous() -> Iterator[None]:
    """Threads that take the interpreter from each other all the while."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def by_signal() -> Iterator[BySignal]:
    before = signal.getsignal(SIGNAL)
    yield BySignal()
    signal.signal(SIGNAL, before)


@pytest.fixture(params=["exception", "signal"])
def way(request: pytest.FixtureRequest) -> Way:
    return ByException() if request.param == "exception" else request.getfixturevalue("by_signal")


def compute(seconds: float) -> None:
    """Bytecodes for so long."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def stubborn(seconds: float) -> None:
    """The same, by code that swallows everything."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        try:
            compute(seconds)
        except BaseException:
            continue


@pytest.mark.usefixtures("nervous")
def test_no_call_is_hit_by_what_was_meant_for_another(way: Way) -> None:
    calls, chance = Calls(way), random.Random(1)
    running: list[Call] = []
    told: set[Call] = set()
    is_over = threading.Event()

    def interrupt() -> None:
        while not is_over.is_set():
            if running and (call := running[-1]) not in told:
                compute(chance.random() * 2 * CALL_S)
                calls.interrupt(call)
                told.add(call)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        for number in range(ROUNDS):
            work = stubborn if number % 3 == 0 else compute
            call = Call(lambda work=work: work(chance.random() * 2 * CALL_S))  # type: ignore[misc]
            running.append(call)
            calls.run(call)
            assert call.steps[-1] == "books", call.steps
            compute(CALL_S / 10)  # nothing may hit us here
    finally:
        is_over.set()
        thread.join()
    hit = [call for call in running if "interrupted" in call.done]
    assert hit, "none was interrupted: the test has shown nothing"
    assert len(hit) < ROUNDS, "all were interrupted: the test has shown nothing"
    assert all(call in told and call.is_interrupted for call in hit)


def test_a_call_that_was_interrupted_before_it_began_is_not_begun(way: Way) -> None:
    calls, call = Calls(way), Call(lambda: None)
    assert calls.interrupt(call) == ""
    calls.run(call)
    assert call.steps == ["skip", "books"]


def test_a_call_that_has_ended_is_not_interrupted(way: Way) -> None:
    calls, call = Calls(way), Call(lambda: None)
    calls.run(call)
    assert calls.interrupt(call) == ""
    assert not call.is_interrupted
    assert call.steps == ["call", "books"]


def test_the_end_of_a_call_waits_for_what_is_about_to_be_sent(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed, send = threading.Event(), way.send

    def hesitating(place: Any) -> None:
        claimed.set()
        compute(0.05)
        send(place)

    monkeypatch.setattr(way, "send", hesitating)
    calls = Calls(way)
    call = Call(lambda: thread.start() or claimed.wait())  # type: ignore[func-returns-value]
    thread = threading.Thread(target=lambda: calls.interrupt(call))
    calls.run(call)
    compute(0.1)
    thread.join()
    assert call.steps == ["call", "books"]
    assert call.is_interrupted


def test_the_end_of_a_call_that_has_swallowed_its_interruption_does_not_wait(way: Way) -> None:
    calls = Calls(way)
    begun = threading.Event()

    def swallowing() -> None:
        begun.set()
        try:
            compute(5)
        except RequestTimeout:
            return

    call = Call(swallowing)
    thread = threading.Thread(target=lambda: begun.wait() and calls.interrupt(call))
    thread.start()
    calls.run(call)
    began_s = time.perf_counter()
    thread.join()
    assert call.steps == ["call", "books"]
    assert time.perf_counter() - began_s < 0.5


def test_a_system_call_of_the_main_thread_is_interrupted_by_the_signal(by_signal: BySignal) -> None:
    calls = Calls(by_signal)
    call = Call(lambda: time.sleep(30))

    def interrupt() -> None:
        wait_for(lambda: "call" in call.done, "it sleeps")
        calls.interrupt(call)

    thread = threading.Thread(target=interrupt)
    thread.start()
    calls.run(call)
    thread.join()
    assert call.steps == ["call", "interrupted", "books"]


def test_a_signal_that_nobody_of_ours_has_sent_does_nothing(by_signal: BySignal) -> None:
    call = Call(lambda: signal.raise_signal(SIGNAL))
    Calls(by_signal).run(call)
    assert call.steps == ["call", "books"]


def test_the_stack_is_that_of_the_applications_code(way: Way) -> None:
    calls = Calls(way)
    stacks: list[str] = []
    call = Exchange.__new__(Exchange)
    call.may_interrupt, call.place, call.is_interrupted = [None], None, False

    def here_it_stands() -> None:
        def look() -> None:
            stacks.append(calls.interrupt(call))

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        compute(5)

    class Reactor:
        now_ns, pid = 0, os.getpid()
        observer = None

        def application(self, *_: Any) -> None:
            here_it_stands()

    class Connection:
        reactor = Reactor()
        is_taken, is_lost = False, True

    call.connection = Connection()  # type: ignore[assignment]
    call.cell, call.is_http11, call.environ = None, False, {}
    call.is_overdue, call.is_ended, call.is_noted = True, False, False
    calls.run(call)
    assert "in here_it_stands" in stacks[0]
    assert "in application" in stacks[0].splitlines()[0]


def test_greenlets_are_hit_where_they_wait_and_only_if_it_is_meant_for_them() -> None:
    calls, chance = Calls(ByThrow(gevent.get_hub())), random.Random(1)
    told: set[Call] = set()

    def wait_for_some_turns(count: int) -> None:
        for _ in range(count):
            gevent.sleep(0)

    def interrupt(call: Call, after: int) -> None:
        wait_for_some_turns(after)
        told.add(call)
        calls.interrupt(call)

    made: list[Call] = []

    def runner() -> None:
        for _ in range(200):
            call = Call(lambda: wait_for_some_turns(chance.randrange(4)))
            made.append(call)
            if chance.random() < 0.7:
                gevent.spawn(interrupt, call, chance.randrange(5))
            calls.run(call)
            assert call.steps[-1] == "books", call.steps
            wait_for_some_turns(1)  # nothing may hit us here

    runners = [gevent.spawn(runner) for _ in range(10)]
    try:
        for each in runners:
            each.get(timeout=60)
    finally:
        gevent.get_hub().destroy()
    hit = [call for call in made if "interrupted" in call.done]
    assert 0 < len(hit) < len(made)
    assert all(call in told for call in hit)
