"""What clients do does not stay in a worker: large bodies, refused requests, connections broken off.

    warm up ─▶ look at the worker (/proc/PID: memory, descriptors) ─▶ thousands of bad clients ─▶ look again

Memory is read as the kernel counts it (proc(5), status): VmHWM is the most that ever was resident, RssAnon what is
the process's own now, without files.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness import DEADLINE_S, Server, read_all
from tests.integration.conftest import Start

MIB = 1 << 20
UPLOAD_GROWTH_MAX = 4 * MIB
"""The buffers of one connection, whatever the body's size."""
GROWTH_MAX = 1 * MIB
"""After thousands of bad clients: what the allocator may keep."""
BAD_CLIENTS = 10_000
WAVE = 100
WARMING_CLIENTS = 2_000
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

COUNTS = """
def app(environ, start_response):
    count = 0
    while block := environ["wsgi.input"].read(65536):
        count += len(block)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d bytes" % count]
"""


def memory_of(pid: int) -> dict[str, int]:
    """VmHWM, RssAnon and so on, in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    return {name: int(kib) * 1024 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", text)}


def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def upload(server: Server, coding: str, size: int) -> None:
    """Send a body of that size, and see that all of it has reached the application."""
    block = bytes(MIB)
    framed = block if coding == "Content-Length" else b"%x\r\n%b\r\n" % (MIB, block)
    field = f"Content-Length: {size}" if coding == "Content-Length" else "Transfer-Encoding: chunked"
    with server.raw() as client:
        client.sendall(f"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{field}\r\n\r\n".encode())
        for _ in range(size // MIB):
            client.sendall(framed)
        if coding == "chunked":
            client.sendall(b"0\r\n\r\n")
        assert read_all(client, 60).endswith(f"\r\n\r\n{size} bytes".encode())


@pytest.mark.parametrize(
    ("coding", "size"), [("Content-Length", 1 << 30), ("chunked", 256 * MIB)], ids=["1 GiB", "256 MiB, chunked"]
)
def test_an_upload_does_not_grow_the_worker(
    start: Start, write_app: Callable[..., None], tmp_path: Path, coding: str, size: int
) -> None:
    assert shutil.disk_usage(tmp_path).free > 2 * size, f"{tmp_path} has not enough room for this test"
    write_app(code=COUNTS)
    server = start("app:app", "--tmp-upload-dir", str(tmp_path), workers=1)
    (worker,) = server.worker_pids()
    upload(server, coding, MIB)  # warms up
    before = memory_of(worker)
    upload(server, coding, size)
    after = memory_of(worker)
    assert after["VmHWM"] - before["VmHWM"] < UPLOAD_GROWTH_MAX
    assert after["RssAnon"] - before["RssAnon"] < UPLOAD_GROWTH_MAX


HEAD = b"POST /%d HTTP/1.1\r\nHost: a\r\n"
BAD = {
    "refused and reset": HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "reset in the middle of a head": HEAD + b"X-%d: ",
    "reset in the middle of a body": HEAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 1000,
    "reset in the middle of a chunked body": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3e8\r\nxxx",
    "reset before the answer is read": HEAD + b"\r\n",
}


@pytest.mark.parametrize("what", BAD)
def test_thousands_of_bad_clients_leave_nothing_behind(start: Start, write_app: Callable[..., None], what: str) -> None:
    write_app()
    server = start("app:app", workers=1)
    (worker,) = server.worker_pids()
    descriptors = descriptors_of(worker)
    send_bad_clients(server, BAD[what], WARMING_CLIENTS)
    before = memory_of(worker)["RssAnon"]
    send_bad_clients(server, BAD[what], BAD_CLIENTS)
    assert memory_of(worker)["RssAnon"] - before < GROWTH_MAX
    server.wait_until(lambda: descriptors_of(worker) == descriptors, "descriptors as before")
    assert server.worker_pids() == [worker]


def send_bad_clients(server: Server, data: bytes, count: int) -> None:
    """In waves: all of one connect and send; once the worker has read what they sent, all are over at once."""
    address = ("127.0.0.1", server.port)
    for first in range(0, count, WAVE):
        with ExitStack() as wave:
            clients = [wave.enter_context(socket.create_connection(address, DEADLINE_S)) for _ in range(WAVE)]
            for number, client in enumerate(clients, first):
                client.sendall(data.replace(b"%d", b"%d" % number))
            assert server.get("/").status == 200  # connected last: those before it have been accepted and read
            for client in clients:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    assert server.get("/").status == 200
