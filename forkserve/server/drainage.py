"""How a worker leaves: what it still takes, where its connections go, and when it is done.

    SERVING ──▶ QUIETING (the server stops: take what is in the accept queue) ──▶ DRAINING ──▶ STOPPED
       └────── (only this worker leaves: others take what comes) ─────────────────▲

At a stop there is nobody to take the connections over: idle ones get a moment for one more request.  Otherwise they go
to the heir, busy ones when they are answered; those that cannot move end by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from forkserve import clock
from forkserve.posix.handover import Giver, HandOver
from forkserve.server.connection import Phase

if TYPE_CHECKING:
    from forkserve.server.reactor import Reactor

ACCEPT_QUIET_NS: Final = 100_000_000
"""At stop: no new connection for so long means that the accept queue is empty and stays so (over a round trip)."""
QUIETING_SHARE: Final = 0.7
"""Of ``graceful_timeout``: where new connections cannot be refused (fd://) it may never be quiet; the rest of the time
is for those that were taken."""
IDLE_LINGER_NS: Final = 2_000_000_000
"""While draining, an idle connection may send one more request for so long; then it is closed."""
IDLE_LINGER_STOPPING_NS: Final = 1_000_000_000
HEIR_PAUSE_NS: Final = 10_000_000
"""With no room on the way to those who take over: try again then."""

_MOVABLE: Final = (Phase.HANDSHAKE, Phase.IDLE, Phase.HEAD)


class Stage(IntEnum):
    """How far the end has come; only grows."""

    SERVING = 0
    QUIETING = 1
    DRAINING = 2
    STOPPED = 3


class Drainage:
    """The end of one reactor.

    Args:
        reactor: which leaves.
        own: through which the workers of its generation pass connections on.
        has_siblings: told the monotonic nanoseconds, are there others of its generation that take connections?

    Attributes:
        stage: how far it has come.
        heir: who takes the connections over.
    """

    def __init__(self, reactor: Reactor, own: HandOver | None, has_siblings: Callable[[int], bool] | None) -> None:
        self._reactor = reactor
        self._own = own
        self._has_siblings = has_siblings
        self.stage = Stage.SERVING
        self.heir: Giver | None = None
        self._leave_by_ns = self._quiet_by_ns = 0
        self._idle_until_ns = 0
        self._again_ns = 0

    def begin(self, now_ns: int, *, stopping: bool, is_orphan: bool, heir: Giver | None) -> None:
        """Begin to leave; the arguments are those of :meth:`Reactor.drain`."""
        reactor = self._reactor
        graceful_ns = int(reactor.settings.graceful_timeout * 1e9)
        share_ns = int(graceful_ns * QUIETING_SHARE)
        self.heir = heir
        linger_ns = IDLE_LINGER_STOPPING_NS if stopping else IDLE_LINGER_NS
        if heir is not None:  # for those alone that cannot move; they are told to close with their next answer
            linger_ns = max(linger_ns, share_ns)
        self._leave_by_ns = now_ns + graceful_ns
        self._quiet_by_ns = now_ns + share_ns
        reactor.keepalive_ns = linger_ns
        if stopping:
            self.stage = Stage.QUIETING
            reactor.doors.quiet_since_ns = now_ns
            if not reactor.doors.are_open:
                self.make_room()
            return
        queued = reactor.doors.sweep() if is_orphan else []
        self._close_doors(now_ns)
        for newcomer in queued:
            reactor.adopt(newcomer)

    def has_heir(self) -> bool:
        """Is there somebody to take the connections?  Those of its own generation may leave as well by now."""
        if self.heir is None or self.heir is not self._own or self._has_siblings is None:
            return self.heir is not None
        if self._has_siblings(clock.monotonic_ns()):
            return True
        self.heir = None
        self._reactor.keepalive_ns = IDLE_LINGER_NS
        self._idle_until_ns = self._reactor.now_ns + IDLE_LINGER_NS
        return False

    def make_room(self) -> None:
        """The doors are closed for want of room: idle connections give way to those in the accept queue."""
        if self.stage is Stage.QUIETING and not self._idle_until_ns:
            self._idle_until_ns = self._reactor.now_ns + self._reactor.keepalive_ns

    def next_ns(self) -> int:
        """When to look again."""
        times = [self._leave_by_ns]
        if self.stage is Stage.QUIETING:
            times.append(self._quiet_by_ns)
            if self._reactor.doors.are_open:
                times.append(self._reactor.doors.quiet_since_ns + ACCEPT_QUIET_NS)
        if self._idle_until_ns:
            times.append(self._idle_until_ns)
        if self._again_ns > self._reactor.now_ns:
            times.append(self._again_ns)
        return min(times)

    def advance(self, has_more_events: bool) -> None:
        """One turn of a reactor that leaves."""
        reactor = self._reactor
        now_ns = reactor.now_ns
        if self.stage is Stage.QUIETING:
            is_quiet = now_ns - reactor.doors.quiet_since_ns >= ACCEPT_QUIET_NS
            if (is_quiet and reactor.doors.are_open and not has_more_events) or now_ns >= self._quiet_by_ns:
                self._close_doors(now_ns)
        if self.has_heir() and self.heir is not None:
            for connection in list(reactor.connections.values()):
                if connection.phase in _MOVABLE and connection.is_movable and not connection.give_to(self.heir):
                    self._again_ns = now_ns + HEIR_PAUSE_NS
        if self._idle_until_ns and now_ns >= self._idle_until_ns:
            self._idle_until_ns = 0
            self._close_idle()
        if self.stage is Stage.DRAINING and not reactor.connections and not self._take_left_behind():
            self.stage = Stage.STOPPED
        if now_ns >= self._leave_by_ns:
            self.stage = Stage.STOPPED

    def _close_doors(self, now_ns: int) -> None:
        self.stage = Stage.DRAINING
        self._idle_until_ns = now_ns + self._reactor.keepalive_ns
        self._reactor.doors.close()

    def _take_left_behind(self) -> bool:
        """Before leaving: a connection that was handed over and that nobody has taken, unless others are there to."""
        if self.heir is not None and self.heir is self._own:
            return False
        newcomer = self._reactor.doors.take_left_behind()
        if newcomer is not None:
            self._reactor.adopt(newcomer)
            self._again_ns = self._reactor.now_ns + 1
        return newcomer is not None

    def _close_idle(self) -> None:
        """Close those that have not begun a request; one that has begun keeps its own deadline."""
        for connection in list(self._reactor.connections.values()):
            if connection.is_idle:
                connection.deadline_ns = 0
                connection.on_deadline()
