"""How many CPUs this process may use: what ``workers = auto`` counts.

The host's count is wrong in a container: the control group's quota and the affinity mask decide.

    version 2   /proc/self/cgroup "0::/a/b"      /sys/fs/cgroup/a/b/cpu.max            "150000 100000", "max 100000"
    version 1   /proc/self/cgroup "4:cpu:/a/b"   /sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us and cpu.cfs_period_us, -1: none

The smallest quota on the way up to the root counts (cgroups(7)).  In a container the named group may not be visible;
then the files in the mount's root are the container's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path


def available_cpus(root: str = "/") -> int:
    """The CPUs that this process may use, a part of one counted as one; at least 1.

    Args:
        root: where /proc and /sys are, for tests.
    """
    allowed = len(os.sched_getaffinity(0))
    quotas = list(_quotas(Path(root)))
    return max(1, min([allowed, *(ceil(quota) for quota in quotas)]))


def _quotas(root: Path) -> Iterator[float]:
    """Every quota that binds this process, in CPUs."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            for place in _up(mount, group):
                quota, _, period = _text(place / "cpu.max").partition(" ")
                yield from _quota(quota, period)
        elif "cpu" in controllers.split(","):
            for name in dict.fromkeys(("cpu", controllers)):
                for place in _up(mount / name, group):
                    yield from _quota(_text(place / "cpu.cfs_quota_us"), _text(place / "cpu.cfs_period_us"))


def _up(mount: Path, group: str) -> Iterator[Path]:
    """The group's directory and those above it, up to the mount."""
    parts = [part for part in group.split("/") if part and part != ".."]
    for length in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:length])


def _quota(quota: str, period: str) -> Iterator[float]:
    try:
        share, length = int(quota), int(period)
    except ValueError:
        return  # "max", or no such file: no quota here
    if share > 0 and length > 0:
        yield share / length


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""  # this system has no such file: it says nothing about a quota
