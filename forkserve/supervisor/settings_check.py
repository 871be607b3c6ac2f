"""Reading the configuration where it can hurt nobody: in a child, before the master reads it itself.

    HUP ─▶ child: read the configuration ─▶ SettingsChecked ─▶ master: read it too, ask for a new generation
                   └ raises, hangs, dies ─▶ the reload is refused with the reason

A Python configuration file is the user's code: it may raise, loop or crash, and the master is never deaf.  The child
is a fork of the master with the master's descriptors closed; it has ``boot_timeout`` seconds.  Asked again while a
check runs, another one takes its place when it is over: the file may have changed since.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import NoReturn

from forkserve import clock, messages
from forkserve.errors import ForkserveError
from forkserve.posix import process
from forkserve.posix.channel import channel_pair
from forkserve.supervisor.children import Child, Children


class SettingsCheck:
    """At most one check at a time.

    Args:
        read: reads the configuration; raises ForkserveError when it is wrong.
        close_in_fork: closes what a fork of the master must not hold.
        on_verdict: called with the reason why it is wrong, or with "" when it is good, and the traceback if it has one.

    Attributes:
        deadline: when the check that runs has failed; None while none runs.
    """

    def __init__(
        self,
        children: Children,
        read: Callable[[], object],
        close_in_fork: Callable[[], None],
        on_verdict: Callable[[str, str], None],
    ) -> None:
        self._children = children
        self._read = read
        self._close_in_fork = close_in_fork
        self._on_verdict = on_verdict
        self._child: Child | None = None
        self._is_asked_again = False
        self._number = 0
        self._limit_s = 0.0
        self.deadline: float | None = None

    def ask(self, limit_s: float) -> None:
        """Check now, or again after the check that runs.

        Args:
            limit_s: seconds after which it has failed.
        """
        self._limit_s = limit_s
        if self._child is not None:
            self._is_asked_again = True
            return
        try:
            ours, theirs = channel_pair()
        except OSError as problem:
            self._on_verdict(f"no channel could be made to a process that reads it ({problem.strerror})", "")
            return

        def child() -> NoReturn:
            process.die_with_parent()
            process.set_title("reading the configuration")
            ours.close()
            self._close_in_fork()
            error = traceback_text = ""
            try:
                self._read()
            except ForkserveError as problem:
                error, traceback_text = messages.fitted(str(problem), problem.traceback_text)
            theirs.send(messages.SettingsChecked(error=error, traceback_text=traceback_text))
            process.abandon(0)

        try:
            pid = process.fork_child(child)
        except OSError as problem:
            ours.close()
            self._on_verdict(f"no process could be made to read the configuration in ({problem.strerror})", "")
            return
        finally:
            theirs.close()
        self._number += 1
        self.deadline = clock.monotonic_s() + limit_s
        self._child = Child("checker", self._number, 0, ours, pid=pid)
        self._children.add(self._child)

    def meet_deadline(self, now: float) -> None:
        """Kill a check that takes too long."""
        if self._child is not None and self.deadline is not None and now >= self.deadline:
            self._child.why = "reading the configuration did not end within boot_timeout"
            self._children.signal(self._child, signal.SIGKILL)
            self.deadline = None

    def heard(self, message: messages.SettingsChecked) -> None:
        """The child has told its verdict."""
        self._over(message.error, message.traceback_text)

    def ended(self, child: Child, cause: str) -> None:
        """A child has ended; when it is the one that checks, and has told no verdict, that is one."""
        if child is self._child:
            self._over(child.why or f"reading the configuration ended with {cause}")

    def _over(self, error: str, traceback_text: str = "") -> None:
        self._child = None
        self.deadline = None
        is_asked_again, self._is_asked_again = self._is_asked_again, False
        if is_asked_again:
            self.ask(self._limit_s)
        else:
            self._on_verdict(error, traceback_text)
