"""Telling the service manager how things stand: sd_notify(3) without its library.

    Notifier(environ) ─ send("READY=1", "STATUS=…") ─▶ one datagram to $NOTIFY_SOCKET

Promises: silent where nobody asked to be told, never blocks, never raises for what the other side does.

Left to others: what is said and when (the master, from the same place as its log lines).
"""

from __future__ import annotations

import socket
from collections.abc import Mapping


class Notifier:
    """The way to the service manager named in ``NOTIFY_SOCKET``, if there is one."""

    __slots__ = ("_target",)

    def __init__(self, environ: Mapping[str, str]) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        if name.startswith("@"):
            self._target = "\0" + name[1:]
        elif name.startswith("/"):
            self._target = name
        else:
            self._target = ""  # unset, or a vsock: address of a virtual machine's manager, which we do not speak to

    def send(self, *assignments: str) -> bool:
        """Send ``VARIABLE=value`` assignments as one message, e.g. ``send("READY=1", "STATUS=2 workers")``.

        A line break within an assignment becomes a space, since it would begin another assignment.

        Returns:
            False when the message did not go out: nobody to tell, or the manager's queue is full (say it again later).
        """
        if not self._target:
            return False
        message = "\n".join(" ".join(assignment.splitlines()) for assignment in assignments)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(message.encode("utf-8", "backslashreplace"), socket.MSG_NOSIGNAL, self._target)
        except (OSError, ValueError):
            return False  # told by the value; a manager that went away is no reason to stop serving
        return True
