"""The sync worker type: the application is called in place, one request at a time.

The reactor stands still meanwhile; what the clients send waits in the kernel, and the siblings take new connections.
"""

from __future__ import annotations

import select

from forkserve.server.exchange import Exchange


class SyncExecutor:
    """Runs an exchange where it stands."""

    is_multithread = False
    accepts_per_turn = 1
    """With siblings idle, a worker that takes one at a time leaves them the rest."""

    def run(self, exchange: Exchange) -> None:
        """Call the application now."""
        exchange.run()
        exchange.connection.on_exchange_done(exchange)

    def wait_writable(self, fd: int, timeout_s: float) -> bool:
        """Wait for a slow reader whose buffers are all full."""
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        return bool(poll.poll(timeout_s * 1000))
