"""The sync worker type: the application is called in place, one request at a time.

    reactor ─ complete request ─▶ call in this thread ─▶ answer ─▶ reactor goes on
                 │                  └ long? the relief thread turns the reactor meanwhile (server/lead.py)
                 └ complete while a call runs: it waits, or a sibling takes its connection

The application is called by the thread that started the worker, which is the process's main thread.
"""

from __future__ import annotations

import select

from forkserve.server.exchange import Exchange
from forkserve.server.lead import Lead
from forkserve.server.reactor import Reactor


class SyncExecutor:
    """Runs an exchange where it stands."""

    is_multithread = False
    accepts_per_turn = 1
    """With siblings idle, a worker that takes one at a time leaves them the rest."""

    def start(self, reactor: Reactor) -> None:
        """This thread will call the application."""
        self._reactor = reactor
        self._lead = Lead(reactor)
        self._lead.start()

    def stop(self) -> None:
        """No more calls."""
        self._lead.stop()

    def run(self, exchange: Exchange) -> None:
        """Call the application now, or later where it is the relief that has completed the request."""
        if self._reactor.is_relieved:
            self._reactor.postpone(exchange)
            return
        self._lead.call(exchange.run)
        exchange.connection.on_exchange_done(exchange)

    def wait(self, fd: int, mask: int, timeout_s: float) -> bool:
        """Wait inside a call for a slow client."""
        poll = select.poll()
        poll.register(fd, mask)
        return bool(poll.poll(timeout_s * 1000))
