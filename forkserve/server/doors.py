"""Where newcomers come in, and when: listeners and siblings are in the epoll while there is room, and nobody idler.

    SERVING ─ room ─────────▶ open: in the epoll
            ─ no room, idle ─▶ open: the idlest connections are given up for newcomers
            ─ no room, busy ─▶ closed for CROWDED_PAUSE_S, or until a connection closes
            ─ no descriptor ─▶ closed for ACCEPT_PAUSE_S, or until a connection closes
            ─ all calls run, a sibling is idle ─▶ closed: the sibling takes them

Closed doors lose nobody: newcomers wait in the kernel's accept queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import nsmallest
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from forkserve import log
from forkserve.posix.handover import HandOver
from forkserve.server.acceptor import Acceptor, Newcomer, SiblingAcceptor
from forkserve.server.connection import Connection, Phase

if TYPE_CHECKING:
    from forkserve.server.reactor import Handler, ListenerLike, Reactor

ACCEPT_PAUSE_NS: Final = 500_000_000
"""After running out of descriptors: try again then, if nothing was closed before."""
COMPLAINT_PAUSE_NS: Final = 10_000_000_000
"""While it lasts, it is said so often."""
CROWDED_PAUSE_NS: Final = 50_000_000
"""With no room and nobody to give up for a newcomer: look again then, if nothing was closed before."""
GIVEN_UP_SHARE: Final = 32
"""With no room left, one of so many connections is given up, the idlest first: a scan of all serves many newcomers."""
PATIENCE_NS: Final = 1_000_000_000
"""Who has not sent a whole head after so long may be given up for a newcomer: the first bytes come up to a round trip
after the connection, or more where it is encrypted, and most heads in one piece.  For want of descriptors, connections
that have been idle for less are not given up."""

_ARRIVING: Final = (Phase.PREAMBLE, Phase.HANDSHAKE, Phase.HEAD)
_since_ns = attrgetter("since_ns")


class Doors:
    """The ways in of one reactor.

    Args:
        reactor: whose newcomers they are.
        listeners: listening, non-blocking sockets.
        handover: through which siblings pass connections on; None where there are none.

    Attributes:
        are_open: are they in the epoll?
        again_ns: when to look again whether they may be; 0: nothing is to be waited for.
        are_left: are newcomers left to siblings?
        quiet_since_ns: when the last newcomer came, or the doors were opened.
    """

    def __init__(self, reactor: Reactor, listeners: Sequence[ListenerLike], handover: HandOver | None) -> None:
        self._reactor = reactor
        self._acceptors: dict[int, Acceptor] = {}
        bases = {}
        for number, listener in enumerate(listeners):
            acceptor = self._acceptors[listener.socket.fileno()] = Acceptor(reactor, listener.socket, number)
            bases[number] = acceptor.base
        self._handover = handover
        self._siblings = SiblingAcceptor(reactor, handover, bases) if handover is not None else None
        self._complain_again_ns = 0
        self.are_open = self.are_left = False
        self.again_ns = 0
        self.quiet_since_ns = 0

    def review(self) -> None:
        """Open or close the doors, as things are."""
        reactor = self._reactor
        may_open = reactor.takes_newcomers and not self.again_ns and not self.are_left
        if may_open and not self.are_open:
            self.are_open = True
            self.quiet_since_ns = reactor.now_ns
            for fd, door in self._all():
                reactor.add_door(fd, door)
        elif self.are_open and not may_open:
            self._shut()
        if not may_open:
            reactor.drainage.make_room()

    def leave_to_siblings(self, are_left: bool) -> None:
        """Whether siblings are to take the newcomers."""
        if self.are_left != are_left:
            self.are_left = are_left
            self.review()

    def look_again(self) -> None:
        """The pause is over, or a connection has closed."""
        self.again_ns = 0
        self.review()

    def admit(self, accept: Callable[[], Newcomer | None]) -> bool:
        """Take the next newcomer, in the place of idle connections where there is no room; False if none came."""
        reactor = self._reactor
        if len(reactor.connections) < reactor.settings.worker_connections:
            given_up = []
        else:
            given_up = self._idlest()
            if not given_up:
                self.again_ns = reactor.now_ns + CROWDED_PAUSE_NS
                self.review()
                return False
        newcomer = accept()
        if newcomer is None:
            return False
        _give_up(given_up)
        self.quiet_since_ns = reactor.now_ns
        reactor.adopt(newcomer)
        return True

    def pause(self, error: OSError) -> None:
        """No descriptor for a connection: give up idle ones, and leave the listeners alone until one closes."""
        reactor = self._reactor
        if reactor.now_ns >= self._complain_again_ns:
            self._complain_again_ns = reactor.now_ns + COMPLAINT_PAUSE_NS
            log.event(
                log.WARNING,
                "accept.exhausted",
                f"cannot accept a connection ({error.strerror}); waiting until one closes: raise the limit (ulimit -n)",
                connections=len(reactor.connections),
            )
        self.again_ns = reactor.now_ns + ACCEPT_PAUSE_NS
        self.review()
        _give_up(self._idlest(PATIENCE_NS))

    def sweep(self) -> list[Newcomer]:
        """All that waits to be accepted now, as far as there is room."""
        taken: list[Newcomer] = []
        room = self._reactor.settings.worker_connections - len(self._reactor.connections)
        for acceptor in self._acceptors.values():
            while len(taken) < room and (newcomer := acceptor.accept()) is not None:
                taken.append(newcomer)
        return taken

    def take_left_behind(self) -> Newcomer | None:
        """A connection that a sibling has handed over and that nobody has taken."""
        return self._siblings.accept() if self._siblings is not None else None

    def close(self) -> None:
        """Let nobody in any more, and close this process's copies of the listening sockets."""
        self._shut()
        self.again_ns = 0
        for acceptor in self._acceptors.values():
            acceptor.close()
        self._acceptors.clear()

    def _shut(self) -> None:
        if self.are_open:
            self.are_open = False
            for fd, _door in self._all():
                self._reactor.remove_reader(fd)

    def _all(self) -> Iterator[tuple[int, Handler]]:
        yield from self._acceptors.items()
        if self._siblings is not None and self._handover is not None:
            yield self._handover.fileno(), self._siblings

    def _idlest(self, age_ns: int = 0) -> list[Connection]:
        """Some of those that are idle for longest (and for ``age_ns``), between two requests or told off; without any,
        of those that have been arriving for longest, and for more than PATIENCE_NS."""
        idle = (each for each in self._since(age_ns) if _is_idle(each))
        arriving = (each for each in self._since(PATIENCE_NS) if each.is_pausing or each.phase in _ARRIVING)
        count = 1 + len(self._reactor.connections) // GIVEN_UP_SHARE
        return nsmallest(count, idle, key=_since_ns) or nsmallest(count, arriving, key=_since_ns)

    def _since(self, age_ns: int) -> Iterator[Connection]:
        until_ns = self._reactor.now_ns - age_ns
        return (each for each in self._reactor.connections.values() if each.since_ns <= until_ns)


def _is_idle(connection: Connection) -> bool:
    return (connection.is_pausing and connection.has_answered) or connection.phase is Phase.LINGERING


def _give_up(connections: Sequence[Connection]) -> None:
    for connection in connections:
        connection.deadline_ns = 0
        connection.on_deadline()
        if connection.phase is Phase.LINGERING:
            connection.close()
