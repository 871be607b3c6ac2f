"""What a slow reader has not taken yet: bytes in memory, then in a temporary file, last a part of a user's file.

    append ──▶ [ file: younger bytes ] ──▶ [ memory: older bytes ] ──▶ flush to the socket
    append_file ──▶ [ part of a file of the application's ] ──▶ last of all

Younger bytes follow older ones into the file until the file is empty again, so order is kept.  The limit is the
connection's affair: it asks :attr:`Output.size` and waits.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from typing import IO, Final

from forkserve.posix import unpatched
from forkserve.server.transport import Transport, send_from_file

SMALL_BLOCK_BYTES_MAX: Final = 4096
"""Blocks up to this size are copied together: one by one each would weigh some 200 bytes more than it holds."""

FLUSH_BYTES: Final = 256 * 1024
"""How much is offered to the socket by one call: the kernel's send buffer seldom takes more."""

TURN_BYTES_MAX: Final = 4 * 1024 * 1024
"""How much one flush sends at most, so that a fast reader of a large file does not keep the others waiting."""


class FilePart:
    """Bytes of a file that are still to be sent.

    Attributes:
        fd: the file; owned.
        start: offset of the first byte.
        end: offset behind the last byte.
    """

    __slots__ = ("end", "fd", "start")

    def __init__(self, fd: int, start: int, end: int) -> None:
        self.fd = fd
        self.start = start
        self.end = end

    def send(self, sock: Transport) -> int:
        """Offer bytes to a non-blocking socket once; returns how many it took, 0 where the file has become shorter.

        Raises:
            BlockingIOError: it takes none.
            OSError: the peer is gone, or the file cannot be read.
        """
        sent = send_from_file(sock, self.fd, self.start, min(FLUSH_BYTES, self.end - self.start))
        self.start += sent
        return sent


class Output:
    """The unsent rest of one connection's answers.

    Args:
        memory_bytes_max: above it a temporary file takes what comes.
        directory: of that file; None is the system's.
    """

    __slots__ = (
        "_blocks",
        "_directory",
        "_file",
        "_last",
        "_memory_bytes",
        "_memory_bytes_max",
        "_small",
        "_spooled",
        "taken",
    )

    def __init__(self, memory_bytes_max: int, directory: str | None) -> None:
        self._memory_bytes_max = memory_bytes_max
        self._directory = directory
        self._blocks: deque[memoryview] = deque()
        self._small = bytearray()
        self._memory_bytes = 0
        self._file: IO[bytes] | None = None
        self._spooled = FilePart(-1, 0, 0)
        self._last: FilePart | None = None
        self.taken = 0

    @property
    def size(self) -> int:
        """Bytes that are held here; those of the application's own file are not."""
        return self._memory_bytes + self._spooled.end - self._spooled.start

    @property
    def is_empty(self) -> bool:
        """Has everything been sent?"""
        return self._last is None and self.size == 0

    def append(self, data: memoryview) -> None:
        """Add bytes at the end.

        Raises:
            OSError: the temporary file cannot be made or written.
        """
        spooled = self._spooled
        has_file_bytes = spooled.end > spooled.start
        if not has_file_bytes and self._memory_bytes + len(data) <= self._memory_bytes_max:
            if len(data) <= SMALL_BLOCK_BYTES_MAX:
                self._small += data
            else:
                self._close_small()
                self._blocks.append(data)
            self._memory_bytes += len(data)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(  # noqa: SIM115 closed by close()
                prefix="forkserve-answer-", dir=self._directory, buffering=0
            )
            spooled.fd = self._file.fileno()
        while data:
            written = os.pwrite(spooled.fd, data, spooled.end)
            spooled.end += written
            data = data[written:]

    def append_file(self, part: FilePart) -> None:
        """Add a part of a file, as the very last; its descriptor is ours from now on."""
        self._last = part

    def flush(self, sock: Transport) -> None:
        """Offer bytes to a non-blocking socket until it takes no more; :attr:`taken` counts them.

        Raises:
            OSError: the peer is gone; or the application's file has become shorter.
        """
        until = self.taken + TURN_BYTES_MAX
        try:
            while self._memory_bytes and self.taken < until:
                if not self._blocks:
                    self._close_small()
                block = self._blocks[0]
                sent = sock.send(block[:FLUSH_BYTES])
                self.taken += sent
                self._memory_bytes -= sent
                if sent == len(block):
                    self._blocks.popleft()
                else:
                    self._blocks[0] = block[sent:]
            if not self._memory_bytes:
                self._send_part(sock, self._spooled, until)
            if self._last is not None and self.size == 0:
                self._send_part(sock, self._last, until)
        except BlockingIOError:
            return
        if self._spooled.end and self._spooled.start == self._spooled.end:
            self._spooled.start = self._spooled.end = 0
            os.ftruncate(self._spooled.fd, 0)
        if self._last is not None and self._last.start == self._last.end:
            unpatched.close(self._last.fd)
            self._last = None

    def _close_small(self) -> None:
        """What was copied together is one block from now on."""
        if self._small:
            self._blocks.append(memoryview(self._small))
            self._small = bytearray()

    def _send_part(self, sock: Transport, part: FilePart, until: int) -> None:
        while part.start < part.end and self.taken < until:
            sent = part.send(sock)
            if sent == 0:
                raise OSError("the file has become shorter while it was being sent")
            self.taken += sent

    def close(self) -> None:
        """Forget what waits."""
        self._blocks.clear()
        self._small = bytearray()
        self._memory_bytes = self._spooled.start = self._spooled.end = 0
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._last is not None:
            unpatched.close(self._last.fd)
            self._last = None
