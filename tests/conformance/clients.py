"""Real clients behind one face: http.client, requests, httpx and the curl command.

    client = CLIENTS["httpx"](address, folder)               one session: kept connections, cookies, where it has them
    reply = client.ask("POST", "/echo/x", body=b"…")         one request, one reply

``address`` is ``http://host:port`` or ``unix:/path``.  What a client can do beyond asking is in its ``can``.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx
import pytest
import requests
import urllib3

from tests.harness import DEADLINE_S, UnixConnection

Fields = Sequence[tuple[str, str]]
File = tuple[str, bytes]
"""Name and content."""

CHUNK_BYTES = 10_000


@dataclass(frozen=True)
class Reply:
    """One answer, as the client understood it."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """The values of all fields of that name."""
        return [value for key, value in self.fields if key.lower() == name.lower()]

    def field(self, name: str) -> str | None:
        """The value of the only field of that name; None where there is none."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} stands {len(values)} times"
        return values[0] if values else None

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Asked:
    """One request; a chunked body goes without a length."""

    method: str
    path: str
    fields: Fields = ()
    body: bytes | None = None
    is_chunked: bool = False
    follow: bool = False


class Client(ABC):
    """One session of a client.

    Attributes:
        can: what not all can: use ``unix`` sockets, ``keep`` connections from one request to the next, keep
            ``cookies``, ``follow`` redirects, ``encode`` what no URL may hold, send ``repeated`` fields as they are,
            take the ``options`` of curl.
    """

    can: ClassVar[frozenset[str]] = frozenset()

    def ask(self, method: str, path: str, fields: Fields = (), **options: Any) -> Reply:
        """Ask for a page; the options are those of :class:`Asked`."""
        return self.answer_to(Asked(method, path, fields, **options))

    def get(self, path: str, fields: Fields = (), **options: Any) -> Reply:
        """GET a page."""
        return self.ask("GET", path, fields, **options)

    @abstractmethod
    def answer_to(self, asked: Asked) -> Reply:
        """The answer to a request."""

    @abstractmethod
    def send_form(self, path: str, fields: dict[str, str], files: dict[str, File]) -> Reply:
        """POST a form as multipart/form-data."""

    @abstractmethod
    def lines(self, path: str) -> Iterator[bytes]:
        """The lines of an answer, each as soon as it is there."""

    @abstractmethod
    def close(self) -> None:
        """End the session."""


def _chunks(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), CHUNK_BYTES):
        yield body[start : start + CHUNK_BYTES]


class StandardClient(Client):
    """http.client of the standard library."""

    can = frozenset({"unix", "keep", "repeated"})

    def __init__(self, address: str, _folder: Path) -> None:
        if address.startswith("unix:"):
            self.connection: http.client.HTTPConnection = UnixConnection(address.removeprefix("unix:"), DEADLINE_S)
        else:
            parts = urlsplit(address)
            self.connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=DEADLINE_S)

    def _send(self, asked: Asked) -> http.client.HTTPResponse:
        connection, body = self.connection, asked.body
        connection.putrequest(asked.method, asked.path, skip_host="Host" in dict(asked.fields))
        for name, value in asked.fields:
            connection.putheader(name, value)
        if asked.is_chunked:
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders(_chunks(body or b""), encode_chunked=True)
        else:
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
        return connection.getresponse()

    def answer_to(self, asked: Asked) -> Reply:
        response = self._send(asked)
        return Reply(response.status, response.getheaders(), response.read())

    def send_form(self, path: str, fields: dict[str, str], files: dict[str, File]) -> Reply:
        body, content_type = urllib3.encode_multipart_formdata({**fields, **files})
        return self.ask("POST", path, [("Content-Type", content_type)], body=body)

    def lines(self, path: str) -> Iterator[bytes]:
        return iter(self._send(Asked("GET", path)).readline, b"")

    def close(self) -> None:
        self.connection.close()


class RequestsClient(Client):
    """requests, over urllib3."""

    can = frozenset({"keep", "cookies", "follow", "encode"})

    def __init__(self, address: str, _folder: Path) -> None:
        self.url = address
        self.session = requests.Session()
        self.session.trust_env = False

    def answer_to(self, asked: Asked) -> Reply:
        return self._reply(
            self.session.request(
                asked.method,
                self.url + asked.path,
                headers=dict(asked.fields),
                data=_chunks(asked.body or b"") if asked.is_chunked else asked.body,
                allow_redirects=asked.follow,
                timeout=DEADLINE_S,
            )
        )

    def send_form(self, path: str, fields: dict[str, str], files: dict[str, File]) -> Reply:
        return self._reply(self.session.post(self.url + path, data=fields, files=files, timeout=DEADLINE_S))

    def lines(self, path: str) -> Iterator[bytes]:
        with self.session.get(self.url + path, stream=True, timeout=DEADLINE_S) as response:
            yield from response.iter_lines(chunk_size=1)

    def close(self) -> None:
        self.session.close()

    @staticmethod
    def _reply(response: requests.Response) -> Reply:
        return Reply(response.status_code, list(response.raw.headers.items()), response.content)


