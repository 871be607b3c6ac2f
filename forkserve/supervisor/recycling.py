"""Which workers have become too old or too large, and should be replaced: new before old.

    each look ─▶ age, memory of each ready worker ─▶ (worker, reason) ─▶ RetireAsked

When the replacement comes, and how many at a time, is the model's affair (``max_unavailable``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from forkserve.posix import memory
from forkserve.settings import Settings
from forkserve.supervisor.model import WorkerRecord

MEMORY_LOOK_S: Final = 5.0
"""How often memory is looked at: the kernel walks the page tables for it, about 1 ms for 100 MB."""
AGE_JITTER: Final = 0.1
"""A worker lives up to this share longer, each another one, so that those born together do not leave together."""
_SPREAD: Final = 0.6180339887498949
"""Multiples of the golden ratio, modulo 1, are spread evenly."""


class Recycling:
    """What has to be remembered between looks.

    Args:
        pid_of: a worker's process id; None while it is not known.
    """

    def __init__(self, pid_of: Callable[[int], int | None]) -> None:
        self._pid_of = pid_of
        self._ready_since: dict[int, float] = {}
        self._next_memory_look = 0.0

    def overdue(self, workers: Iterable[WorkerRecord], settings: Settings, now: float) -> Iterator[tuple[int, str]]:
        """The workers that should be replaced, and why.

        Args:
            workers: those that are ready.
            now: monotonic seconds.
        """
        since = self._ready_since
        self._ready_since = {worker.id: since.get(worker.id, now) for worker in workers}
        looks_at_memory = settings.max_worker_memory > 0 and now >= self._next_memory_look
        if looks_at_memory:
            self._next_memory_look = now + MEMORY_LOOK_S
        for worker_id, ready_since in self._ready_since.items():
            longest = settings.max_worker_age * (1 + AGE_JITTER * (worker_id * _SPREAD % 1))
            if 0 < longest < now - ready_since:
                yield worker_id, "max_worker_age"
            elif looks_at_memory and self._memory_of(worker_id) > settings.max_worker_memory:
                yield worker_id, "max_worker_memory"

    def _memory_of(self, worker_id: int) -> int:
        pid = self._pid_of(worker_id)
        return (memory.used_bytes(pid) if pid is not None else None) or 0
