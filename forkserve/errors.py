"""The errors that end a command, each carrying the exit code that it ends it with; and the one that ends a call.

    ForkserveError          1   the system said no, or something broke
     ├─ SettingsError       2   a setting is wrong: nothing was started
     ├─ ListenError         1   an address cannot be listened on
     ├─ PrivilegeError      1   user, group or directory cannot be changed to
     └─ BootError           3   the application, or the first worker, did not come up
         └─ AppLoadError    3   the application cannot be imported or is not callable

Lower floors raise them; only the command line exits.  The text of each says what was tried, with which value, what
the system answered and what to do next.
"""

from __future__ import annotations

from typing import ClassVar


class ForkserveError(Exception):
    """Something that ends the command with one clear line and :attr:`exit_code`.

    Args:
        message: one line that says what failed.
        traceback_text: the traceback of the user's code, beginning at its own frame, where that is what failed.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, traceback_text: str = "") -> None:
        super().__init__(message)
        self.traceback_text = traceback_text


class SettingsError(ForkserveError):
    """A setting, configuration file or combination of settings is wrong; nothing was started."""

    exit_code = 2


class ListenError(ForkserveError):
    """An address cannot be listened on."""


class PrivilegeError(ForkserveError):
    """User, group or working directory cannot be changed to."""


class BootError(ForkserveError):
    """The application or the first worker did not come up."""

    exit_code = 3


class AppLoadError(BootError):
    """The application cannot be imported, its attribute is missing, or it is not callable."""


class RequestTimeout(BaseException):
    """Raised in a call of the application that has taken longer than ``request_timeout``.

    The client has its 504 by then; the exception is there to clean up behind the call.  It is no :class:`Exception`, so
    that ``except Exception`` in an application does not swallow it by accident.
    """
