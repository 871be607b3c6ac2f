"""Processes: the only place that forks, executes, reaps and leaves.

    fork_child(main)      child runs ``main`` and never returns into its parent's frames
    fork_detached(main)   the same, two forks deep: the child's parent becomes the nearest sub-reaper (the master)
    exec_program(command) a program that inherits the named descriptors alone; python_command: a fresh interpreter's
    daemonize()           this process goes on in the background
    leave / abandon       end this process as an interpreter would, or at once
    open_pidfd / reap / signal_process    a child as a descriptor: readable when it has ended (pidfd_open(2))
    reap_orphans          as a sub-reaper or PID 1: what nobody else will wait for

All signals are blocked around a fork, so that neither side loses or misdelivers one; the child gets default
dispositions for the signals that this server handles, and the mask that its parent had.  Signals that are ``held`` stay
blocked until the child has handlers of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import setproctitle

from forkserve.posix import signals, unpatched

PR_SET_PDEATHSIG: Final = 1  # prctl(2), linux/prctl.h
PR_SET_CHILD_SUBREAPER: Final = 36
EXEC_FAILED: Final = 127
"""The exit code of a child that could not execute its program: the shell's convention (sh(1), POSIX 2.8.2)."""
CRASHED: Final = 70
"""The exit code of a forked child that ended by an exception of ours: EX_SOFTWARE (sysexits(3))."""

