"""What the master does to real processes, where the moment matters."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from forkserve import messages
from forkserve.posix import process
from forkserve.posix.channel import CLOSED, Channel
from forkserve.posix.log_files import LogFiles
from forkserve.posix.notify import Notifier
from forkserve.posix.scoreboard import Scoreboard
from forkserve.settings import Hooks, Settings
from forkserve.supervisor import events as ev
from forkserve.supervisor.children import Child
from forkserve.supervisor.effects import Effects, House
from forkserve.supervisor.waiter import Waiter


class Nobody:
    """No child of these stories is one that the model does not know."""

    def heard(self, child: Child, message: messages.AnyMessage) -> None:
        raise AssertionError(f"{child.role} said {message}")

    def ended(self, child: Child, cause: str) -> None:
        raise AssertionError(f"{child.role} ended: {cause}")


def next_message(channel: Channel) -> tuple[messages.AnyMessage, list[int]] | None:
    while True:
        select.select([channel.fileno()], [], [], 20)
        received = channel.receive()
        if received is CLOSED:
            return None
        if received is not None:
            return received


def tells_pids_only_when_dismissed(channel: Channel) -> NoReturn:
    """A zygote that is as slow to answer as the machine can make it."""
    next_message(channel)  # Load
    channel.send(messages.Loaded(preloaded=True))
    pids = {}
    while (order := next_message(channel)) is not None:
        spawn, fds = order
        assert isinstance(spawn, messages.Spawn)

        def worker(channel_fd: int = fds[0]) -> NoReturn:
            own = Channel.from_fd(channel_fd)
            own.send(messages.Ready())
            next_message(own)
            process.leave(0)

        pids[spawn.worker_id] = process.fork_detached(worker)
        for fd in fds:
            os.close(fd)
    for worker_id, pid in pids.items():
        channel.send(messages.Spawned(worker_id=worker_id, pid=pid))
    process.leave(0)


def make_effects(waiter: Waiter) -> Effects:
    def start_zygote(channel_fd: int, _inherit: Sequence[int], close_in_fork: Callable[[], None]) -> int:
        def zygote() -> NoReturn:
            close_in_fork()
            tells_pids_only_when_dismissed(Channel.from_fd(channel_fd))

        return process.fork_child(zygote)

    house = House(
        settings=Settings(),
        hooks=Hooks(),
        config_path=None,
        argv=("forkserve",),
        listeners=[],
        scoreboard=Scoreboard.create(4),
        log_files=LogFiles("-", None),
        notifier=Notifier({}),
        start_zygote_process=start_zygote,
        on_ready=lambda: None,
    )
    return Effects(house, waiter, Nobody())


def wait_for(effects: Effects, waiter: Waiter, event: ev.Event) -> None:
    deadline = time.monotonic() + 20
    while event not in effects.happened:
        assert time.monotonic() < deadline, f"no {event} within 20 s, but {list(effects.happened)}"
        for callback in waiter.wait(1.0):
            callback()


def story() -> NoReturn:
    """In a process of its own, which becomes a sub-reaper as the master does."""
    process.become_subreaper()
    waiter = Waiter()
    effects = make_effects(waiter)
    effects.do(ev.StartZygote(1, preload=True))
    wait_for(effects, waiter, ev.ZygoteLoaded(1, preloaded=True))
    effects.do(ev.SpawnWorker(1, 1, 0))
    wait_for(effects, waiter, ev.WorkerReady(1))
    worker = effects.children.find("worker", 1)
    assert worker is not None
    assert worker.pid is None
    effects.do(ev.DismissZygote(1))
    wait_for(effects, waiter, ev.ZygoteDied(1, "exit code 0"))
    assert worker.pid is not None
    effects.do(ev.DrainWorker(1, stopping=True))
    wait_for(effects, waiter, ev.WorkerDied(1, "exit code 0"))
    process.leave(0)


def test_a_worker_whose_zygote_is_dismissed_before_its_pid_is_known_is_not_lost() -> None:
    pidfd = process.open_pidfd(process.fork_child(story))
    assert pidfd is not None
    assert select.select([pidfd], [], [], 60)[0]
    assert process.reap(pidfd) == process.ExitStatus(0)
    os.close(pidfd)
