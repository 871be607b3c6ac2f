"""Messages to the service manager."""

from __future__ import annotations

import socket
import uuid
from pathlib import Path

import pytest

from forkserve.posix.notify import Notifier


def manager(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(address)
    sock.settimeout(5)
    return sock


def test_a_message_reaches_a_managers_path(tmp_path: Path) -> None:
    with manager(f"{tmp_path}/notify") as sock:
        notifier = Notifier({"NOTIFY_SOCKET": f"{tmp_path}/notify"})
        assert notifier.send("READY=1", "STATUS=2 workers ü fine") is True
        assert sock.recv(4096) == "READY=1\nSTATUS=2 workers ü fine".encode()


def test_a_message_reaches_an_abstract_name() -> None:
    name = str(uuid.uuid4())
    with manager("\0" + name) as sock:
        assert Notifier({"NOTIFY_SOCKET": "@" + name}).send("STOPPING=1")
        assert sock.recv(4096) == b"STOPPING=1"


def test_a_line_break_cannot_smuggle_an_assignment(tmp_path: Path) -> None:
    with manager(f"{tmp_path}/notify") as sock:
        assert Notifier({"NOTIFY_SOCKET": f"{tmp_path}/notify"}).send("STATUS=broken\nREADY=1\r\nx")
        assert sock.recv(4096) == b"STATUS=broken READY=1 x"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_silent_where_nobody_asked(environ: dict[str, str]) -> None:
    notifier = Notifier(environ)
    assert notifier.send("READY=1") is False


@pytest.mark.parametrize("target", ["/nowhere/at/all", "/" + "x" * 200, "/a\0b"])
def test_a_manager_that_is_not_there_does_no_harm(target: str) -> None:
    assert Notifier({"NOTIFY_SOCKET": target}).send("READY=1") is False


def test_a_manager_that_does_not_read_never_blocks(tmp_path: Path) -> None:
    with manager(f"{tmp_path}/notify"):
        notifier = Notifier({"NOTIFY_SOCKET": f"{tmp_path}/notify"})
        answers = [notifier.send("STATUS=" + "x" * 1000) for _ in range(10_000)]
    assert answers[0] is True
    assert answers[-1] is False
