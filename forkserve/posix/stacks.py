"""The stacks of a process that hangs, written where its master can read them when it is dead.

    master: memfd ─▶ child: on SIGABRT faulthandler writes all threads' stacks ─▶ child dies ─▶ master reads the memfd

The dump is written by C code in the signal handler itself, so it comes also when the interpreter is stuck inside a C
call, and for crashes as well (SIGSEGV, SIGBUS, SIGFPE, SIGILL).  Then the signal is raised again for the handler that
was set before.
"""

from __future__ import annotations

import faulthandler
import os
from typing import Final

STACK_BYTES_MAX: Final = 64 * 1024
"""How much of a dump is read: hundreds of frames."""


def make_stack_file() -> int:
    """A new memfd for one child's stacks (memfd_create(2)); the caller owns it."""
    return os.memfd_create("forkserve-stack", os.MFD_CLOEXEC)


def write_stacks_on_abort(fd: int) -> None:
    """From now on SIGABRT and crashes write the stacks of all threads of this process to ``fd``.

    A Python handler for SIGABRT must be set before: it then runs after the dump, when the interpreter can.
    """
    faulthandler.disable()  # a parent may have enabled it: only a first enabling takes the signals over
    faulthandler.enable(file=fd, all_threads=True)


def read_stacks(fd: int) -> str:
    """What was written; empty when the process was never aborted."""
    return os.pread(fd, STACK_BYTES_MAX, 0).decode("utf-8", "replace").rstrip()
