"""The pid file: who serves here, for operators and init scripts.

A file left behind by a server that was killed does not stop the next start; one that names a live process does.
"""

from __future__ import annotations

import os
from contextlib import suppress

from forkserve.errors import ForkserveError


class PidFile:
    """Written on construction, removed by :meth:`remove` as long as it still names this process.

    Raises:
        ForkserveError: another process serves under this file, or it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        other = _live_pid(self._path)
        if other is not None and other != os.getpid():
            raise ForkserveError(
                f"pid file {self._path} names process {other}, which is alive: stop that server first, or give this "
                "one a pid file of its own"
            )
        fresh = f"{self._path}.{os.getpid()}"
        try:
            with open(fresh, "w", encoding="ascii") as file:
                file.write(f"{os.getpid()}\n")
            os.replace(fresh, self._path)
        except OSError as error:
            with suppress(OSError):  # it may not have come to be
                os.unlink(fresh)
            raise ForkserveError(
                f"cannot write pid file {self._path} ({error.strerror}): make its directory writable or choose another"
            ) from error

    def remove(self) -> None:
        """Remove the file unless a successor has put its own pid into it."""
        if _pid_in(self._path) == os.getpid():
            with suppress(OSError):  # its directory is no longer ours to write; the next start takes no notice of it
                os.unlink(self._path)


def _pid_in(path: str) -> int | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return int(file.read(32).strip())
    except (OSError, ValueError):
        return None  # no file, or none of ours: nobody to respect


def _live_pid(path: str) -> int | None:
    pid = _pid_in(path)
    if pid is None or pid <= 0:
        return None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # OverflowError: a number that no process can have
        return None
    except PermissionError:
        return pid
    return pid
