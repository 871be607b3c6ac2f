"""Signals as readable bytes.

    signal ─ C handler ─▶ one byte on a socket ─▶ whoever waits wakes up          (signal.set_wakeup_fd)
                └ Python handler ─▶ the signal's number is noted ─▶ drain() tells it

The handlers decide nothing: the byte means "look", the note says at what.  A full socket drops the byte, not the note,
so that a storm is never lost in effect.  They are real functions rather than SIG_IGN, since an ignored signal would be
inherited by what the application starts and ``Popen().terminate()`` would then do nothing; a handler is reset by
exec(2).
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterable
from types import FrameType
from typing import Final

from forkserve.posix import unpatched

GROUP_SIGNALS: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGWINCH,
)
"""What an operator sends to the master, and a terminal or a container to the whole group; only the master answers."""

DEFAULTED_IN_CHILD: Final = (*GROUP_SIGNALS, signal.SIGCHLD, signal.SIGABRT)
"""The signals that this server handles.  Any other is the application's: its handler is to live on in a fork."""


class WakeupSignals:
    """Take over the given signals of this process; only its main thread may do so (signal(7), PEP 475)."""

    def __init__(self, signums: Iterable[signal.Signals]) -> None:
        self._reader, self._writer = unpatched.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._seen: dict[int, None] = {}
        self._previous = {signum: signal.signal(signum, self._note) for signum in signums}
        for signum in self._previous:
            signal.siginterrupt(signum, False)
        self._previous_fd = unpatched.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self._seen[signum] = None

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._reader.fileno()

    def drain(self) -> list[int]:
        """The distinct signals that came since the last call, in the order of their first coming."""
        try:
            while self._reader.recv(4096):
                continue
        except BlockingIOError:
            pass  # emptied: the ordinary end
        seen = list(self._seen)
        for signum in seen:
            del self._seen[signum]
        return seen

    def drain_at_once(self) -> list[int]:
        """What the kernel says, in the order of coming; any thread may ask.

        For a process whose main thread may be in a call: Python runs its handlers there alone, and later.  Of a storm
        some may be missing, and every signal with a handler is here, the application's too.
        """
        found: dict[int, None] = {}
        try:
            while data := self._reader.recv(4096):
                found.update(dict.fromkeys(data))
        except BlockingIOError:
            pass  # emptied: the ordinary end
        return list(found)

    def close(self) -> None:
        """Give the signals back to whoever had them."""
        unpatched.set_wakeup_fd(self._previous_fd)
        for signum, handler in self._previous.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        self._reader.close()
        self._writer.close()


def reset_in_forks() -> None:
    """A child that anybody forks in this process has none of its handlers of now, and not its wake-up descriptor.

    Else a signal to the child would do nothing there (``multiprocessing.Process.terminate``) and be heard here.  What
    the application has set since lives on in its children.
    """
    ours = {signum: signal.getsignal(signum) for signum in DEFAULTED_IN_CHILD}
    our_fd = unpatched.set_wakeup_fd(-1)
    unpatched.set_wakeup_fd(our_fd, warn_on_full_buffer=False)

    def reset() -> None:
        fd = unpatched.set_wakeup_fd(-1)
        if fd != our_fd:
            unpatched.set_wakeup_fd(fd)
        for signum, handler in ours.items():
            if callable(handler) and signal.getsignal(signum) == handler:
                signal.signal(signum, signal.SIG_DFL)

    os.register_at_fork(after_in_child=reset)


def block_all() -> set[signal.Signals]:
    """Block every signal around a fork; returns the mask to :func:`restore`."""
    return signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())  # type: ignore[return-value]


def restore(mask: set[signal.Signals]) -> None:
    """Set the signal mask of this thread."""
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def release(held: Iterable[signal.Signals]) -> None:
    """Let in what was held back at a fork, now that its handlers are set."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, held)


def reset_in_child() -> None:
    """In a forked child: forget the parent's wake-up descriptor and handlers, so that nothing is sent to the parent."""
    unpatched.set_wakeup_fd(-1)
    for signum in DEFAULTED_IN_CHILD:
        signal.signal(signum, signal.SIG_DFL)
