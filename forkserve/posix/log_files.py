"""The log files that the master opens for everybody.

The master opens them with its own rights, zygotes and workers inherit the descriptors, so that a log in a directory
of root's works for workers without privileges.  Reopening (after logrotate(8) has moved the files) opens the names
anew and puts the new files in the place of the old descriptors (dup2(2)): whoever holds the number need not know.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from forkserve.errors import ForkserveError
from forkserve.log import open_file


class LogFiles:
    """The error log and the access log, as far as they are files.

    Attributes:
        error_fd, access_fd: open descriptors; None where the log is a standard stream or off.

    Raises:
        ForkserveError: a file cannot be opened.
    """

    def __init__(self, errorlog: str, accesslog: str | None) -> None:
        self._paths = (errorlog, accesslog)
        self.error_fd = None if errorlog == "-" else open_file(os.path.abspath(errorlog))
        self.access_fd = None if accesslog in (None, "-") else open_file(os.path.abspath(accesslog))

    def _named(self) -> Iterator[tuple[str, int]]:
        for path, fd in zip(self._paths, (self.error_fd, self.access_fd), strict=True):
            if fd is not None and path is not None:
                yield os.path.abspath(path), fd

    def reopen(self) -> None:
        """Open the names anew, in the place of the old descriptors.

        Raises:
            ForkserveError: a file cannot be opened; the old one is kept and the others are reopened all the same.
        """
        failed: list[str] = []
        for path, fd in self._named():
            try:
                fresh = open_file(path)
            except ForkserveError as error:
                failed.append(str(error))
                continue
            os.dup2(fresh, fd, inheritable=False)
            os.close(fresh)
        if failed:
            raise ForkserveError(f"{'; '.join(failed)}; going on with the old file")

    def close(self) -> None:
        """Close them; may be repeated."""
        for _path, fd in self._named():
            os.close(fd)
        self.error_fd = self.access_fd = None
