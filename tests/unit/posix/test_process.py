"""Forking, executing and reaping, with real processes."""

from __future__ import annotations

import os
import select
import signal
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from forkserve.posix import process
from forkserve.posix.process import ExitStatus


def end_of(pid: int) -> ExitStatus:
    pidfd = process.open_pidfd(pid)
    assert pidfd is not None
    try:
        assert select.select([pidfd], [], [], 10)[0], "the child did not end"
        status = process.reap(pidfd)
        assert status is not None
        return status
    finally:
        os.close(pidfd)


def test_a_childs_exit_code_and_signal_are_told() -> None:
    assert end_of(process.fork_child(lambda: process.leave(7))) == ExitStatus(7)

    def killed() -> NoReturn:
        os.kill(os.getpid(), signal.SIGTERM)
        process.leave(0)

    status = end_of(process.fork_child(killed))
    assert status.signum == signal.SIGTERM
    assert str(status) == "signal 15 (SIGTERM)"


def test_a_child_never_returns_into_its_parents_frames(capfd: pytest.CaptureFixture[str]) -> None:
    def returns() -> NoReturn:
        raise ValueError("from the child")

    assert end_of(process.fork_child(returns)).code == process.CRASHED
    assert "ValueError: from the child" in capfd.readouterr().err


def test_a_child_has_default_signals_and_its_parents_mask() -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:

        def child() -> NoReturn:
            is_default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            process.leave(0 if is_default and not signal.pthread_sigmask(signal.SIG_BLOCK, ()) else 1)

        assert end_of(process.fork_child(child)) == ExitStatus(0)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_leaving_runs_exit_handlers_and_flushes(capfd: pytest.CaptureFixture[str]) -> None:
    def child() -> NoReturn:
        import atexit

        atexit._clear()
        atexit.register(lambda: print("handler ran", end=""))
        process.leave(0)

    assert end_of(process.fork_child(child)) == ExitStatus(0)
    assert "handler ran" in capfd.readouterr().out


def test_a_detached_child_is_adopted_by_the_subreaper(tmp_path: Path) -> None:
    report = tmp_path / "report"

    def subreaper() -> NoReturn:
        process.become_subreaper()

        def middle() -> NoReturn:
            pid = process.fork_detached(lambda: process.leave(9))
            report.write_text(str(pid))
            process.leave(0)

        end_of(process.fork_child(middle))
        process.leave(end_of(int(report.read_text())).code)

    assert end_of(process.fork_child(subreaper)) == ExitStatus(9)


def test_orphans_are_reaped_but_never_what_is_ours() -> None:
    def subreaper() -> NoReturn:
        process.become_subreaper()
        ours = process.fork_child(lambda: process.leave(5))
        os.waitid(os.P_PID, ours, os.WEXITED | os.WNOWAIT)
        assert process.reap_orphans(lambda pid: pid == ours) == 0
        assert end_of(ours) == ExitStatus(5)
        stranger = process.fork_child(lambda: process.leave(6))
        os.waitid(os.P_PID, stranger, os.WEXITED | os.WNOWAIT)
        assert process.reap_orphans(lambda pid: False) == 1
        assert process.reap_orphans(lambda pid: False) == 0
        process.leave(0)

    assert end_of(process.fork_child(subreaper)) == ExitStatus(0)


def test_a_fresh_interpreter_has_our_package_and_not_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "http.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "forkserve.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    command = process.python_command("forkserve.clock:monotonic_s", ["argument"])
    assert end_of(process.exec_program(command, os.environ)) == ExitStatus(0)
    assert capfd.readouterr().err == ""


def test_only_named_descriptors_are_inherited() -> None:
    kept, kept_other = os.pipe()
    lost, lost_other = os.pipe()
    code = f"import os, sys; os.fstat({kept}); sys.exit(0 if not os.path.exists('/proc/self/fd/{lost}') else 1)"
    assert end_of(process.exec_program([sys.executable, "-c", code], os.environ, [kept])) == ExitStatus(0)
    assert not os.get_inheritable(kept)
    for fd in (kept, kept_other, lost, lost_other):
        os.close(fd)


def test_a_program_that_cannot_be_executed_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    assert end_of(process.exec_program(["/no/such/program"], {})) == ExitStatus(process.EXEC_FAILED)
    assert "cannot execute /no/such/program: No such file or directory" in capfd.readouterr().err


def test_a_signal_to_who_has_gone_is_false() -> None:
    pid = process.fork_child(lambda: process.leave(0))
    pidfd = process.open_pidfd(pid)
    assert pidfd is not None
    assert select.select([pidfd], [], [], 10)[0], "the child did not end"
    assert process.reap(pidfd) == ExitStatus(0)
    assert process.signal_process(pidfd, signal.SIGTERM) is False
    assert process.open_pidfd(pid) is None
    os.close(pidfd)
