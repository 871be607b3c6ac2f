"""What a slow reader has not taken yet: a queue of bytes in memory, then in a temporary file.

    append ──▶ [ file: younger bytes ] ──▶ [ memory: older bytes ] ──▶ flush to the socket

Younger bytes follow older ones into the file until the file is empty again, so order is kept.  The limit is the
connection's affair: it asks :attr:`Output.size` and waits.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections import deque
from typing import IO, Final

FLUSH_BYTES: Final = 256 * 1024
"""How much is offered to the socket by one call: the kernel's send buffer seldom takes more."""


class Output:
    """The unsent rest of one connection's answers.

    Args:
        memory_bytes_max: above it a temporary file takes what comes.
        directory: of that file; None is the system's.
    """

    __slots__ = ("_blocks", "_directory", "_file", "_file_end", "_file_start", "_memory_bytes", "_memory_bytes_max")

    def __init__(self, memory_bytes_max: int, directory: str | None) -> None:
        self._memory_bytes_max = memory_bytes_max
        self._directory = directory
        self._blocks: deque[memoryview] = deque()
        self._memory_bytes = 0
        self._file: IO[bytes] | None = None
        self._file_start = self._file_end = 0

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return self._memory_bytes + self._file_end - self._file_start

    def append(self, data: memoryview) -> None:
        """Add bytes at the end.

        Raises:
            OSError: the temporary file cannot be made or written.
        """
        has_file_bytes = self._file_end > self._file_start
        if not has_file_bytes and self._memory_bytes + len(data) <= self._memory_bytes_max:
            self._blocks.append(data)
            self._memory_bytes += len(data)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(  # noqa: SIM115 closed by close()
                prefix="forkserve-answer-", dir=self._directory, buffering=0
            )
        while data:
            written = os.pwrite(self._file.fileno(), data, self._file_end)
            self._file_end += written
            data = data[written:]

    def flush(self, sock: socket.socket) -> int:
        """Offer bytes to a non-blocking socket until it takes no more; returns how many it took.

        Raises:
            OSError: the peer is gone.
        """
        taken = 0
        try:
            while self._blocks:
                block = self._blocks[0]
                sent = sock.send(block[:FLUSH_BYTES])
                taken += sent
                self._memory_bytes -= sent
                if sent == len(block):
                    self._blocks.popleft()
                else:
                    self._blocks[0] = block[sent:]
            while self._file_start < self._file_end:
                assert self._file is not None
                count = min(FLUSH_BYTES, self._file_end - self._file_start)
                sent = os.sendfile(sock.fileno(), self._file.fileno(), self._file_start, count)
                taken += sent
                self._file_start += sent
        except BlockingIOError:
            return taken
        if self._file is not None and self._file_end:
            self._file_start = self._file_end = 0
            os.ftruncate(self._file.fileno(), 0)
        return taken

    def close(self) -> None:
        """Forget what waits."""
        self._blocks.clear()
        self._memory_bytes = self._file_start = self._file_end = 0
        if self._file is not None:
            self._file.close()
            self._file = None
