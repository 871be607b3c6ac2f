"""Processor time and memory of a server, as the kernel counts them.

A process's CPU clock (clock_getcpuclockid(3)) is exact to the nanosecond and includes threads that have ended.
/proc/PID/stat is the same number rounded down to ticks of 10 ms, twice for each process; /proc/PID/schedstat and
task/*/schedstat forget threads that have ended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.bench.errors import BenchError

CLOCK_OF_PROCESS: Final = 2
"""The clock of a whole process that the scheduler keeps: CPUCLOCK_SCHED of Linux's posix-timers.h, bits 0 to 2 of a
clock's number; the process's own number stands inverted above them."""

AHEAD_NICE: Final = "-15"
"""About thirty times the share of others."""

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def processes_of(leader: int) -> list[int]:
    """The processes of the session that ``leader`` began, whatever their parents; zombies too."""
    return [pid for pid, fields in _all_stats() if int(fields[3]) == leader]


def cpu_s_by_process(leader: int) -> dict[int, float]:
    """User and system time of each process of a session, in seconds."""
    found = {}
    for pid in processes_of(leader):
        try:
            found[pid] = time.clock_gettime_ns((~pid << 3) | CLOCK_OF_PROCESS) / 1e9
        except OSError:
            continue  # ended while we looked
    return found


def memory_bytes(leader: int) -> int:
    """Memory of a session's processes, what they share counted once (proc(5), smaps_rollup: Pss)."""
    total = 0
    for pid in processes_of(leader):
        try:
            lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # ended while we looked
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def busy_s() -> float:
    """Processor time of the whole machine that was not idle (proc(5), stat: neither idle nor iowait)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS_PER_S


@contextmanager
def ahead_of_others(pid: int) -> Iterator[None]:
    """Give the session of a process more of a busy processor than others for a while (sched(7), autogroup).

    Raises:
        BenchError: that is not allowed, or the kernel does not know it.
    """
    group = Path("/proc", str(pid), "autogroup")
    try:
        before = group.read_text().split()[-1]
        group.write_text(AHEAD_NICE)
    except OSError as error:
        raise BenchError(f"--ahead: {group} cannot be changed ({error.strerror}): be root, or do without") from error
    try:
        yield
    finally:
        with suppress(OSError):  # the session has ended
            group.write_text(before)


def _all_stats() -> Iterator[tuple[int, list[str]]]:
    """Each process, with the fields of its stat from the state on (session is number 3)."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                text = Path("/proc", name, "stat").read_text()
            except OSError:
                continue  # ended while we looked
            yield int(name), text.rpartition(")")[2].split()
