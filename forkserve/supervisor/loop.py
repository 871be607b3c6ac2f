"""The master's loop: wait, step, do.

    wait ─▶ events ─▶ step(state, event, now, policy) ─▶ (state', actions) ─▶ do(action) ─▶ perhaps more events ─┐
      ▲                                                                                                           │
      └────────────────────────────── until the phase is STOPPED ◀────────────────────────────────────────────────┘

There is one place that blocks (the waiter), and its timeout is the nearest of the model's next deadline and the next
look around (heartbeats, the certificate's files).  The loop translates: signals and the operator's wishes into events,
heartbeats that stopped into WorkerHung.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from typing import Final

import msgspec

from forkserve import clock, log, messages
from forkserve.errors import ForkserveError
from forkserve.posix import process
from forkserve.posix.signals import GROUP_SIGNALS, WakeupSignals
from forkserve.settings import Settings, restart_needed
from forkserve.sources import Loaded
from forkserve.supervisor import events as ev
from forkserve.supervisor.children import Child
from forkserve.supervisor.drain_report import EXIT_LOST
from forkserve.supervisor.effects import Effects, House
from forkserve.supervisor.model import Outcome, Phase, Policy, Stage, State
from forkserve.supervisor.recycling import Recycling
from forkserve.supervisor.settings_check import SettingsCheck
from forkserve.supervisor.step import begin, next_deadline, step
from forkserve.supervisor.waiter import Waiter

LOOK_INTERVAL_S: Final = 1.0
"""How often heartbeats and the certificate's files are looked at; workers beat at least once a second when idle."""


def policy_of(settings: Settings) -> Policy:
    """The limits that the model decides by."""
    return Policy(
        graceful_timeout_s=settings.graceful_timeout,
        boot_timeout_s=settings.boot_timeout,
        max_unavailable=settings.max_unavailable,
        restart_intensity=settings.restart_intensity,
        restart_period_s=settings.restart_period,
        preload=settings.preload != "off",
    )


