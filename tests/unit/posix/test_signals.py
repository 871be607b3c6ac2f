"""Signals as readable bytes."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator

import pytest

from forkserve.posix.signals import WakeupSignals

OURS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture
def signals() -> Iterator[WakeupSignals]:
    taken = WakeupSignals(OURS)
    yield taken
    taken.close()


def readable(signals: WakeupSignals) -> bool:
    return bool(select.select([signals.fileno()], [], [], 0)[0])


def test_a_signal_makes_it_readable_and_is_told_once(signals: WakeupSignals) -> None:
    assert not readable(signals)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert readable(signals)
    assert signals.drain() == [signal.SIGUSR1]
    assert not readable(signals)
    assert signals.drain() == []


def test_a_storm_is_one_of_each_in_the_order_of_their_first_coming(signals: WakeupSignals) -> None:
    os.kill(os.getpid(), signal.SIGUSR2)
    for _ in range(100_000):  # more bytes than any socket buffer holds
        signal.raise_signal(signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signals.drain() == [signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR1]
    os.kill(os.getpid(), signal.SIGHUP)
    assert readable(signals)
    assert signals.drain() == [signal.SIGHUP]


def test_closing_gives_the_signals_back() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda signum, _frame: seen.append(signum))
    try:
        WakeupSignals(OURS).close()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_another_thread_learns_at_once_what_has_come(signals: WakeupSignals) -> None:
    seen: list[int] = []

    def look() -> None:
        while not seen and select.select([signals.fileno()], [], [], 10)[0]:
            seen.extend(signals.drain_at_once())

    looking = threading.Thread(target=look)
    looking.start()
    # Directed at that thread: the main thread does not wake, and Python's handler has not run when it looks.
    signal.pthread_kill(looking.ident or 0, signal.SIGUSR1)
    looking.join(10)
    assert seen == [signal.SIGUSR1]
