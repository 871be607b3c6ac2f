"""A worker type of your own: ``forkserve --pythonpath docs/examples -k own_worker.FreshThreads demo:app``.

Each call gets a thread of its own that nobody has used before, for code that leaves something behind in its thread.
"""

from __future__ import annotations

import threading

from forkserve.server.exchange import Exchange
from forkserve.server.executor import Executor
from forkserve.server.reactor import Reactor
from forkserve.settings import Settings


class FreshThreads(Executor):
    """Runs each exchange on a new thread, up to ``threads`` at once."""

    is_multithread = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.calls_max = settings.threads

    def serve(self, reactor: Reactor) -> None:
        """The main thread turns the reactor and has the lead all the time."""
        self._reactor = reactor
        reactor.turn_for_ever()

    def run(self, exchange: Exchange) -> None:
        """Called by the main thread, while fewer than ``calls_max`` calls run."""
        threading.Thread(target=self._call, args=(exchange,), daemon=True).start()

    def _call(self, exchange: Exchange) -> None:
        exchange.run()
        self._reactor.finish_later(exchange)  # this thread does not have the lead
