"""The request body on its way in: framed and counted, then kept (the default) or read by the application as it comes.

    connection bytes ── BodyFraming ──┬─▶ BodyReader ──▶ wsgi.input: a file object at its beginning
                                      │     └ over body_memory: an unnamed temporary file
                                      └─▶ BodyStream ──▶ wsgi.input: waits for the client    (request_buffering = off)

Kept, the whole body is here before the application is called, so a client that is slow or that leaves costs no call.
Either way what the application reads is never a part that looks like the whole: a body that is cut raises.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, Final, Protocol

from forkserve import log
from forkserve.http.chunked import ChunkedDecoder
from forkserve.http.errors import RefusedRequest
from forkserve.http.request import CHUNKED

READ_BYTES_MAX: Final = 128 * 1024
"""One read of a body."""
READ_BYTES_MIN: Final = 1024
CHUNKS_OF_A_READ: Final = 128
"""A read of a chunked body is made as small as will hold so many, since each costs half a microsecond, and all others
wait for its end: with full reads, fifty clients that send chunks of one byte delay every request by a second."""


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


class BodyFraming:
    """Where a body ends, by Content-Length or the chunked coding.

    Args:
        length: its bytes, or CHUNKED.
        settings: limits.

    Attributes:
        left: bytes that are still to come, where the length was told.
        read_bytes: how much to read of it next, at most.
    """

    __slots__ = ("_decoder", "left", "read_bytes")

    def __init__(self, length: int, settings: BodySettings) -> None:
        self.left = length
        self.read_bytes = READ_BYTES_MAX if length != CHUNKED else READ_BYTES_MIN
        self._decoder: ChunkedDecoder | None = None
        if length == CHUNKED:
            self._decoder = ChunkedDecoder(
                body_bytes_max=settings.limit_request_body,
                trailers_max=settings.limit_request_fields,
                trailer_bytes_max=settings.limit_request_field_size,
            )

    @property
    def is_chunked(self) -> bool:
        """Is it in the chunked coding?"""
        return self._decoder is not None

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Take the next bytes of the connection.

        Returns:
            What of the body is in them; and None while the body goes on, else the bytes that follow it.

        Raises:
            RefusedRequest: the framing is malformed, or the body over a limit.
        """
        if self._decoder is not None:
            blocks = self._decoder.feed(data)
            mean_bytes = len(data) // max(1, len(blocks))
            self.read_bytes = max(READ_BYTES_MIN, min(READ_BYTES_MAX, CHUNKS_OF_A_READ * mean_bytes))
            block = b"".join(blocks)  # one object a read, however small the chunks are
            return block, self._decoder.leftover() if self._decoder.is_done else None
        rest = b""
        if len(data) > self.left:
            data, rest = data[: self.left], data[self.left :]
        self.left -= len(data)
        return data, rest if self.left == 0 else None


class BodyReader:
    """Takes a body from the bytes of a connection and keeps it.

    Args:
        framing: where it ends.
        settings: memory and directory.
    """

    __slots__ = ("_file", "_memory", "_settings", "framing", "size")

    def __init__(self, framing: BodyFraming, settings: BodySettings) -> None:
        self._settings = settings
        self.framing = framing
        self._memory = io.BytesIO()  # not a list of what came: the pieces of a slow client outweigh their bytes
        self._file: IO[bytes] | None = None
        self.size = 0

    @property
    def as_sent(self) -> bytes | None:
        """The bytes of the connection that it came in; None where they are not at hand (in a file, chunked)."""
        return self._memory.getvalue() if self._file is None and not self.framing.is_chunked else None

    def feed(self, data: bytes) -> bytes | None:
        """Take the next bytes; None while the body goes on, else the bytes that follow it.

        Raises:
            RefusedRequest: the framing is malformed, the body over a limit, or there is no room for it.
        """
        block, rest = self.framing.feed(data)
        self._keep(block)
        return rest

    def open(self) -> IO[bytes]:
        """The body as a file object at its beginning; :meth:`close` ends a temporary file."""
        opened = self._memory if self._file is None else self._file
        try:
            opened.seek(0)
        except OSError as error:
            raise self._no_room(error) from error
        return opened

    def close(self) -> None:
        """Free memory and file: the request is over, or will not run."""
        self._memory = io.BytesIO()  # the old one may be the application's still
        if self._file is not None:
            with suppress(OSError):  # bytes that no longer matter, and for which there is no room
                self._file.close()
            self._file = None

    def _keep(self, block: bytes) -> None:
        self.size += len(block)
        if self._file is None and self.size <= self._settings.body_memory:
            self._memory.write(block)
            return
        try:
            if self._file is None:
                directory = self._settings.tmp_upload_dir
                self._file = tempfile.TemporaryFile(prefix="forkserve-body-", dir=directory)  # noqa: SIM115 closed by close()
                self._file.write(self._memory.getbuffer())
                self._memory = io.BytesIO()
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


class BodyRefused(RefusedRequest, OSError):
    """A body that is read as it comes is cut, malformed, too slow or too large.

    An OSError, since that is what frameworks expect of ``wsgi.input``; where the application lets it pass, the client
    gets its status.
    """


class BodyStream(io.RawIOBase):
    """``wsgi.input`` that waits for the client; behind an :class:`io.BufferedReader` for the rest of the face.

    Args:
        framing: where the body ends.
        data: what has come of it already.
        receive: waits for the next bytes of the connection; raises what ends the body.
    """

    def __init__(self, framing: BodyFraming, data: bytes, receive: Callable[[], bytes]) -> None:
        self.framing = framing
        self._receive = receive
        self._block = memoryview(b"")
        self._error: Exception | None = None
        self.rest: bytes | None = None
        if data:
            self._take(data)

    @property
    def is_broken(self) -> bool:
        """Has it raised, so that its end will not be found?"""
        return self._error is not None

    def readable(self) -> bool:
        """It may be read."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Read up to the size of ``buffer``; 0 at the end of the body.

        Raises:
            BodyRefused: the body is cut, malformed, too slow or too large; again at each further call.
            ClientGone: the client has left.
        """
        while not self._block:
            if self._error is not None:
                raise self._error
            if self.rest is not None:
                return 0
            try:
                self._take(self._receive())
            except Exception as error:
                self._error = error
        block = self._block[: len(buffer)]
        buffer[: len(block)] = block
        self._block = self._block[len(block) :]
        return len(block)

    def end(self) -> None:
        """The request is over: an application that has kept this object reads nothing that belongs to others."""
        self._error = self._error or ValueError("the request is over, its body cannot be read any more")
        self._block = memoryview(b"")

    def _take(self, data: bytes) -> None:
        try:
            block, self.rest = self.framing.feed(data)
        except RefusedRequest as refused:
            self._error = BodyRefused(refused.status, refused.reason)
            return
        self._block = memoryview(block)
