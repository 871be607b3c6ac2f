"""The request body on its way in: framed, counted, kept in memory and then in a temporary file.

    connection bytes ── BodyReader.feed ──▶ Spool ──▶ wsgi.input (a file object at its beginning)
                                             └ over body_memory: an unnamed temporary file

The whole body is here before the application is called, so a client that is slow or that leaves costs no call, and
what the application reads is never a part that looks like the whole.
"""

from __future__ import annotations

import io
import tempfile
from contextlib import suppress
from typing import IO, Final, Protocol

from forkserve import log
from forkserve.http.chunked import ChunkedDecoder
from forkserve.http.errors import RefusedRequest
from forkserve.http.request import CHUNKED


class BodySettings(Protocol):
    """The settings that bodies read."""

    @property
    def body_memory(self) -> int: ...
    @property
    def tmp_upload_dir(self) -> str | None: ...
    @property
    def limit_request_body(self) -> int: ...
    @property
    def limit_request_fields(self) -> int: ...
    @property
    def limit_request_field_size(self) -> int: ...


class EmptyInput(io.RawIOBase):
    """``wsgi.input`` of a request without a body: always at its end.  One object serves all such requests."""

    def readable(self) -> bool:
        """It may be read, for nothing."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Nothing."""
        return b""

    def readline(self, size: int | None = -1, /) -> bytes:
        """Nothing."""
        return b""

    def readinto(self, buffer: object, /) -> int:
        """Nothing."""
        return 0

    def close(self) -> None:
        """Stays open: the next request has the same object."""


EMPTY_INPUT: Final = EmptyInput()


class BodyReader:
    """Takes a body from the bytes of a connection.

    Args:
        length: its bytes, or CHUNKED.
        settings: memory, directory and limits.
    """

    __slots__ = ("_decoder", "_file", "_left", "_memory_bytes_max", "_parts", "_settings", "size")

    def __init__(self, length: int, settings: BodySettings) -> None:
        self._settings = settings
        self._memory_bytes_max = settings.body_memory
        self._parts: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._left = length
        self._decoder: ChunkedDecoder | None = None
        self.size = 0
        if length == CHUNKED:
            self._decoder = ChunkedDecoder(
                body_bytes_max=settings.limit_request_body,
                trailers_max=settings.limit_request_fields,
                trailer_bytes_max=settings.limit_request_field_size,
            )

    def feed(self, data: bytes) -> bytes | None:
        """Take the next bytes; None while the body goes on, else the bytes that follow it.

        Raises:
            RefusedRequest: the framing is malformed, the body over a limit, or there is no room for it.
        """
        if self._decoder is not None:
            self._keep(b"".join(self._decoder.feed(data)))  # one object a read, however small the chunks are
            return self._decoder.leftover() if self._decoder.is_done else None
        rest = b""
        if len(data) > self._left:
            data, rest = data[: self._left], data[self._left :]
        self._left -= len(data)
        self._keep(data)
        return rest if self._left == 0 else None

    def open(self) -> IO[bytes]:
        """The body as a file object at its beginning; :meth:`close` ends a temporary file."""
        if self._file is None:
            return io.BytesIO(b"".join(self._parts))
        try:
            self._file.flush()
            self._file.seek(0)
        except OSError as error:
            raise self._no_room(error) from error
        return self._file

    def close(self) -> None:
        """Free memory and file: the request is over, or will not run."""
        self._parts.clear()
        if self._file is not None:
            with suppress(OSError):  # bytes that no longer matter, and for which there is no room
                self._file.close()
            self._file = None

    def _keep(self, block: bytes) -> None:
        self.size += len(block)
        if self._file is None and self.size <= self._memory_bytes_max:
            self._parts.append(block)
            return
        try:
            if self._file is None:
                directory = self._settings.tmp_upload_dir
                self._file = tempfile.TemporaryFile(prefix="forkserve-body-", dir=directory)  # noqa: SIM115 closed by close()
                self._file.writelines(self._parts)
                self._parts.clear()
            self._file.write(block)
        except OSError as error:
            raise self._no_room(error) from error

    def _no_room(self, error: OSError) -> RefusedRequest:
        log.event(
            log.ERROR,
            "body.unstored",
            f"a request body cannot be stored in a temporary file ({error.strerror}): make room or set tmp_upload_dir",
            tmp_upload_dir=self._settings.tmp_upload_dir,
            bytes=self.size,
        )
        return RefusedRequest(507, "the body cannot be stored")
