"""One input of the fuzzer: bytes, how they are cut into sends, over which socket, and how the client ends.

    corpus (tests/conformance/requests) ── mutations ──▶ bytes ── cuts ──▶ Case ── save, load ──▶ a file to replay

Number N of seed S is the same input everywhere: each has a source of chance of its own.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Final

from tests.conformance.driver import EXPECTED, NAMES, by_byte, raw

BYTES_MAX: Final = 400_000
"""No input is longer: what is decided by size has its limits below, and time is better spent on more inputs."""
BODY_SIZES: Final = (0, 1, 5, 5, 100, 100, 3000, 3000, 66_000, 300_000)
"""Of bodies that are put before a case; the limits of memory (64 KiB) and of skipping (256 KiB) are between them."""
REPEATED_BYTES_MAX: Final = 20_000
"""Of one run of bytes: above the limits of lines, but no thousands of requests with long answers."""
LARGE_BYTES: Final = 4_000
"""Files of the corpus above this size are taken seldom."""
BY_BYTE_BYTES_MAX: Final = 400
"""Longer ones are not sent byte by byte."""
ACCEPTED: Final = [name for name in NAMES if "status" not in EXPECTED[name]]
"""Most of the corpus is refused; these are taken more often, so that bodies and answers have their share."""


class Ending(Enum):
    """What the client does when its bytes are out."""

    FINISH = "finish"
    """Ends its side (a half-closed connection) and reads all answers."""
    WAIT = "wait"
    """Keeps its side open and reads until the server has had enough."""
    LEAVE = "leave"
    """Closes without reading."""
    RESET = "reset"
    """Sends a reset."""


class Mode(Enum):
    """How a server is set up."""

    BUFFERED = "buffered"
    """Bodies are read before the application is called."""
    STREAMED = "streamed"
    """The application reads bodies as they come."""
    PROXIED = "proxied"
    """Connections begin with the PROXY protocol."""


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        parts: the sends; over a unix socket the next goes out once the server has taken the last.
        reads_late: reads nothing before all is sent, so that answers pile up.
        mode: of the server that it is for.
        name: where it came from.
    """

    parts: tuple[bytes, ...]
    ending: Ending = Ending.FINISH
    is_unix: bool = True
    reads_late: bool = False
    mode: Mode = Mode.BUFFERED
    name: str = ""

    @property
    def data(self) -> bytes:
        """All bytes."""
        return b"".join(self.parts)


def save(path: Path, cases: Iterable[Case], problem: str) -> None:
    """Write cases to a file for :func:`load`: a line each, bytes as Latin-1 text; the first line is for people."""
    lines = [json.dumps({"problem": problem})]
    for case in cases:
        parts = [str(part, "latin-1") for part in case.parts]
        lines.append(
            json.dumps({**case.__dict__, "parts": parts, "ending": case.ending.value, "mode": case.mode.value})
        )
    path.write_text("\n".join(lines) + "\n")


def load(path: Path) -> list[Case]:
    """The cases of a file."""
    cases = []
    for line in path.read_text().splitlines()[1:]:
        told = json.loads(line)
        told["parts"] = tuple(part.encode("latin-1") for part in told["parts"])
        cases.append(Case(**{**told, "ending": Ending(told["ending"]), "mode": Mode(told["mode"])}))
    return cases


# ---------------------------------------------------------------------------------------------- making one


def make_case(seed: str, number: int) -> Case:
    """Number ``number`` of a seed."""
    chance = random.Random(f"{seed}/{number}")
    data = _from_corpus(chance)
    for _ in range(chance.choice((0, 0, 1, 1, 1, 1, 2, 2, 3, 6))):
        data = chance.choice(MUTATIONS)(chance, data)[:BYTES_MAX]
    mode = chance.choices(list(Mode), (0.5, 0.25, 0.25))[0]
    if mode is Mode.PROXIED and chance.random() < 0.95:
        data = _preamble(chance) + data
    parts = _cut(chance, data)
    ending = chance.choices(list(Ending), (0.8, 0.002, 0.098, 0.1))[0]
    if ending in (Ending.LEAVE, Ending.RESET):
        parts = parts[: chance.randint(0, len(parts))]  # early, as often as not
    return Case(
        parts=tuple(parts),
        ending=ending,
        is_unix=ending is not Ending.RESET and chance.random() < 0.8,  # a unix socket knows no reset
        reads_late=ending is Ending.FINISH and chance.random() < 0.02,
        mode=mode,
        name=f"input {number} of seed {seed}",
    )


