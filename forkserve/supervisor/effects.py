"""What the model's actions do to the world, and what the world's processes say to the model.

    action ─▶ do() ─▶ fork, message, signal, log line …      a failure is one more event
    child's message or end ─▶ event                           collected in ``happened``

Each action has one small method; nothing here decides.  Announcements become the log line, systemd's status
(sd_notify(3)) and the hooks, all from the same place.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from forkserve import clock, log, messages
from forkserve import hooks as hook_calls
from forkserve.posix import memory, process
from forkserve.posix.channel import Channel, channel_pair
from forkserve.posix.handover import make_pair
from forkserve.posix.listeners import Listener
from forkserve.posix.log_files import LogFiles
from forkserve.posix.notify import Notifier
from forkserve.posix.scoreboard import InFlight, Scoreboard
from forkserve.posix.stacks import make_stack_file
from forkserve.settings import Hooks, Settings
from forkserve.supervisor import events as ev
from forkserve.supervisor.certificates import Certificates
from forkserve.supervisor.children import Child, Children, Role
from forkserve.supervisor.drain_report import EXIT_LOST, DrainReport
from forkserve.supervisor.waiter import Waiter

ORDERS_MAX: Final = 64
"""Workers that a zygote has been told to make and has not answered yet; the kernel's queue of a channel holds about
280 small messages, and descriptors on their way count against a limit, too (unix(7), ETOOMANYREFS)."""

NAMED_MAX: Final = 10
"""So many of a dead worker's requests are named in its last line."""

_LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

StartZygoteProcess = Callable[[int, Sequence[int], Callable[[], None]], int]
"""Makes the process of a zygote: (its end of the channel, descriptors that it inherits, what a mere fork of the master
has to close first) -> pid."""


@dataclass(slots=True)
class House:
    """What the server has: settings, descriptors, and who is to be told.

    Attributes:
        settings: of the generation that is asked for next; a reload replaces them.
        embeds_object: the application is an object of this process, so there is no new code to load.
        certificates: None where TLS is not spoken.
    """

    settings: Settings
    hooks: Hooks
    config_path: str | None
    argv: tuple[str, ...]
    listeners: list[Listener]
    scoreboard: Scoreboard
    log_files: LogFiles
    notifier: Notifier
    start_zygote_process: StartZygoteProcess
    on_ready: Callable[[], None]
    embeds_object: bool = False
    certificates: Certificates | None = None

    def view(self) -> hook_calls.ServerView:
        """What hooks see of this server."""
        urls = tuple(listener.url for listener in self.listeners)
        return hook_calls.ServerView(os.getpid(), self.settings, urls, self.settings.workers)


def _make_descriptors() -> tuple[Channel, Channel, int]:
    """A child's channel, both ends, and its stack file.

    Raises:
        OSError: there are no descriptors left.
    """
    ours, theirs = channel_pair()
    try:
        return ours, theirs, make_stack_file()
    except OSError:
        ours.close()
        theirs.close()
        raise


def _reason(error: OSError) -> str:
    hint = ": raise the limit of descriptors (ulimit -n)" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
    return f"{error.strerror}{hint}"


def _named(in_flight: Sequence[InFlight]) -> str:
    """The requests that a worker had, with their ages."""
    now_ns = clock.monotonic_ns()
    named = [f"{each.request_line!r} for {(now_ns - each.since_ns) / 1e9:.1f} s" for each in in_flight[:NAMED_MAX]]
    more = len(in_flight) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


class Aside(Protocol):
    """Who listens to the children that the model does not know: the file watcher, the settings check."""

    def heard(self, child: Child, message: messages.AnyMessage) -> None:
        """The child said something."""

    def ended(self, child: Child, cause: str) -> None:
        """The child has ended."""