_fork, _waitpid = os.fork, os.waitpid  # bound before an application can patch them (as posix/unpatched.py)


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: by ``signum`` if that is not 0, else with ``code``."""

    code: int
    signum: int = 0

    def __str__(self) -> str:
        if not self.signum:
            return f"exit code {self.code}"
        try:
            return f"signal {self.signum} ({signal.Signals(self.signum).name})"
        except ValueError:
            return f"signal {self.signum}"


def set_title(text: str) -> None:
    """Show ``forkserve: text`` in ps(1)."""
    setproctitle.setproctitle(f"forkserve: {text}")


def become_subreaper() -> None:
    """Become the parent of orphaned descendants (prctl(2), PR_SET_CHILD_SUBREAPER).

    Raises:
        OSError: the kernel refused.
    """
    _prctl("PR_SET_CHILD_SUBREAPER", PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (prctl(2), PR_SET_PDEATHSIG).

    For children whose parent forked them from its only thread: the kernel looks at that thread's end.

    Raises:
        OSError: the kernel refused.
    """
    _prctl("PR_SET_PDEATHSIG", PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(name: str, option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({name}): {os.strerror(number)}")


def leave(code: int, *, at_once: bool = False) -> NoReturn:
    """End this process as an ordinary interpreter would.

    It waits for threads that are no daemons (those of a pool finish what they have), runs atexit handlers, flushes the
    standard streams and exits.  Frames of a parent that this process was forked from are not unwound.

    Args:
        at_once: do not wait for threads.
    """
    wait_for_threads = threading._shutdown  # type: ignore[attr-defined]
    for finish in (atexit._run_exitfuncs,) if at_once else (wait_for_threads, atexit._run_exitfuncs):
        try:
            finish()
        except BaseException:
            traceback.print_exc()
    abandon(code)


def abandon(code: int) -> NoReturn:
    """End this process at once, but flush what was printed."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            continue  # closed, missing or broken: nobody is left to tell
    os._exit(code)


def fork_child(main: Callable[[], NoReturn], held: Iterable[signal.Signals] = ()) -> int:
    """Fork; the child runs ``main`` with default signals; returns its pid to the parent.

    Args:
        held: signals that stay blocked in the child until it has its own handlers and unblocks them.

    Raises:
        OSError: no process could be made (EAGAIN, ENOMEM).
    """
    mask = signals.block_all()
    try:
        pid = _fork()
        if pid:
            return pid
        _run_child(main, mask.union(held))
    finally:
        signals.restore(mask)


def _run_child(main: Callable[[], NoReturn], mask: set[signal.Signals]) -> NoReturn:
    code = CRASHED
    try:
        signals.reset_in_child()
        signals.restore(mask)
        main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else CRASHED
    except BaseException:
        traceback.print_exc()
    finally:
        abandon(code)


def fork_detached(main: Callable[[], NoReturn], held: Iterable[signal.Signals] = ()) -> int:
    """Fork twice; the grandchild runs ``main`` and is adopted by the nearest sub-reaper when this returns.

    Args:
        held: as for :func:`fork_child`.

    Returns:
        The grandchild's pid.

    Raises:
        OSError: a process could not be made.
    """
    reader, writer = os.pipe()

    def detached() -> NoReturn:
        unpatched.close(writer)
        main()

    def intermediate() -> NoReturn:
        unpatched.close(reader)
        try:
            report = str(fork_child(detached, held))
        except OSError as error:
            report = f"-{error.errno or 0}"
        os.write(writer, report.encode())
        os._exit(0)

    try:
        child = fork_child(intermediate, held)
    finally:
        unpatched.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        report = pipe.read()
    with contextlib.suppress(ChildProcessError):  # the application reaps every child, or ignores SIGCHLD
        _waitpid(child, 0)
    pid = int(report or b"-0")
    if pid <= 0:
        raise OSError(-pid, f"cannot fork a worker: {os.strerror(-pid)}")
    return pid


_BOOT = """\
import sys
del sys.path[0]
home, module, function, sys.argv[:] = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
if home not in sys.path:
    sys.path.append(home)
__import__(module)
getattr(sys.modules[module], function)()
"""


def python_command(entry: str, arguments: Sequence[str] = ()) -> list[str]:
    """The command line of a fresh interpreter that calls ``entry`` ("module:function") of this very installation.

    The current directory is not on its path, whatever this process was started with; the flags of this interpreter
    (-X, -W, -O …) are passed on.
    """
    module, function = entry.split(":")
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *flags, "-c", _BOOT, home, module, function, *arguments]


def exec_program(
    command: Sequence[str],
    environ: Mapping[str, str],
    inherit: Iterable[int] = (),
    held: Iterable[signal.Signals] = (),
) -> int:
    """Fork and execute ``command``; only ``inherit`` and the standard streams stay open in it.

    The kernel kills it when this process ends without having ended it, whatever it is doing then.

    Args:
        held: as for :func:`fork_child`; a signal that comes while the program starts waits for its handlers.

    Returns:
        The child's pid.  A program that cannot be executed ends with :data:`EXEC_FAILED`.
    """
    descriptors = tuple(inherit)

    def child() -> NoReturn:
        die_with_parent()
        for fd in descriptors:
            os.set_inheritable(fd, True)
        try:
            os.execve(command[0], list(command), dict(environ))
        except OSError as error:
            os.write(2, f"forkserve: error: cannot execute {command[0]}: {error.strerror}\n".encode())
            os._exit(EXEC_FAILED)

    return fork_child(child, held)


def daemonize() -> Callable[[], None]:
    """Go on in the background: a new session without a terminal (daemon(7)).

    Returns:
        To be called once nothing can be refused any more: standard streams go to /dev/null, and the process that was
        started exits with code 0.  It exits with 1 when this one ends before.  Other descriptors stay open.
    """
    reader, writer = os.pipe()
    if _fork():
        unpatched.close(writer)
        os._exit(0 if os.read(reader, 1) else 1)
    unpatched.close(reader)
    os.setsid()
    if _fork():
        os._exit(0)

    def settled() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        if null > 2:
            unpatched.close(null)
        os.write(writer, b"1")
        unpatched.close(writer)

    return settled


def open_pidfd(pid: int) -> int | None:
    """A descriptor that is readable once the process has ended; None when there is no such process."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def signal_process(pidfd: int, signum: int) -> bool:
    """Send a signal to exactly that process; False when it is gone (pidfd_send_signal(2))."""
    try:
        signal.pidfd_send_signal(pidfd, signum)
    except ProcessLookupError:
        return False
    return True


def reap(pidfd: int) -> ExitStatus | None:
    """Take the exit status of a child that has ended; None while it runs.

    A child that somebody else has reaped counts as ended with code 0: the fact that it is gone is what matters.
    """
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return ExitStatus(0)
    return None if result is None else _status_of(result)


def _status_of(result: os.waitid_result) -> ExitStatus:
    if result.si_code == os.CLD_EXITED:
        return ExitStatus(result.si_status)
    return ExitStatus(128 + result.si_status, result.si_status)


def reap_orphans(is_ours: Callable[[int], bool], limit: int = 1000) -> int:
    """Reap adopted children that nobody of this house waits for; stops at the first that is ours.

    Peeks before it reaps (WNOWAIT), so that a child with a pidfd keeps its status for :func:`reap`.

    Returns:
        How many were reaped.
    """
    for count in range(limit):
        try:
            result = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return count
        if result is None or is_ours(result.si_pid):
            return count
        os.waitid(os.P_PID, result.si_pid, os.WEXITED | os.WNOHANG)
    return limit
