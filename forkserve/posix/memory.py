"""How much memory a process uses, and what the kernel's out-of-memory killer has done (proc(5), cgroups(7))."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_PSS: Final = re.compile(rb"^Pss:\s+(\d+) kB", re.M)


def used_bytes(pid: int) -> int | None:
    """A process's proportional share of memory (PSS); its resident memory (RSS) where that must not be read.

    Pages that several processes share count in part, so that preloaded workers are not charged for the application
    several times.  None when the process has ended.
    """
    try:
        found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_bytes())
        if found is not None:
            return int(found[1]) * 1024
    except ProcessLookupError:
        return None
    except OSError:
        pass  # of another user, or a kernel without it: the next best figure is below
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return None


def kill_count() -> int:
    """How many processes of this control group the kernel has killed for want of memory; 0 where nobody counts."""
    for path in _event_files():
        try:
            found = re.search(r"^oom_kill (\d+)$", path.read_text(), re.M)
        except OSError:
            continue  # another kind of control group
        if found is not None:
            return int(found[1])
    return 0


def _event_files() -> list[Path]:
    """Where the kernel counts: cgroup v2's memory.events, cgroup v1's memory.oom_control."""
    files = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            files += [Path("/sys/fs/cgroup" + path, "memory.events"), Path("/sys/fs/cgroup/memory.events")]
        elif "memory" in controllers.split(","):
            files += [Path("/sys/fs/cgroup/memory" + path, "memory.oom_control")]
    return files
