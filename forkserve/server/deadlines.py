"""When to look at which connection again: a heap with one valid entry a connection.

A later deadline only changes the number in the connection; when its old entry comes up it is pushed again.  So keeping
a connection alive costs no heap operation.  An entry whose time is not that of its connection's ``entry_ns``, or whose
connection is closed, is stale; stale ones are swept out when they are many.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from forkserve.server.connection import Connection

STALE_ENTRIES_MAX: Final = 1024
"""Stale entries, beyond as many as there are connections; then they are swept out."""


class Deadlines:
    """The heap of one reactor.  Times are monotonic nanoseconds."""

    __slots__ = ("_count", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Connection]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_ns(self) -> int:
        """The earliest entry's time; 0 where there is none."""
        return self._heap[0][0] if self._heap else 0

    def schedule(self, connection: Connection, open_count: int) -> None:
        """See that the connection's deadline has an entry that is not later.

        Args:
            open_count: how many connections there are.
        """
        if connection.entry_ns == 0 or connection.deadline_ns < connection.entry_ns:
            connection.entry_ns = connection.deadline_ns
            self._count += 1
            heappush(self._heap, (connection.deadline_ns, self._count, connection))
            if len(self._heap) > 2 * open_count + STALE_ENTRIES_MAX:
                self._heap = [entry for entry in self._heap if entry[2].entry_ns == entry[0] and not entry[2].is_closed]
                heapify(self._heap)

    def due(self, now_ns: int) -> Iterator[Connection]:
        """The connections whose entries have come up, each without an entry from then on."""
        while self._heap and self._heap[0][0] <= now_ns:
            when_ns, _, connection = heappop(self._heap)
            if connection.entry_ns == when_ns and not connection.is_closed:
                connection.entry_ns = 0
                yield connection
