"""What was measured: one sample a turn, and the medians of several turns.  Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """One turn of one server.

    Attributes:
        cpu_s: processor time of the server's processes.
        others: processor time of everything that is neither server nor load, as a share of one processor.
    """

    requests: int
    seconds: float
    cpu_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    others: float = 0.0
    complaints: tuple[str, ...] = ()

    @property
    def per_s(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of processor time for one answer."""
        return self.cpu_s / self.requests * 1e6


@dataclass(frozen=True, slots=True)
class Summary:
    """Several turns of one server as one: medians, each of its own."""

    per_s: float
    cpu_us: float
    cpu_us_min: float
    cpu_us_max: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    others: float
    complaints: tuple[str, ...]

    @property
    def unfairness(self) -> float:
        """How much longer the slowest of a hundred waits than the middle one."""
        return self.p99_ms / self.p50_ms


def summary_of(samples: Sequence[Sample]) -> Summary:
    """The medians; of complaints, each once."""
    costs = [sample.cpu_us for sample in samples]
    return Summary(
        per_s=statistics.median(sample.per_s for sample in samples),
        cpu_us=statistics.median(costs),
        cpu_us_min=min(costs),
        cpu_us_max=max(costs),
        p50_ms=statistics.median(sample.p50_ms for sample in samples),
        p99_ms=statistics.median(sample.p99_ms for sample in samples),
        max_ms=max(sample.max_ms for sample in samples),
        others=statistics.median(sample.others for sample in samples),
        complaints=tuple(sorted({complaint for sample in samples for complaint in sample.complaints})),
    )


def used_s(before: Mapping[int, float], after: Mapping[int, float]) -> tuple[float, tuple[str, ...]]:
    """Processor time between two looks at the clocks of the same processes, and what is wrong with it.

    Args:
        before, after: clocks in seconds, by process.
    """
    lost = before.keys() - after.keys()
    complaints = (f"{len(lost)} processes of the server ended, their time is not counted",) if lost else ()
    return sum(clock - before.get(pid, 0.0) for pid, clock in after.items()), complaints