class HttpxClient(Client):
    """httpx, over httpcore and h11."""

    can = frozenset({"unix", "keep", "cookies", "follow", "encode", "repeated"})

    def __init__(self, address: str, _folder: Path) -> None:
        is_unix = address.startswith("unix:")
        self.session = httpx.Client(
            base_url="http://localhost" if is_unix else address,
            transport=httpx.HTTPTransport(uds=address.removeprefix("unix:")) if is_unix else None,
            timeout=DEADLINE_S,
            trust_env=False,
        )

    def answer_to(self, asked: Asked) -> Reply:
        return self._reply(
            self.session.request(
                asked.method,
                asked.path,
                headers=list(asked.fields),
                content=_chunks(asked.body or b"") if asked.is_chunked else asked.body,
                follow_redirects=asked.follow,
            )
        )

    def send_form(self, path: str, fields: dict[str, str], files: dict[str, File]) -> Reply:
        return self._reply(self.session.post(path, data=fields, files=files))

    def lines(self, path: str) -> Iterator[bytes]:
        with self.session.stream("GET", path) as response:
            for line in response.iter_lines():
                yield line.encode()

    def close(self) -> None:
        self.session.close()

    @staticmethod
    def _reply(response: httpx.Response) -> Reply:
        return Reply(response.status_code, response.headers.multi_items(), response.content)


class CurlClient(Client):
    """The curl command; each request is a process of its own, with a jar of cookies beside it."""

    can = frozenset({"unix", "cookies", "follow", "encode", "repeated", "options"})

    def __init__(self, address: str, folder: Path) -> None:
        if shutil.which("curl") is None:
            assert os.environ.get("CI") != "true", "there is no curl command, though .ci/run installs it"
            pytest.skip("the curl command is not installed")
        self.folder = folder
        self.url = address
        self.options = ["--disable", "--silent", "--show-error", "--noproxy", "*", "--globoff"]
        self.options += ["--max-time", f"{DEADLINE_S:g}"]
        if address.startswith("unix:"):
            self.options += ["--unix-socket", address.removeprefix("unix:")]
            self.url = "http://localhost"

    def run(self, *arguments: str, stdin: bytes = b"", is_failure: bool = False) -> str:
        """Run curl; what it prints, or what it complains of where it has to fail."""
        process = subprocess.run(
            ["curl", *self.options, *arguments], input=stdin, capture_output=True, check=False, timeout=2 * DEADLINE_S
        )
        complaint = process.stderr.decode()
        assert (process.returncode != 0) is is_failure, f"curl {arguments}: {process.returncode} {complaint}"
        return complaint if is_failure else process.stdout.decode()

    def fetch(self, path: str, *arguments: str, stdin: bytes = b"") -> Reply:
        """The last answer that curl gets."""
        return self.fetch_all(path, *arguments, stdin=stdin)[-1]

    def fetch_all(self, path: str, *arguments: str, stdin: bytes = b"") -> list[Reply]:
        """All answers that curl gets, interim ones and redirects too; the last one has its body."""
        head, body = self.folder / "head", self.folder / "body"
        body.write_bytes(b"")  # curl leaves the file alone when there is no body
        output = [] if "--head" in arguments else ["--output", str(body)]  # would have the head otherwise
        self.run("--dump-header", str(head), *output, *arguments, self.url + path, stdin=stdin)
        blocks = head.read_bytes().decode("latin-1").split("\r\n\r\n")[:-1]
        replies = [_reply_of(block.split("\r\n")) for block in blocks]
        last = replies[-1]
        return [*replies[:-1], Reply(last.status, last.fields, body.read_bytes())]

    def answer_to(self, asked: Asked) -> Reply:
        jar = str(self.folder / "jar")
        arguments = ["--cookie", jar, "--cookie-jar", jar]
        for name, value in asked.fields:
            arguments += ["--header", f"{name}: {value}"]
        if asked.is_chunked:
            arguments += ["--request", asked.method, "--upload-file", "-"]
        elif asked.method == "HEAD":
            arguments += ["--head"]
        elif asked.body is not None:
            arguments += ["--data-binary", "@-"]
            arguments += [] if asked.method == "POST" else ["--request", asked.method]
        elif asked.method != "GET":
            arguments += ["--request", asked.method]
        if asked.follow:
            arguments += ["--location"]
        return self.fetch(asked.path, *arguments, stdin=asked.body or b"")

    def send_form(self, path: str, fields: dict[str, str], files: dict[str, File]) -> Reply:
        arguments = [part for name, value in fields.items() for part in ("--form-string", f"{name}={value}")]
        for name, (file_name, content) in files.items():
            source = self.folder / f"form-{name}"
            source.write_bytes(content)
            arguments += ["--form", f'{name}=@"{source}";filename="{file_name}"']
        return self.fetch(path, *arguments)

    def lines(self, path: str) -> Iterator[bytes]:
        with subprocess.Popen(
            ["curl", *self.options, "--no-buffer", self.url + path], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            yield from process.stdout

    def close(self) -> None:
        """Nothing is left: each process has ended with its answer."""


def _reply_of(head: list[str]) -> Reply:
    status_line, *lines = head
    fields = [line.partition(":") for line in lines]
    return Reply(int(status_line.split()[1]), [(name, value.strip()) for name, _, value in fields], b"")


CLIENTS: dict[str, type[Client]] = {
    "http.client": StandardClient,
    "requests": RequestsClient,
    "httpx": HttpxClient,
    "curl": CurlClient,
}
