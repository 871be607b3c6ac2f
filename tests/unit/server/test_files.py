"""``wsgi.file_wrapper``: regular files are sent by the kernel, from their position and to the application's length."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkserve.server.output import FilePart
from tests.serving import read_answer, serving
from tests.unit.server.test_connections import GET, wait_for

pytestmark = pytest.mark.usefixtures("worker_type")

SIZE = 3_000_000
CONTENT = bytes(index * 7919 >> 3 & 255 for index in range(SIZE))
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
GET10 = b"GET / HTTP/1.0\r\n\r\n"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("files") / "content"
    found.write_bytes(CONTENT)
    return found


@pytest.fixture
def parts_sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each call of sendfile(2) sent."""
    sent: list[int] = []
    real = os.sendfile

    def sendfile(*arguments: int) -> int:
        count = real(*arguments)
        sent.append(count)
        return count

    monkeypatch.setattr(os, "sendfile", sendfile)
    return sent


class Closing:
    """A file of the application's that notes when it is closed."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.closes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def close(self) -> None:
        self.closes += 1
        self._file.close()


def giving(
    open_file: Callable[[], Any], headers: list[tuple[str, str]] | None = None, *, opened: list[Closing] | None = None
) -> Callable[..., Any]:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        file = Closing(open_file())
        if opened is not None:
            opened.append(file)
        start_response("200 OK", list(headers or []))
        return environ["wsgi.file_wrapper"](file)

    return application


def at(path: Path, position: int) -> Callable[[], Any]:
    def opened() -> Any:
        file = path.open("rb")
        file.read(10)  # what Python reads ahead must not count
        file.seek(position)
        return file

    return opened


@pytest.mark.parametrize("position", [0, 1, 1_000_000, SIZE - 1, SIZE, SIZE + 5])
def test_a_file_is_sent_from_its_position_with_its_length(path: Path, position: int, parts_sent: list[int]) -> None:
    opened: list[Closing] = []
    with serving(giving(at(path, position), opened=opened)) as server:
        answers = server.talk(GET + GET)
        for answer in answers:
            assert answer.header("Content-Length") == str(max(0, SIZE - position))
            assert answer.body == CONTENT[position:]
    assert len(answers) == 2
    assert [file.closes for file in opened] == [1, 1]
    assert sum(parts_sent) == (2 * (SIZE - position) if SIZE - position > 65536 else 0)


def test_a_range_set_by_the_application_is_sent(path: Path, parts_sent: list[int]) -> None:
    headers = [("Content-Length", "200000"), ("Content-Range", f"bytes 1000-200999/{SIZE}")]
    with serving(giving(at(path, 1000), headers)) as server:
        assert [answer.body for answer in server.talk(GET + GET)] == [CONTENT[1000:201000]] * 2
    assert sum(parts_sent) == 400_000


@pytest.mark.parametrize("length", [SIZE + 1, 2 * SIZE])
def test_a_file_that_is_shorter_than_its_content_length_is_cut_visibly(path: Path, length: int) -> None:
    with serving(giving(at(path, 0), [("Content-Length", str(length))])) as server:
        (answer,) = server.talk(GET + GET)
    assert (answer.is_whole, answer.body) == (False, CONTENT)


def test_head_and_http10(path: Path) -> None:
    with serving(giving(at(path, 0))) as server:
        (answer,) = server.talk(HEAD, methods=("HEAD",))
        assert (answer.header("Content-Length"), answer.body) == (str(SIZE), b"")
        (answer,) = server.talk(GET10)
        assert (answer.header("Content-Length"), answer.header("Connection")) == (str(SIZE), "close")
        assert answer.body == CONTENT


def test_not_modified_has_no_body(path: Path) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("304 Not Modified", [])
        return environ["wsgi.file_wrapper"](path.open("rb"))

    with serving(application) as server:
        assert [(answer.status, answer.body) for answer in server.talk(GET + GET)] == [(304, b"")] * 2


class Unseekable(io.RawIOBase):
    """A file-like object that only reads."""

    def __init__(self, content: bytes) -> None:
        self._rest = content

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        block, self._rest = self._rest[:size], self._rest[size:]
        return block


def _pipe() -> Any:
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe")
    os.close(writer)
    return os.fdopen(reader, "rb")


@pytest.mark.parametrize(
    ("open_file", "expected"),
    [
        (lambda: io.BytesIO(b"memory"), b"memory"),
        (lambda: Unseekable(b"x" * 200_000), b"x" * 200_000),
        (_pipe, b"from a pipe"),
    ],
    ids=["memory", "unseekable", "pipe"],
)
def test_what_is_no_regular_file_is_read(open_file: Callable[[], Any], expected: bytes) -> None:
    opened: list[Closing] = []
    with serving(giving(open_file, opened=opened)) as server:
        answers = server.talk(GET)
    assert [answer.body for answer in answers] == [expected]
    assert [file.closes for file in opened] == [1]


def test_blocks_written_before_come_first(path: Path) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        write = start_response("200 OK", [("Content-Length", str(SIZE + 6))])
        write(b"before")
        return environ["wsgi.file_wrapper"](path.open("rb"))

    with serving(application) as server:
        (answer,) = server.talk(GET)
    assert answer.body == b"before" + CONTENT


def test_a_slow_reader_of_a_file_does_not_hold_the_worker(path: Path) -> None:
    opened: list[Closing] = []
    with serving(giving(at(path, 0), opened=opened)) as server, _slow_client(server.address) as slow:
        slow.sendall(GET + GET)
        wait_for(lambda: opened and opened[0].closes == 1, "the application has closed its file")
        path_of_others = server.talk(GET)
        assert path_of_others[0].body == CONTENT
        stream = slow.makefile("rb")
        answers = [read_answer(stream), read_answer(stream)]
    assert [answer and hashlib.sha256(answer.body).digest() for answer in answers] == [
        hashlib.sha256(CONTENT).digest()
    ] * 2


def test_a_file_that_becomes_shorter_while_it_is_sent_ends_the_connection() -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(64 << 20)
        name = file.name
        with serving(giving(lambda: open(name, "rb"))) as server, _slow_client(server.address) as slow:
            slow.sendall(GET)
            wait_for(lambda: server.reactor.words[5] == 1, "the call has ended")
            file.truncate(1000)
            answer = read_answer(slow.makefile("rb"))
            assert answer is not None
            assert not answer.is_whole
            assert server.talk(GET)[0].status == 200


def _slow_client(address: Any) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(10)
    client.connect(address)
    return client


def test_an_encrypted_socket_gets_the_file_by_reading(path: Path) -> None:
    class Encrypted:
        is_encrypted = True

        def __init__(self) -> None:
            self.got = b""

        def send(self, data: bytes) -> int:
            self.got += data[:1000]
            return min(len(data), 1000)

    with path.open("rb") as file:
        sock, part = Encrypted(), FilePart(file.fileno(), 5, 3005)
        while part.start < part.end:
            part.send(sock)  # type: ignore[arg-type]
        assert sock.got == CONTENT[5:3005]