class Effects:
    """Does actions; collects events in :attr:`happened`."""

    def __init__(self, house: House, waiter: Waiter, aside: Aside) -> None:
        self.house = house
        self._aside = aside
        self.happened: deque[ev.Event] = deque()
        self.children = Children(waiter, self._heard, self._ended)
        self._waiter = waiter
        self._configurations: dict[int, tuple[Settings, Hooks]] = {}
        self._handovers: dict[int, tuple[int, int]] = {}
        self._memory_kills = memory.kill_count()
        self.report = DrainReport()
        self._do: Mapping[type, Callable[[Any], None]] = {
            ev.StartZygote: self._start_zygote,
            ev.DismissZygote: self._dismiss_zygote,
            ev.AbortZygote: self._abort_zygote,
            ev.KillZygote: self._kill_zygote,
            ev.SpawnWorker: self._spawn_worker,
            ev.DrainWorker: self._drain_worker,
            ev.QuitWorker: self._quit_worker,
            ev.AbortWorker: self._abort_worker,
            ev.KillWorker: self._kill_worker,
            ev.ForgetGeneration: self._forget_generation,
            ev.RefuseNew: self._refuse_new,
            ev.CloseListeners: self._close_listeners,
            ev.Announce: self._announce,
        }
        self._after: Mapping[str, Callable[[dict[str, object]], None]] = {
            "server.ready": self._server_ready,
            "reload.begun": self._reload_begun,
            "reload.done": self._reload_over,
            "reload.failed": self._reload_over,
            "stop.begun": self._stop_begun,
            "stop.quick": self._stop_begun,
            "scale.changed": self._scale_changed,
            "workers.parked": self._scale_changed,
        }

    def do(self, action: ev.Action) -> None:
        """Do one action; what fails is an event in :attr:`happened`, never an exception."""
        self._do[type(action)](action)

    def close_in_fork(self) -> None:
        """In a fork of the master: close what only the master may hold, so that its end is seen by its children."""
        self.children.close_in_fork()
        self._waiter.close()

    # --- zygotes

    def _start_zygote(self, action: ev.StartZygote) -> None:
        number = action.generation
        house = self.house
        settings, _hooks = self._configurations.setdefault(number, (house.settings, house.hooks))
        try:
            handover = self._handovers.get(number) or self._handovers.setdefault(number, make_pair())
            ours, theirs, stack_fd = _make_descriptors()
        except OSError as error:
            self.happened.append(ev.ZygoteDied(number, f"it could not be started: {_reason(error)}"))
            return
        keys_fd = house.certificates.region.fd if house.certificates is not None else None
        load = messages.Load(
            generation=number,
            settings=settings,
            config_path=house.config_path,
            argv=house.argv,
            listeners=tuple((listener.fileno(), listener.name) for listener in house.listeners),
            scoreboard_fd=house.scoreboard.fd,
            handover_fds=handover,
            keys_fd=keys_fd,
            stack_fd=stack_fd,
            error_fd=house.log_files.error_fd,
            access_fd=house.log_files.access_fd,
            preload=action.preload,
            master_pid=os.getpid(),
        )
        inherited = [
            theirs.fileno(),
            stack_fd,
            house.scoreboard.fd,
            *handover,
            *(each.fileno() for each in house.listeners),
        ]
        inherited += [fd for fd in (keys_fd, house.log_files.error_fd, house.log_files.access_fd) if fd is not None]

        def close_in_fork() -> None:
            ours.close()
            self.close_in_fork()

        try:
            ours.send(load)
            pid = house.start_zygote_process(theirs.fileno(), inherited, close_in_fork)
        except (OSError, ValueError) as error:
            ours.close()
            os.close(stack_fd)
            self.happened.append(ev.ZygoteDied(number, f"it could not be started: {error}"))
            return
        finally:
            theirs.close()
        self.children.add(Child("zygote", number, number, ours, stack_fd, pid=pid))

    def _dismiss_zygote(self, action: ev.DismissZygote) -> None:
        child = self.children.find("zygote", action.generation)
        if child is not None:
            child.is_dismissed = True
            child.channel.finish_sending()  # what it answers to earlier orders, pids above all, is still to come

    def _abort_zygote(self, action: ev.AbortZygote) -> None:
        self._signal("zygote", action.generation, signal.SIGABRT, action.why)

    def _kill_zygote(self, action: ev.KillZygote) -> None:
        self._signal("zygote", action.generation, signal.SIGKILL, "it is not needed any more")

    # --- workers

    def _spawn_worker(self, action: ev.SpawnWorker) -> None:
        zygote = self.children.find("zygote", action.generation)
        if zygote is None or zygote.channel_ended or zygote.is_dismissed:
            self.happened.append(ev.WorkerDied(action.worker_id, "its zygote takes no orders"))
            return
        try:
            ours, theirs, stack_fd = _make_descriptors()
        except OSError as error:
            self.happened.append(ev.WorkerDied(action.worker_id, f"it could not be made: {_reason(error)}"))
            return
        row = self.house.scoreboard.row(action.slot)
        row.claim(worker_id=action.worker_id, generation=action.generation, now_ns=clock.monotonic_ns())
        self.children.add(Child("worker", action.worker_id, action.generation, ours, stack_fd, action.slot))
        zygote.orders.append((messages.Spawn(worker_id=action.worker_id, slot=action.slot), theirs))
        self._send_orders(zygote)

    def _send_orders(self, zygote: Child) -> None:
        """Tell the zygote of the workers to make, as many as may be unanswered; each answer makes room for one more."""
        while zygote.orders and zygote.unanswered < ORDERS_MAX and not zygote.is_dismissed:
            order, theirs = zygote.orders.popleft()
            worker = self.children.find("worker", order.worker_id)
            if worker is not None:
                try:
                    sent = zygote.channel.send(order, [theirs.fileno(), worker.stack_fd])
                except OSError as error:
                    sent, worker.why = False, _reason(error)
                zygote.unanswered += sent
                if not sent:
                    worker.why = worker.why or "its zygote takes no orders"
                    self.children.lose(worker)
            theirs.close()

    def _answered(self, zygote: Child) -> None:
        zygote.unanswered -= 1
        self._send_orders(zygote)

    def _drain_worker(self, action: ev.DrainWorker) -> None:
        child = self.children.find("worker", action.worker_id)
        if child is not None and not child.channel_ended:
            heir = self._handovers.get(action.heir)
            if heir is None or action.heir == child.generation:
                child.channel.send(messages.Drain(stopping=action.stopping, heir="own" if heir else "none"))
            else:
                child.channel.send(messages.Drain(stopping=action.stopping, heir="other"), [heir[0]])

    def _quit_worker(self, action: ev.QuitWorker) -> None:
        self._signal("worker", action.worker_id, signal.SIGQUIT, "the server stops at once")

    def _abort_worker(self, action: ev.AbortWorker) -> None:
        self._signal("worker", action.worker_id, signal.SIGABRT, action.why)
        worker = self.children.find("worker", action.worker_id)
        if worker is not None and worker.pid is None:  # there is no such process: the one that is to fork it hangs
            self._signal("zygote", worker.generation, signal.SIGABRT, f"worker {worker.key} was {action.why}")

    def _kill_worker(self, action: ev.KillWorker) -> None:
        self._signal("worker", action.worker_id, signal.SIGKILL, action.why)
        worker = self.children.find("worker", action.worker_id)
        zygote = worker and worker.pid is None and self.children.find("zygote", worker.generation)
        if zygote and zygote.why:  # aborted already, and even that did not move it (a stopped process)
            self.children.signal(zygote, signal.SIGKILL)

    def _signal(self, role: Role, key: int, signum: int, why: str) -> None:
        child = self.children.find(role, key)
        if child is not None:
            child.why = child.why or why
            self.children.signal(child, signum)

    def _forget_generation(self, action: ev.ForgetGeneration) -> None:
        self._configurations.pop(action.generation, None)
        for fd in self._handovers.pop(action.generation, ()):
            os.close(fd)

    # --- listeners

    def _refuse_new(self, _action: ev.RefuseNew) -> None:
        for listener in self.house.listeners:
            listener.refuse_new()

    def _close_listeners(self, _action: ev.CloseListeners) -> None:
        for listener in self.house.listeners:
            listener.close()

    # --- what children say

    def _heard(self, child: Child, message: messages.AnyMessage, fds: list[int]) -> None:
        for fd in fds:  # nobody sends the master descriptors
            os.close(fd)
        match message:
            case messages.Loaded():
                self.happened.append(ev.ZygoteLoaded(child.key, message.preloaded, message.fork_hazards))
            case messages.LoadFailed():
                self.happened.append(ev.ZygoteFailed(child.key, message.message, message.traceback_text))
            case messages.Spawned():
                worker = self.children.find("worker", message.worker_id)
                if worker is not None:
                    self.children.identify(worker, message.pid)
                self._answered(child)
            case messages.SpawnFailed():
                worker = self.children.find("worker", message.worker_id)
                if worker is not None:
                    worker.why = message.error
                    self.children.lose(worker)
                self._answered(child)
            case messages.Ready():
                self.happened.append(ev.WorkerReady(child.key))
            case messages.BootFailed():
                self.happened.append(ev.WorkerBootFailed(child.key, message.message, message.traceback_text))
            case messages.RetireWish():
                self.happened.append(ev.RetireAsked(child.key, message.reason))
            case _:
                self._aside.heard(child, message)

    def _ended(self, child: Child, status: process.ExitStatus | None, stacks: str) -> None:
        cause = str(status) if status is not None else child.why or "it was never made"
        if child.why and status is not None:
            cause = f"{cause}, killed by the master: {child.why}" if status.signum else f"{cause} ({child.why})"
        elif status is not None and status.signum == signal.SIGKILL and self._kernel_has_killed():
            cause += ", killed by the kernel for want of memory (memory.events of the control group)"
        if child.role == "zygote":
            self.happened.append(ev.ZygoteDied(child.key, cause, stacks))  # first, or the dead one is told to fork more
            for worker in self.children.all("worker"):
                if worker.generation == child.key and worker.pid is None:
                    worker.why = "its zygote died while it was being forked"
                    self.children.lose(worker)
        elif child.role == "worker":
            row = self.house.scoreboard.row(child.slot)
            self.report.worker_ended(row)
            in_flight = row.in_flight()
            if in_flight:
                cause += ", in " + _named(in_flight)
            self.happened.append(ev.WorkerDied(child.key, cause, stacks))
            self._tell_child_exit(child, status)
        else:
            self._aside.ended(child, cause)

    def _kernel_has_killed(self) -> bool:
        """Has the kernel's count of processes killed for want of memory grown since it was last looked at?"""
        before, self._memory_kills = self._memory_kills, memory.kill_count()
        return self._memory_kills > before

    def _tell_child_exit(self, child: Child, status: process.ExitStatus | None) -> None:
        code = None if status is None else -status.signum or status.code
        view = hook_calls.WorkerView(child.pid, child.key, self.house.settings, child.generation, code)
        hook_calls.call(self.house.hooks, "child_exit", self.house.view(), view)

    # --- announcements

    def _announce(self, announcement: ev.Announce) -> None:
        fields = dict(announcement.fields)
        if announcement.code == "server.stopped" and self.report.has_begun:
            fields |= self.report.fields(self.house.scoreboard)
            fields["exit_code"] = fields["exit_code"] or (EXIT_LOST if self.report.lost else 0)
        shown = fields | ({"traceback": announcement.detail} if announcement.detail else {})
        log.event(_LEVELS[announcement.severity], announcement.code, announcement.message, **shown)
        after = self._after.get(announcement.code)
        if after is not None:
            after(fields)

    def _server_ready(self, fields: dict[str, object]) -> None:
        self.house.notifier.send("READY=1", f"STATUS=serving with {fields['size']} workers")
        hook_calls.call(self.house.hooks, "when_ready", self.house.view())
        self.house.on_ready()

    def _reload_begun(self, fields: dict[str, object]) -> None:
        microseconds = clock.monotonic_ns() // 1000
        self.house.notifier.send(
            "RELOADING=1", f"MONOTONIC_USEC={microseconds}", f"STATUS=loading generation {fields['generation']}"
        )
        hook_calls.call(self.house.hooks, "on_reload", self.house.view())

    def _reload_over(self, fields: dict[str, object]) -> None:
        kept = fields.get("kept")
        if isinstance(kept, int) and kept in self._configurations:
            self.house.settings, self.house.hooks = self._configurations[kept]
            log.setup(self.house.settings, error_fd=self.house.log_files.error_fd)
        status = f"serving with generation {kept or fields['generation']}"
        self.house.notifier.send("READY=1", f"STATUS={status}{', the last reload failed' if kept else ''}")

    def _stop_begun(self, _fields: dict[str, object]) -> None:
        self.house.notifier.send("STOPPING=1", "STATUS=stopping")
        self.report.begin(self.house.scoreboard)

    def _scale_changed(self, fields: dict[str, object]) -> None:
        size = fields["size"]
        if isinstance(size, int) and size > 0:
            self.house.settings = msgspec.structs.replace(self.house.settings, workers=size)
        hook_calls.call(self.house.hooks, "nworkers_changed", self.house.view(), size, fields.get("was"))
