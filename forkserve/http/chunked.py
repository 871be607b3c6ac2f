"""The chunked coding (RFC 9112 section 7.1), read piece by piece.

    SIZE ── size line ──▶ DATA ── all of it ──▶ DATA_END ── CRLF ──▶ SIZE
      └── size 0 ──▶ TRAILERS ── empty line ──▶ DONE

Promises: the same answer however the bytes were cut; a limit for every line; what follows the body is handed back
untouched.  Trailer fields are checked and dropped: they are too late for the environ.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from forkserve.http.errors import RefusedRequest

SIZE_LINE_BYTES_MAX: Final = 4096
"""One size line with its extensions; the same as Go's net/http."""

EXTENSION_BYTES_MAX: Final = 16 * 1024
"""All extensions of one body together, so that they cannot outweigh the data (hyper: 16 KiB)."""

_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})((?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?)")
"""chunk-size [ chunk-ext ]; fifteen digits stay below 63 bits."""

_PLAIN_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
"""One without extensions."""

_TRAILER_LINE: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class _State(Enum):
    SIZE = "size"
    DATA = "data"
    DATA_END = "data end"
    TRAILERS = "trailers"
    DONE = "done"


class ChunkedDecoder:
    """Decodes one body.

    Args:
        body_bytes_max: of the decoded body (413); 0 is no limit.
        trailers_max: how many trailer fields (431).
        trailer_bytes_max: of one trailer field line (431).
    """

    __slots__ = (
        "_body_bytes",
        "_body_bytes_max",
        "_chunk_left",
        "_extension_bytes",
        "_pending",
        "_state",
        "_trailer_bytes_max",
        "_trailers",
        "_trailers_max",
    )

    def __init__(self, *, body_bytes_max: int = 0, trailers_max: int = 100, trailer_bytes_max: int = 8190) -> None:
        self._body_bytes_max = body_bytes_max
        self._trailers_max = trailers_max
        self._trailer_bytes_max = trailer_bytes_max
        self._state = _State.SIZE
        self._pending = b""
        self._chunk_left = 0
        self._body_bytes = 0
        self._extension_bytes = 0
        self._trailers = 0

    @property
    def is_done(self) -> bool:
        """Has the whole body come?  An end of the stream before is a cut body."""
        return self._state is _State.DONE

    def leftover(self) -> bytes:
        """What came after the body; to be asked once :attr:`is_done`."""
        return self._pending

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the connection; returns the blocks of the body that they hold.

        Raises:
            RefusedRequest: the coding is malformed or over a limit.
        """
        blocks: list[bytes] = []
        data = self._pending + data if self._pending else data
        position = 0
        while self._state is not _State.DONE:
            if self._state is _State.SIZE:
                position = self._take_whole_chunks(data, position, blocks)
            if self._state is _State.DATA:
                block = data[position : position + self._chunk_left]
                if not block:
                    break
                blocks.append(block)
                position += len(block)
                self._chunk_left -= len(block)
                if self._chunk_left == 0:
                    self._state = _State.DATA_END
            elif self._state is _State.DATA_END:
                ending = data[position : position + 2]
                if not b"\r\n".startswith(ending):
                    raise RefusedRequest(400, "chunk does not end where its size says")
                if len(ending) < 2:
                    break
                position += 2
                self._state = _State.SIZE
            else:
                line_end = data.find(b"\r\n", position)
                if line_end < 0:
                    self._check_partial_line(data[position:])
                    break
                line = data[position:line_end]
                position = line_end + 2
                if self._state is _State.SIZE:
                    self._take_size_line(line)
                else:
                    self._take_trailer_line(line)
        self._pending = data[position:]
        return blocks

    def _take_whole_chunks(self, data: bytes, position: int, blocks: list[bytes]) -> int:
        """Take chunks that are here whole, without extensions, and right in every way; all else is for the states.

        A read may hold twenty thousand chunks of one byte: this costs a quarter of what the states do.
        """
        limit, total = self._body_bytes_max, self._body_bytes
        while (match := _PLAIN_SIZE_LINE.match(data, position)) is not None:
            start = match.end()
            size = int(match[1], 16)
            end = start + size
            if size == 0 or data[end : end + 2] != b"\r\n" or 0 < limit < total + size:
                break
            total += size
            blocks.append(data[start:end])
            position = end + 2
        self._body_bytes = total
        return position

    def _check_partial_line(self, part: bytes) -> None:
        longest = SIZE_LINE_BYTES_MAX if self._state is _State.SIZE else self._trailer_bytes_max
        if len(part) > longest + 1:
            status = 400 if self._state is _State.SIZE else 431
            raise RefusedRequest(status, f"chunk size or trailer line of more than {longest} bytes")
        if b"\n" in part or b"\r" in part[:-1]:
            raise RefusedRequest(400, "bare CR or LF in the chunked coding")

    def _take_size_line(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line) if len(line) <= SIZE_LINE_BYTES_MAX else None
        if match is None:
            raise RefusedRequest(400, "invalid chunk size")
        size = int(match[1], 16)
        self._extension_bytes += len(match[2])
        if self._extension_bytes > EXTENSION_BYTES_MAX:
            raise RefusedRequest(400, f"chunk extensions of more than {EXTENSION_BYTES_MAX} bytes")
        self._body_bytes += size
        if 0 < self._body_bytes_max < self._body_bytes:
            raise RefusedRequest(413, f"body of more than {self._body_bytes_max} bytes")
        self._chunk_left = size
        self._state = _State.DATA if size else _State.TRAILERS

    def _take_trailer_line(self, line: bytes) -> None:
        if not line:
            self._state = _State.DONE
            return
        self._trailers += 1
        if self._trailers > self._trailers_max or len(line) > self._trailer_bytes_max:
            raise RefusedRequest(431, "trailer fields over the limits of header fields")
        if not _TRAILER_LINE.fullmatch(line):
            raise RefusedRequest(400, "invalid trailer field")
