"""The sync worker type: the application is called in place, one request at a time.

    reactor ─ complete request ─▶ call in this thread ─▶ answer ─▶ reactor goes on
                 │                  └ long? the relief thread turns the reactor meanwhile (server/lead.py)
                 └ complete while a call runs: it waits, or a sibling takes its connection

The application is called by the process's main thread.
"""

from __future__ import annotations

from forkserve.server.exchange import Exchange
from forkserve.server.executor import Executor
from forkserve.server.interruption import Calls, way_into_this_thread
from forkserve.server.lead import Lead
from forkserve.server.reactor import Reactor


class SyncExecutor(Executor):
    """Runs an exchange where it stands."""

    is_reactor_free = False

    def serve(self, reactor: Reactor) -> None:
        """This thread calls the application."""
        self._reactor = reactor
        self._lead = Lead(reactor)
        self._calls = Calls(way_into_this_thread())
        self._lead.start()
        reactor.turn_for_ever()
        self._lead.stop()

    def run(self, exchange: Exchange) -> None:
        """Call the application now."""
        self._lead.call(self._calls.run, exchange)
        self._reactor.finish(exchange)

    def interrupt(self, exchange: Exchange) -> str:
        """Called by the relief thread."""
        return self._calls.interrupt(exchange)
