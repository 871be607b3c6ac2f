"""Whether it is safe to fork after an import: what the import left behind that a fork does not copy, or copies badly.

Threads do not exist in a forked child, but the locks that they held do.  Sockets, pipes and the kernel's event objects
are shared by parent and child: two processes that talk on one database connection corrupt it.  Regular files, devices
and shared memory are left alone: sharing them is common and mostly meant.
"""

from __future__ import annotations

import os
import threading
from typing import Final

from forkserve.posix import unpatched

_SHARED_BADLY: Final = ("socket:", "pipe:", "anon_inode:[eventpoll]", "anon_inode:inotify", "anon_inode:[eventfd]")

ENDING_LOOKS: Final = 20
ENDING_LOOK_MS: Final = 5
"""How often, and how far apart, a thread that Python does not know is looked at before it counts as one that stays."""


def open_descriptors() -> dict[int, str]:
    """This process's descriptors and what the kernel calls them (proc(5), /proc/pid/fd)."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the descriptor of this very listing
    return found


def hazards(before: dict[int, str]) -> tuple[str, ...]:
    """Why forking is not safe now; empty when nothing speaks against it.

    Args:
        before: :func:`open_descriptors` before the import.
    """
    reasons = [f"thread {name!r} runs" for name in _other_threads()]
    for fd, what in open_descriptors().items():
        if before.get(fd) != what and what.startswith(_SHARED_BADLY):
            reasons.append(f"descriptor {fd} is an open {what.split(':')[0]} ({what})")
    return tuple(reasons)


def _other_threads() -> list[str]:
    for _look in range(ENDING_LOOKS):
        tasks = [int(name) for name in os.listdir("/proc/self/task")]
        known = {thread.native_id: thread.name for thread in threading.enumerate()}
        others = [task for task in tasks if task != os.getpid()]
        if all(task in known for task in others):
            break
        unpatched.poll().poll(ENDING_LOOK_MS)  # a thread that was joined leaves the kernel a moment later
    return [known.get(task) or _command_of(task) for task in others]


def _command_of(task: int) -> str:
    """The kernel's name of a thread that Python does not know: one that a C library started."""
    try:
        with open(f"/proc/self/task/{task}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return str(task)  # it ended meanwhile; it was there at the import's end all the same
