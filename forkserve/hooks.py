"""Calling the user's hooks: a hook that fails or dawdles is named in the log and ends nothing.

    call(hooks, "when_ready", server)

One hook may refuse: SystemExit in ``on_starting``, before anything runs, ends the start with its code.

Hooks are gunicorn's; what they are given here are views with the attributes that hooks use in practice: ``log``,
``cfg``, ``pid``, and for workers ``age`` (its number) as well.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from forkserve import clock, log
from forkserve.settings import Hooks, Settings

SLOW_HOOK_S: Final = 1.0
"""A hook that takes longer is named in the log: while one runs in the master, nothing else does."""


@dataclass(frozen=True, slots=True)
class ServerView:
    """What hooks see of the master.

    Attributes:
        address: the addresses that are listened on, as text.
        num_workers: how many workers are wanted.
    """

    pid: int
    cfg: Settings
    address: tuple[str, ...] = ()
    num_workers: int = 0

    @property
    def log(self) -> logging.Logger:
        """forkserve's logger."""
        return log.logger


@dataclass(slots=True)
class WorkerView:
    """What hooks see of a worker.

    Attributes:
        pid: None before the fork.
        age: the worker's number, counted from the server's start.
        exitcode: of a worker that has ended (negative: killed by that signal); None while it lives.
    """

    pid: int | None
    age: int
    cfg: Settings
    generation: int = 0
    exitcode: int | None = None

    @property
    def log(self) -> logging.Logger:
        """forkserve's logger."""
        return log.logger


def call(hooks: Hooks, name: str, *arguments: object) -> None:
    """Call a hook if the user has set it; what it raises goes to the log.

    Raises:
        SystemExit: ``on_starting`` refuses the start.
    """
    hook = getattr(hooks, name)
    if hook is None:
        return
    begun = clock.monotonic_s()
    try:
        hook(*arguments)
    except (Exception, SystemExit) as error:
        if name == "on_starting" and isinstance(error, SystemExit):
            raise  # nothing runs yet: the user's way to refuse the start
        log.logger.exception("hook %s failed; going on without it", name)
        return
    took_s = clock.monotonic_s() - begun
    if took_s > SLOW_HOOK_S:
        log.event(logging.WARNING, "hook.slow", f"hook {name} took {took_s:.1f} s", hook=name)