def _from_corpus(chance: random.Random) -> bytes:
    while True:
        data = raw(chance.choice(ACCEPTED if chance.random() < 0.5 else NAMES))
        if len(data) <= LARGE_BYTES or chance.random() < 0.1:
            return data


def _preamble(chance: random.Random) -> bytes:
    """Of the PROXY protocol; a wrong one now and then."""
    preamble = chance.choice(PREAMBLES)
    while chance.random() < 0.3:
        preamble = chance.choice((_random_byte, _delete, _duplicate, _insert_token, _truncate))(chance, preamble)
    return preamble


def _cut(chance: random.Random, data: bytes) -> list[bytes]:
    how = chance.random()
    if how < 0.4 or not data:
        return [data]
    if how < 0.5 and len(data) <= BY_BYTE_BYTES_MAX:
        return by_byte(data)
    if how < 0.7:  # around line ends, where the state changes
        places = [match.start() + chance.randint(0, 2) for match in re.finditer(rb"\r\n", data)]
        places = chance.sample(places, min(len(places), chance.randint(1, 6)))
    else:
        places = [chance.randrange(len(data)) for _ in range(chance.choice((1, 1, 2, 3, 8)))]
    edges = [0, *sorted(set(places) - {0, len(data)}), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if start < end]


# ---------------------------------------------------------------------------------------------- mutations

TOKENS: Final = tuple(
    token.encode("latin-1")
    for token in (
        *("\r", "\n", "\r\n", "\r\n\r\n", "\n\n", "\0", "\t", " ", "  ", ":", ",", ";", "=", "%", "%00", "%0d%0a", '"'),
        *("\x0b", "\x0c", "\x1f", "\x7f", "\x80", "\x85", "\xa0", "\xff", "\xb2", "?", "#", "@", "//", "/../", "\\"),
        *("GET ", "HEAD ", "POST ", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "CONNECT a:1 HTTP/1.1", "OPTIONS * HTTP/1.1"),
        *("HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", " HTTP/1.1\r\n", "http://", "http://a:1/", "[::1]:80"),
        *("Host: a\r\n", "Host:\r\n", "Content-Length: 5\r\n", "Content-Length: 0\r\n", "Content-Length: +1\r\n"),
        *("Content-Length: 99999999999999999999\r\n", "Content-Length: 100000\r\n", "Content-Length : 5\r\n"),
        *("Transfer-Encoding: chunked\r\n", "Transfer-Encoding: xchunked\r\n", "Transfer-Encoding\t: chunked\r\n"),
        *("Transfer-Encoding: chunked, identity\r\n", "Transfer_Encoding: chunked\r\n", " chunked", "chunked"),
        *("Connection: close\r\n", "Connection: keep-alive\r\n", "Connection: close, Host\r\n", "Upgrade: h2c\r\n"),
        *("Expect: 100-continue\r\n", "Expect: 200-maybe\r\n", "Proxy: a\r\n", "Cookie: a=b\r\n", "X_Y: 1\r\n"),
        *("Content-Type: text/plain\r\n", "X-A: b\r\n c\r\n", "0\r\n\r\n", "5\r\nhello\r\n", "0;a=b\r\nT: v\r\n\r\n"),
        *("ffffffffffffffff\r\n", "7fffffffffffffff\r\n", "fffffffffffffff\r\n", "-1\r\n", "0x5\r\n", "5;"),
    )
)
"""What has confused HTTP parsers before."""

PREAMBLES: Final = (
    b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n",
    b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n",
    b"PROXY UNKNOWN\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\2\7\xc6\x33\x64\1\xdc\4\1\xbb",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13\xc0\0\2\7\xc6\x33\x64\1\xdc\4\1\xbb\4\0\4abcd",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24" + bytes(36),
)
"""Of both versions (forkserve/http/proxy_protocol.py)."""

NUMBERS: Final = tuple(
    number.encode()
    for number in (
        *"0 1 2 9 10 255 256 4096 65535 65536 999999 1000000 1000001 2147483648 4294967296 00000000005".split(),
        *("-1", "+1", "0x10", "1e3", "1_0", "9" * 18, "9" * 19, "9" * 5000),
    )
)
"""Around limits, and such as one parser reads and another does not."""

Mutation = Callable[[random.Random, bytes], bytes]


