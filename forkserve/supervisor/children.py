"""The master's children: which processes exist, by what descriptors they are known, and how they ended.

    Child   its channel (messages), its pidfd (end), its stack file (where it was when it was aborted)

A child is known by its channel from the moment it is ordered; its pid follows (a worker's comes in a message from
its zygote).  A signal that is to be sent before the pid is known is sent when it is.

This registry watches the children's descriptors and turns what they say into calls; what it means is for effects.py.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from forkserve import log, messages
from forkserve.posix import process
from forkserve.posix.channel import CLOSED, Channel
from forkserve.posix.stacks import read_stacks
from forkserve.supervisor.waiter import Waiter

Role = Literal["worker", "zygote", "watcher", "checker"]


@dataclass(slots=True)
class Child:
    """One process of ours.

    Attributes:
        key: a worker's id, a zygote's generation.
        slot: a worker's row of the scoreboard.
        stack_fd: its stack file; -1 where it has none.
        why: why the master kills it; empty while it does not.
        channel_ended: the other end of the channel is gone.
        is_dismissed: a zygote's: it was told that no more orders come.
        orders: a zygote's: workers that it is to make and has not been told of, with their ends of their channels.
        unanswered: how many it has been told of and has not answered yet.
    """

    role: Role
    key: int
    generation: int
    channel: Channel
    stack_fd: int = -1
    slot: int = -1
    pid: int | None = None
    pidfd: int | None = None
    why: str = ""
    channel_ended: bool = False
    is_dismissed: bool = False
    pending_signals: list[int] = field(default_factory=list)
    orders: deque[tuple[messages.Spawn, Channel]] = field(default_factory=deque)
    unanswered: int = 0

    def close(self) -> None:
        """Close every descriptor that the master has for it."""
        self.channel.close()
        for _order, theirs in self.orders:
            theirs.close()
        if self.stack_fd >= 0:
            os.close(self.stack_fd)
        if self.pidfd is not None:
            os.close(self.pidfd)


class Children:
    """All children, watched.

    Args:
        on_message: called with a child and what it said; the descriptors are the callee's to close.
        on_end: called with a child that has ended, after its last message, with its exit status (None: it was never
            made, or nobody can tell) and the stacks that it left.
    """

    def __init__(
        self,
        waiter: Waiter,
        on_message: Callable[[Child, messages.AnyMessage, list[int]], None],
        on_end: Callable[[Child, process.ExitStatus | None, str], None],
    ) -> None:
        self._waiter = waiter
        self._on_message = on_message
        self._on_end = on_end
        self._children: dict[tuple[Role, int], Child] = {}

    def find(self, role: Role, key: int) -> Child | None:
        """The child of that role and number."""
        return self._children.get((role, key))

    def all(self, role: Role) -> list[Child]:
        """Every child of a role, oldest first."""
        return [child for child in self._children.values() if child.role == role]

    def is_ours(self, pid: int) -> bool:
        """Whether the pid is one that somebody here waits for, or may be: while a worker's pid is not known, any."""
        return any(child.pid == pid or child.pid is None for child in self._children.values())

    def add(self, child: Child) -> None:
        """Watch a new child's channel, and its end if its pid is known."""
        self._children[child.role, child.key] = child
        self._waiter.watch(child.channel.fileno(), lambda: self._read(child))
        if child.pid is not None:
            self.identify(child, child.pid)

    def identify(self, child: Child, pid: int) -> None:
        """The child's pid has become known."""
        child.pid = pid
        try:
            child.pidfd = process.open_pidfd(pid)
        except OSError as error:  # no descriptor left: what cannot be watched cannot be kept
            os.kill(pid, signal.SIGKILL)
            child.why = f"it could not be watched ({error.strerror}): raise the limit of descriptors (ulimit -n)"
        if child.pidfd is None:  # see above; or ended and reaped already, which only a debugger or a bug can do
            self._end(child, None)
            return
        self._waiter.watch(child.pidfd, lambda: self._reap(child))
        for signum in child.pending_signals:
            process.signal_process(child.pidfd, signum)

    def signal(self, child: Child, signum: int) -> None:
        """Send a signal, now or as soon as the pid is known."""
        if child.pidfd is not None:
            process.signal_process(child.pidfd, signum)
        else:
            child.pending_signals.append(signum)

    def lose(self, child: Child) -> None:
        """Give up a child that was never made, or whose pid will never be known: the end of its channel ends it."""
        self._end(child, None)

    def close_in_fork(self) -> None:
        """In a fork of the master: close its ends of everything, so that the end of the master is seen by all."""
        for child in self._children.values():
            child.close()
        self._children.clear()

    def _read(self, child: Child) -> None:
        while (child.role, child.key) in self._children and not child.channel_ended:
            try:
                received = child.channel.receive()
            except msgspec.DecodeError as error:
                text = f"{child.role} {child.key} sent what is no message, ignored: {error}"
                log.event(logging.ERROR, "channel.garbled", text)
                continue
            if received is None:
                return
            if received is CLOSED:
                child.channel_ended = True
                self._waiter.forget(child.channel.fileno())
                return
            self._on_message(child, *received)

    def _reap(self, child: Child) -> None:
        if child.pidfd is None:
            return
        status = process.reap(child.pidfd)
        if status is not None:
            self._read(child)
            self._end(child, status)

    def _end(self, child: Child, status: process.ExitStatus | None) -> None:
        if self._children.pop((child.role, child.key), None) is None:
            return
        self._waiter.forget(child.channel.fileno())
        if child.pidfd is not None:
            self._waiter.forget(child.pidfd)
        stacks = read_stacks(child.stack_fd) if child.stack_fd >= 0 else ""
        child.close()
        self._on_end(child, status, stacks)