class Supervisor:
    """The master at work.

    Args:
        reload_settings: reads the configuration anew for a reload; None where it cannot change.
    """

    def __init__(self, house: House, reload_settings: Callable[[], Loaded] | None) -> None:
        self._house = house
        self._reload_settings = reload_settings
        self._waiter = Waiter()
        self._signals = WakeupSignals((*GROUP_SIGNALS, signal.SIGCHLD))
        self._effects = Effects(house, self._waiter, self)
        self._check: SettingsCheck | None = None
        if reload_settings is not None:
            self._check = SettingsCheck(
                self._effects.children, reload_settings, self._effects.close_in_fork, self._settings_checked
            )
        self._state: State = begin(house.settings.workers, clock.monotonic_s())
        self._next_look = clock.monotonic_s() + LOOK_INTERVAL_S
        self._recycling = Recycling(self._pid_of)
        self._on_signal: dict[int, Callable[[], None]] = {
            signal.SIGTERM: lambda: self._happen(ev.StopAsked()),
            signal.SIGINT: lambda: self._happen(ev.StopAsked()),
            signal.SIGQUIT: lambda: self._happen(ev.QuitAsked()),
            signal.SIGHUP: self._reload,
            signal.SIGUSR1: self._reopen_logs,
            signal.SIGUSR2: self._refuse_upgrade,
            signal.SIGTTIN: lambda: self._happen(ev.ScaleAsked(+1)),
            signal.SIGTTOU: lambda: self._happen(ev.ScaleAsked(-1)),
            signal.SIGWINCH: self._park,
            signal.SIGCHLD: self._reap_orphans,
        }

    @property
    def effects(self) -> Effects:
        """The effects, for those who add children of their own (the file watcher)."""
        return self._effects

    def stop_when_readable(self, fd: int) -> None:
        """Stop gracefully when ``fd`` becomes readable or its other end is gone: the embedding program went."""

        def owner_has_gone() -> None:
            self._waiter.forget(fd)
            self._happen(ev.StopAsked())

        self._waiter.watch(fd, owner_has_gone)

    def run(self) -> Outcome:
        """Supervise until stopped; returns how it ended.  Only in the main thread."""
        self._waiter.watch(self._signals.fileno(), self._take_signals)
        try:
            self._happen(ev.Tick())
            while self._state.phase is not Phase.STOPPED:
                for callback in self._waiter.wait(self._timeout_s()):
                    callback()
                    self._drain_events()
                self._look_around()
                if self._check is not None:
                    self._check.meet_deadline(clock.monotonic_s())
                self._happen(ev.Tick())
        finally:
            for child in (*self._effects.children.all("checker"), *self._effects.children.all("watcher")):
                self._effects.children.signal(child, signal.SIGKILL)  # they hold nothing that could be lost
            self._signals.close()
            self._waiter.close()
        outcome = self._state.outcome
        if outcome.exit_code == 0 and self._effects.report.lost:
            return Outcome(EXIT_LOST)
        return outcome

    def _timeout_s(self) -> float:
        now = clock.monotonic_s()
        deadlines = [self._next_look, next_deadline(self._state, now), self._check.deadline if self._check else None]
        return max(0.0, min(each for each in deadlines if each is not None) - now)

    def _happen(self, event: ev.Event) -> None:
        self._effects.happened.append(event)
        self._drain_events()

    def _drain_events(self) -> None:
        happened = self._effects.happened
        while happened:
            policy = policy_of(self._house.settings)
            self._state, actions = step(self._state, happened.popleft(), clock.monotonic_s(), policy)
            for action in actions:
                self._effects.do(action)

    # --- signals

    def _take_signals(self) -> None:
        for signum in self._signals.drain():
            if signum != signal.SIGCHLD:
                name = signal.Signals(signum).name
                log.event(logging.INFO, "signal", f"received {name}", signal=name)
            self._on_signal[signum]()

    # --- children that the model does not know

    def heard(self, child: Child, message: messages.AnyMessage) -> None:
        """A child that the model does not know said something."""
        match message:
            case messages.FilesChanged():
                shown = ", ".join(message.paths[:3]) + (", …" if len(message.paths) > 3 else "")
                log.event(logging.INFO, "files.changed", f"changed: {shown}")
                self._reload()
            case messages.SettingsChecked() if self._check is not None:
                self._check.heard(message)
            case _:
                log.event(
                    logging.ERROR, "channel.unexpected", f"{child.role} {child.key} sent {type(message).__name__}"
                )

    def ended(self, child: Child, cause: str) -> None:
        """A child that the model does not know has ended."""
        if child.role == "watcher":
            log.event(
                logging.WARNING, "watcher.exit", f"the file watcher ended: {cause}; files are not watched any more"
            )
        elif self._check is not None:
            self._check.ended(child, cause)

    # --- reload

    def _reload(self) -> None:
        """Have the configuration read anew, then ask for a new generation; a wrong configuration changes nothing."""
        if self._check is not None and self._state.phase < Phase.STOPPING:
            self._check.ask(self._house.settings.boot_timeout)
            return
        if self._house.embeds_object:
            log.event(
                logging.WARNING,
                "reload.same_code",
                "the application is an object of this program: a reload makes new workers of it, not new code",
            )
        self._take_certificate_anew()
        self._happen(ev.ReloadAsked(self._house.settings.workers))

    def _settings_checked(self, error: str, traceback_text: str) -> None:
        """The configuration was read in a child: read it here too if that went well."""
        if error or self._reload_settings is None:
            self._refuse_reload(error, traceback_text)
            return
        try:
            loaded = self._reload_settings()
            settings = self._keep_unchangeable(loaded.settings)
            log.setup(settings, error_fd=self._house.log_files.error_fd)
        except ForkserveError as problem:
            self._refuse_reload(str(problem), problem.traceback_text)
            return
        for warning in loaded.warnings:
            log.event(logging.WARNING, "settings.warning", warning)
        self._house.settings = settings
        self._house.hooks = loaded.hooks
        self._take_certificate_anew()
        self._happen(ev.ReloadAsked(settings.workers))

    def _take_certificate_anew(self) -> None:
        if self._house.certificates is not None:
            self._house.certificates.take_anew(self._house.settings)

    def _refuse_reload(self, why: str, traceback_text: str) -> None:
        message = f"reload refused: {why}; keeping the running generation"
        log.event(logging.ERROR, "reload.failed", message, traceback=traceback_text or None)

    def _keep_unchangeable(self, fresh: Settings) -> Settings:
        """The fresh settings with the old values of what a reload cannot change, which is said."""
        old = self._house.settings
        names = restart_needed(old, fresh)
        if names:
            log.event(
                logging.WARNING,
                "settings.kept",
                f"a reload cannot change {', '.join(names)}: restart the server for that",
            )
        kept = {name: getattr(old, name) for name in names}
        return msgspec.structs.replace(fresh, **kept)

    def _reopen_logs(self) -> None:
        files = self._house.log_files
        try:
            files.reopen()
        except ForkserveError as error:
            log.event(logging.ERROR, "logs.failed", str(error))
        log.reopened(self._house.settings, files.error_fd)
        fds = [fd for fd in (files.error_fd, files.access_fd) if fd is not None]
        order = messages.ReopenLogs(error=files.error_fd is not None, access=files.access_fd is not None)
        for child in (*self._effects.children.all("zygote"), *self._effects.children.all("worker")):
            if not child.channel_ended:
                child.channel.send(order, fds)
        log.event(logging.INFO, "logs.reopened", "log files were opened anew")

    def _refuse_upgrade(self) -> None:
        log.event(
            logging.WARNING,
            "upgrade.refused",
            "upgrading the running server (SIGUSR2) is not possible in this release: nothing was done",
        )

    def _park(self) -> None:
        """WINCH stops the workers, unless it only says that somebody has resized the terminal."""
        try:
            os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
        except OSError:
            self._happen(ev.ParkAsked())
            return
        log.event(logging.DEBUG, "park.ignored", "SIGWINCH ignored: the server runs on a terminal")

    def _reap_orphans(self) -> None:
        process.reap_orphans(self._effects.children.is_ours)

    # --- what time brings

    def _pid_of(self, worker_id: int) -> int | None:
        child = self._effects.children.find("worker", worker_id)
        return child.pid if child is not None else None

    def _look_around(self) -> None:
        now = clock.monotonic_s()
        if now < self._next_look:
            return
        late_s = now - self._next_look
        self._next_look = now + LOOK_INTERVAL_S
        self._reap_orphans()
        for worker_id, reason in self._recycling.overdue(
            self._state.workers_in(Stage.READY), self._house.settings, now
        ):
            self._happen(ev.RetireAsked(worker_id, reason))
        if self._house.certificates is not None:
            self._house.certificates.look(self._house.settings)
        self._look_at_heartbeats(now, late_s)

    def _look_at_heartbeats(self, now: float, late_s: float) -> None:
        timeout_s = self._house.settings.timeout
        if not timeout_s or late_s > LOOK_INTERVAL_S:
            return  # the master itself was held up, perhaps the whole machine: judge nobody by that
        for worker in list(self._state.workers_in(Stage.READY, Stage.DRAINING)):
            silent_s = now - self._house.scoreboard.row(worker.slot).last_sign_ns() / 1e9
            if silent_s > timeout_s:
                self._happen(ev.WorkerHung(worker.id, silent_s))