def _span(chance: random.Random, data: bytes) -> tuple[int, int]:
    start = chance.randint(0, len(data))
    return start, min(len(data), start + chance.choice((1, 1, 2, 4, 8, 16, 64, 1000)))


def _flip_bit(chance: random.Random, data: bytes) -> bytes:
    return _put_byte(chance, data, lambda byte: byte ^ 1 << chance.randrange(8))


def _random_byte(chance: random.Random, data: bytes) -> bytes:
    return _put_byte(chance, data, lambda _byte: chance.randrange(256))


def _put_byte(chance: random.Random, data: bytes, change: Callable[[int], int]) -> bytes:
    if not data:
        return data
    place = chance.randrange(len(data))
    return data[:place] + bytes([change(data[place])]) + data[place + 1 :]


def _delete(chance: random.Random, data: bytes) -> bytes:
    start, end = _span(chance, data)
    return data[:start] + data[end:]


def _truncate(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randint(0, len(data))]


def _duplicate(chance: random.Random, data: bytes) -> bytes:
    start, end = _span(chance, data)
    times = min(chance.choice((2, 2, 2, 3, 10, 150, 20_000)), REPEATED_BYTES_MAX // max(end - start, 1))
    return data[:start] + data[start:end] * times + data[end:]


def _insert_token(chance: random.Random, data: bytes) -> bytes:
    place = chance.randint(0, len(data))
    return data[:place] + chance.choice(TOKENS) + data[place:]


def _insert_line(chance: random.Random, data: bytes) -> bytes:
    """A token where a line begins, where most of them mean something."""
    lines = data.split(b"\r\n")
    place = chance.randint(0, len(lines) - 1)
    lines[place] = chance.choice(TOKENS) + lines[place]
    return b"\r\n".join(lines)


def _change_lines(chance: random.Random, data: bytes) -> bytes:
    """Delete, double or swap lines."""
    lines = data.split(b"\r\n")
    first, second = chance.randrange(len(lines)), chance.randrange(len(lines))
    how = chance.randrange(3)
    if how == 0:
        del lines[first]
    elif how == 1:
        lines.insert(second, lines[first])
    else:
        lines[first], lines[second] = lines[second], lines[first]
    return b"\r\n".join(lines)


def _change_number(chance: random.Random, data: bytes) -> bytes:
    places = list(re.finditer(rb"[0-9]+", data))
    if not places:
        return data
    place = chance.choice(places)
    return data[: place.start()] + chance.choice(NUMBERS) + data[place.end() :]


def _change_case(chance: random.Random, data: bytes) -> bytes:
    start, end = _span(chance, data)
    return data[:start] + data[start:end].swapcase() + data[end:]


def _change_method(chance: random.Random, data: bytes) -> bytes:
    return chance.choice((b"HEAD", b"HEAD", b"GET", b"POST", b"OPTIONS")) + b" " + data.partition(b" ")[2]


def _splice(chance: random.Random, data: bytes) -> bytes:
    """The beginning of one case, the end of another."""
    other = _from_corpus(chance)
    return data[: chance.randint(0, len(data))] + other[chance.randint(0, len(other)) :]


def _pipeline(chance: random.Random, data: bytes) -> bytes:
    """Others before or behind it."""
    others = [_from_corpus(chance) for _ in range(chance.choice((1, 1, 2, 5)))]
    others.insert(chance.randint(0, len(others)), data)
    return b"".join(others)


def _put_body_before(chance: random.Random, data: bytes) -> bytes:
    """A good request with a body before it: whatever becomes of the body, what follows must be read as it stands."""
    size = chance.choice(BODY_SIZES)
    body = (bytes(chance.choices(b"ab\r\n0", k=100)) * (size // 100 + 1))[:size]
    if chance.random() < 0.5:
        framing = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    else:
        step = chance.randint(1 + size // 50, 1 + size)
        blocks = [body[start : start + step] for start in range(0, size, step)]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(block), block) for block in blocks)
        framing = b"Transfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % chunks
    return b"POST /%d HTTP/1.1\r\nHost: a\r\n%b%b" % (chance.randrange(10**6), framing, data)


MUTATIONS: Final[tuple[Mutation, ...]] = (
    _flip_bit,
    _random_byte,
    _delete,
    _truncate,
    _duplicate,
    _insert_token,
    _insert_token,
    _insert_line,
    _insert_line,
    _change_lines,
    _change_number,
    _change_case,
    _change_method,
    _splice,
    _pipeline,
    _pipeline,
    _put_body_before,
)
