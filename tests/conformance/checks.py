"""What people rely on, as checks that any real client of a real application can make.

A check is a function of a client, and of the site where it needs it.  Its decorator says what the client has to be able
to do, and where else it makes no sense.  The pages that it asks for are those of apps/pages.py; what only curl can show
is in curl_checks.py.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from tests.conformance.apps import pages
from tests.conformance.clients import Client
from tests.conformance.conftest import APPLICATIONS, LIMIT_REQUEST_BODY, Site

BINARY = [("Content-Type", "application/octet-stream")]


@dataclass(frozen=True)
class Check:
    """A check and where it makes sense."""

    run: Callable[..., None]
    needs: frozenset[str]
    frameworks: tuple[str, ...]
    transports: tuple[str, ...]

    def fits(self, client: type[Client], framework: str, transport: str) -> bool:
        """Does it make sense there?"""
        is_reached = transport == "tcp" or transport in client.can
        return is_reached and self.needs <= client.can and framework in self.frameworks and transport in self.transports


CHECKS: dict[str, Check] = {}


def check(
    *needs: str, frameworks: tuple[str, ...] = tuple(APPLICATIONS), transports: tuple[str, ...] = ("tcp", "unix")
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a check of a function: for clients that can do what it needs."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        CHECKS[function.__name__] = Check(function, frozenset(needs), frameworks, transports)
        return function

    return register


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@cache
def pattern(size: int) -> bytes:
    """Bytes of which no two stretches are alike."""
    return b"".join(b"%07d\n" % number for number in range(size // 8 + 1))[:size]


def assert_goes_on(client: Client) -> None:
    """The session is good for another request: nothing of the last answer is left on its connection."""
    reply = client.get("/hello")
    assert (reply.status, reply.body) == (200, b"hello")


# ── answers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@check()
def page_has_its_type_and_length(client: Client) -> None:
    reply = client.get("/hello")
    assert (reply.status, reply.body, reply.field("Content-Length")) == (200, b"hello", "5")
    assert (reply.field("Content-Type") or "").startswith("text/plain")
    assert (reply.field("Server"), reply.field("Transfer-Encoding")) == ("forkserve", None)
    assert (reply.field("Date") or "").endswith(" GMT")


@check()
def head_has_the_fields_of_get_and_no_body(client: Client) -> None:
    for path in ("/hello", "/large", "/stream"):
        reply = client.ask("HEAD", path)
        assert (reply.status, reply.body) == (200, b"")
        assert reply.field("Content-Length") == {"/hello": "5", "/large": str(len(pages.LARGE))}.get(path)
        assert_goes_on(client)


@check()
def statuses_without_a_body_leave_nothing_on_the_connection(client: Client) -> None:
    for code in (204, 304, 204):
        reply = client.get(f"/status/{code}")
        assert (reply.status, reply.body) == (code, b"")
        assert_goes_on(client)


@check()
def bug_in_a_view_is_a_500_and_costs_no_connection(client: Client) -> None:
    assert client.get("/fail").status == 500
    assert_goes_on(client)
    assert client.get("/nowhere").status == 404
    assert_goes_on(client)


@check()
def large_answer_is_whole(client: Client) -> None:
    reply = client.get("/large")
    assert (reply.field("Content-Length"), sha256(reply.body)) == (str(len(pages.LARGE)), sha256(pages.LARGE))
    assert_goes_on(client)


@check()
def answer_of_unknown_length_is_whole(client: Client) -> None:
    reply = client.get("/stream")
    assert (reply.field("Content-Length"), reply.field("Transfer-Encoding")) == (None, "chunked")
    assert reply.body.decode() == "".join(pages.LINES)
    assert_goes_on(client)


@check()
def first_line_comes_before_the_second_is_made(client: Client, site: Site) -> None:
    fifo = site.folder / f"gate-{os.urandom(8).hex()}"
    os.mkfifo(fifo)
    lines = client.lines(f"/gate/{fifo.name}")
    assert next(lines).strip() == b"first"
    with fifo.open("r+b", buffering=0) as gate:  # for reading too: then it never waits for the other side
        gate.write(b"go on")
    assert [line.strip() for line in lines] == [b"second"]


@check()
def file_is_whole(client: Client, site: Site) -> None:
    content = pattern(1_000_000)
    (site.folder / "file").write_bytes(content)
    reply = client.get("/file/file")
    assert (reply.field("Content-Length"), sha256(reply.body)) == (str(len(content)), sha256(content))
    assert_goes_on(client)


@check(frameworks=("flask",))
def ranges_and_conditions_of_send_file_are_answered(client: Client, site: Site) -> None:
    content = pattern(300_000)
    (site.folder / "ranges").write_bytes(content)
    for asked, expected, of in [
        ("bytes=0-99", content[:100], "bytes 0-99/300000"),
        ("bytes=150000-", content[150_000:], "bytes 150000-299999/300000"),
        ("bytes=-5", content[-5:], "bytes 299995-299999/300000"),
    ]:
        reply = client.get("/file/ranges", [("Range", asked)])
        assert (reply.status, reply.field("Content-Range"), reply.body) == (206, of, expected)
        assert reply.field("Content-Length") == str(len(expected))
    assert client.get("/file/ranges", [("Range", "bytes=300000-")]).status == 416
    tag = client.get("/file/ranges").field("ETag")
    assert tag
    reply = client.get("/file/ranges", [("If-None-Match", tag)])
    assert (reply.status, reply.body) == (304, b"")
    assert_goes_on(client)


@check()
def long_field_of_an_answer_arrives(client: Client) -> None:
    assert client.get("/header/30000").field("X-Long") == "x" * 30_000


# ── requests ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@check()
def method_arrives(client: Client) -> None:
    for method in pages.METHODS:
        reply = client.ask(method, "/echo/x")
        assert method == "HEAD" or reply.json()["method"] == method


@check()
def path_and_query_are_decoded_once(client: Client) -> None:
    told = client.get("/echo/a%20b%2Fc%2525/%C3%A9+?q=1&q=%C3%A9%20%26&+=").json()
    assert told["path"] == "/echo/a b/c%25/é+"
    assert told["arguments"] == {"q": ["1", "é &"], " ": [""]}
    assert told["target"] == "/echo/a%20b%2Fc%2525/%C3%A9+?q=1&q=%C3%A9%20%26&+="


@check("encode")
def path_in_other_letters_arrives(client: Client) -> None:
    assert client.get("/echo/é/日本").json()["path"] == "/echo/é/日本"


@check()
def body_of_known_length_arrives_whole(client: Client) -> None:
    for size in (0, 1, 100_000, 3_000_000):
        body = pattern(size)
        told = client.ask("POST", "/echo/x", BINARY, body=body).json()
        assert (told["bytes"], told["length"], told["sha256"]) == (size, str(size), sha256(body))


@check()
def chunked_body_arrives_whole_and_has_a_length(client: Client) -> None:
    for size in (1, 100_000, 3_000_000):
        body = pattern(size)
        told = client.ask("POST", "/echo/x", BINARY, body=body, is_chunked=True).json()
        assert (told["bytes"], told["length"], told["sha256"]) == (size, str(size), sha256(body))
        assert "transfer-encoding" not in told["fields"]


@check()
def body_may_stay_unread(client: Client) -> None:
    assert client.ask("POST", "/nowhere", BINARY, body=pattern(500_000)).status in (404, 405)
    assert_goes_on(client)


@check()
def body_over_the_limit_is_refused_with_an_answer(client: Client) -> None:
    reply = client.ask("POST", "/echo/x", BINARY, body=bytes(LIMIT_REQUEST_BODY + 1))
    assert (reply.status, reply.field("Connection")) == (413, "close")
    assert reply.body.startswith(b"413 ")
    assert_goes_on(client)


@check()
def form_with_files_of_megabytes_arrives_whole(client: Client) -> None:
    large, small = pattern(5_000_000), b""
    reply = client.send_form("/form", {"name": "Jörg", "empty": ""}, {"a": ("a.bin", large), "b": ("b.txt", small)})
    assert reply.json() == {
        "fields": {"name": "Jörg", "empty": ""},
        "files": {
            "a": {"name": "a.bin", "bytes": len(large), "sha256": sha256(large)},
            "b": {"name": "b.txt", "bytes": 0, "sha256": sha256(b"")},
        },
    }


@check()
def form_of_plain_fields_arrives(client: Client) -> None:
    fields = [("Content-Type", "application/x-www-form-urlencoded")]
    reply = client.ask("POST", "/form", fields, body=b"name=J%C3%B6rg+B&empty=")
    assert reply.json() == {"fields": {"name": "Jörg B", "empty": ""}, "files": {}}


@check()
def long_field_arrives_and_one_too_long_is_refused_with_an_answer(client: Client) -> None:
    value = "v" * (8190 - len("X-Long: "))
    assert client.get("/echo/x", [("X-Long", value)]).json()["fields"]["x-long"] == value
    reply = client.get("/echo/x", [("X-Long", value + "v")])
    assert (reply.status, reply.field("Connection")) == (431, "close")
    assert_goes_on(client)


@check()
def long_target_arrives_and_one_too_long_is_refused_with_an_answer(client: Client) -> None:
    path = "/echo/" + "p" * (8190 - len("GET /echo/ HTTP/1.1"))
    assert client.get(path).json()["path"] == path
    assert client.get(path + "p").status == 414
    assert_goes_on(client)


@check()
def name_of_the_host_is_the_one_that_was_asked_for(client: Client) -> None:
    told = client.get("/echo/x", [("Host", "shop.example:8080")]).json()
    assert told["host"] == told["fields"]["host"] == "shop.example:8080"


@check("repeated")
def repeated_fields_are_joined(client: Client) -> None:
    fields = [("X-A", "1"), ("X-A", "2"), ("Cookie", "a=1"), ("Cookie", "b=2; c=3")]
    told = client.get("/echo/x", fields).json()
    assert told["fields"]["x-a"] == "1, 2"
    assert told["cookies"] == {"a": "1", "b": "2", "c": "3"}


# ── sessions ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@check("keep", transports=("tcp",))
def connection_is_kept_from_one_request_to_the_next(client: Client) -> None:
    ports = set()
    for _ in range(3):
        ports.add(client.get("/echo/x").json()["port"])
        ports.add(client.ask("POST", "/echo/x", BINARY, body=pattern(200_000), is_chunked=True).json()["port"])
        client.get("/stream")
        client.get("/status/304")
        client.ask("HEAD", "/large")
        client.get("/large")
    assert len(ports) == 1


@check()
def connection_ends_when_the_client_asks_for_it(client: Client) -> None:
    reply = client.get("/hello", [("Connection", "close")])
    assert (reply.status, reply.field("Connection"), reply.body) == (200, "close", b"hello")
    assert_goes_on(client)


@check()
def cookies_are_set_by_fields_of_their_own(client: Client) -> None:
    cookies = [value.partition(";")[0] for value in client.get("/cookies").all("Set-Cookie")]
    assert cookies == [f"{name}={value}" for name, value in pages.COOKIES.items()]


@check("cookies")
def cookies_come_back(client: Client) -> None:
    client.get("/cookies")
    assert client.get("/echo/x").json()["cookies"] == pages.COOKIES


@check("follow")
def redirect_is_followed(client: Client) -> None:
    told = client.get("/redirect/302", follow=True).json()
    assert (told["method"], told["path"]) == ("GET", "/echo/redirected")
    told = client.ask("POST", "/redirect/303", BINARY, body=b"hello", follow=True).json()
    assert (told["method"], told["bytes"]) == ("GET", 0)


@check("follow")
def redirect_that_keeps_the_method_keeps_the_body(client: Client) -> None:
    for code in (307, 308):
        told = client.ask("POST", f"/redirect/{code}", BINARY, body=pattern(100_000), follow=True).json()
        assert (told["method"], told["bytes"], told["sha256"]) == ("POST", 100_000, sha256(pattern(100_000)))
