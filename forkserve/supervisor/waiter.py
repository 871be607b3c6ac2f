"""The one place where the master blocks.

    signals ─┐
    pidfds  ─┼─▶ epoll ─▶ wait(timeout) ─▶ who is readable
    channels ┘

Everything that can happen arrives here as a readable descriptor, or as the end of the timeout.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

EVENTS_MAX: Final = 256
"""How many descriptors one wait reports at most; the rest are still readable at the next."""


class Waiter:
    """An epoll (epoll(7)) of descriptors, each with what to call when it is readable."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Have :meth:`wait` report ``callback`` while ``fd`` is readable or its other end is gone."""
        self._epoll.register(fd, select.EPOLLIN)
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Watch ``fd`` no longer; to be called before it is closed.  May be repeated."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def wait(self, timeout_s: float) -> list[Callable[[], None]]:
        """Block until something is readable or the time is over; returns what to call."""
        callbacks = self._callbacks
        return [callbacks[fd] for fd, _mask in self._epoll.poll(timeout_s, EVENTS_MAX) if fd in callbacks]

    def close(self) -> None:
        """Close the epoll itself; the watched descriptors belong to others."""
        self._callbacks.clear()
        self._epoll.close()
