"""How a worker type runs the application: the face of ``workers/*.py``, and of worker types from elsewhere.

    reactor ─ run(exchange) ─▶ executor ── exchange.run() in a thread, a greenlet, in place ──▶ reactor.finish(exchange)

An executor knows how an application call is run, how many at once, and how an overdue one is interrupted.  It knows
nothing of HTTP, sockets, logs or metrics: those are the reactor's, the connection's and the exchange's.

A type of your own is a class with this face, named by its dotted path (``worker_class = "package.module.Class"``) or
by an entry point of the group ``forkserve.workers``.  It may derive from :class:`Executor`, which holds what most types
have in common.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from forkserve.posix import unpatched

if TYPE_CHECKING:
    from forkserve.server.exchange import Exchange
    from forkserve.server.reactor import Reactor
    from forkserve.settings import Settings

Poll = Callable[[float, int], list[tuple[int, int]]]
"""epoll.poll: the longest wait in seconds, and the most events; returns descriptors and their events."""


class Executor:
    """What the types have in common; :meth:`run` is theirs.

    Attributes:
        is_multithread: ``wsgi.multithread``: may calls run at the same time in one process?
        is_reactor_free: does the reactor turn while calls run, whatever they do?  Then it alone shows that the worker
            is alive; else a call that takes longer than ``timeout`` counts as hung.
        accepts_per_turn: connections taken from a listener by one turn; with siblings idle, a worker that takes one
            at a time leaves them the rest.
        calls_max: how many calls run at once.
    """

    is_multithread: bool = False
    is_reactor_free: bool = True
    accepts_per_turn: int = 1
    calls_max: int = 1

    @classmethod
    def prepare(cls) -> None:
        """In a process that is about to import the application, before anything of it: monkey patches belong here.

        Raises:
            SettingsError: this type cannot work here; the text says what to do.
        """

    @classmethod
    def settle(cls) -> None:
        """After the import in a zygote, before it is looked whether forking is safe: end what need not be there."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def poll_of(self, epoll: select.epoll) -> Poll:
        """How the reactor waits for its epoll."""
        return epoll.poll

    def serve(self, reactor: Reactor) -> None:
        """Make turns with ``reactor.turn_for_ever()`` until the reactor has stopped; called by the main thread.

        Whoever makes a turn has the lead: no two threads turn at the same time.
        """
        reactor.turn_for_ever()

    def run(self, exchange: Exchange) -> None:
        """Begin a call: see that ``exchange.run()`` is called, without the lead, and ``reactor.finish(exchange)``
        afterwards, with the lead (``reactor.finish_later(exchange)`` where the caller does not have it).

        Called with the lead, and only while fewer than ``calls_max`` calls run.
        """
        raise NotImplementedError

    def wait(self, fd: int, mask: int, timeout_s: float) -> bool:
        """Block the running exchange until ``fd`` is ready for ``mask`` (epoll's bits); False when time is up."""
        poll = unpatched.poll()
        poll.register(fd, mask)
        return bool(poll.poll(timeout_s * 1000))

    def lend(self, sock: socket.socket) -> socket.socket:
        """A blocking socket for an application that speaks on it itself; waiting for it is to block that call alone.

        Args:
            sock: the client's, non-blocking; what is returned owns its descriptor from now on.
        """
        sock.settimeout(None)
        return sock

    def interrupt(self, exchange: Exchange) -> str:
        """Raise :class:`forkserve.RequestTimeout` in a call that is overdue; returns where its code was, as a stack.

        Called with the lead, at most once for an exchange, and not after it has ended.
        """
        return ""
