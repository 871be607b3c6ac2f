"""Checks that only the curl command can make: its options are the ways in which people ask."""

from __future__ import annotations

from tests.conformance.apps import pages
from tests.conformance.checks import check, pattern, sha256
from tests.conformance.clients import CurlClient
from tests.conformance.conftest import LIMIT_REQUEST_BODY, Site

OVER_A_MEGABYTE = pattern(1_500_000)
"""From one mebibyte on, curl expects a 100 by itself."""

BINARY = ("--header", "Content-Type: application/octet-stream")


def connections(client: CurlClient, *requests: tuple[str, ...], options: tuple[str, ...] = ()) -> list[str]:
    """How many connections each request of one command has needed; the first of its arguments is the path."""
    arguments: list[str] = []
    for path, *more in requests:
        arguments += ["--next", *client.options] if arguments else []  # which forgets the options before it
        arguments += ["--output", "/dev/null", "--write-out", "%{num_connects} ", *options, *more, client.url + path]
    return client.run(*arguments).split()


@check("options")
def http10_is_answered_by_the_end_of_the_connection(client: CurlClient) -> None:
    told = client.fetch("/echo/x", "--http1.0").json()
    assert told["protocol"] == "HTTP/1.0"
    reply = client.fetch("/stream", "--http1.0")
    assert (reply.field("Transfer-Encoding"), reply.field("Connection")) == (None, "close")
    assert reply.body.decode() == "".join(pages.LINES)


@check("options")
def http10_is_kept_where_it_is_asked_for(client: CurlClient) -> None:
    asked = ("--http1.0", "--header", "Connection: keep-alive")
    assert connections(client, ("/hello",), ("/large",), ("/hello",), options=asked) == ["1", "0", "0"]
    assert connections(client, ("/hello",), ("/hello",), options=("--http1.0",)) == ["1", "1"]


@check("options")
def connection_is_kept_whatever_the_answer_is(client: CurlClient) -> None:
    paths = ("/hello", "/large", "/stream", "/status/204", "/status/304", "/nowhere", "/fail", "/echo/x")
    assert connections(client, *((path,) for path in paths)) == ["1", *"0" * (len(paths) - 1)]


@check("options")
def connection_is_kept_whatever_the_request_is(client: CurlClient) -> None:
    (client.folder / "upload").write_bytes(OVER_A_MEGABYTE)
    upload = str(client.folder / "upload")
    found = connections(
        client,
        ("/large", "--head"),
        ("/echo/x", "--data", "a=b"),
        ("/echo/x", "--upload-file", upload),
        ("/echo/x", "--upload-file", upload, "--header", "Transfer-Encoding: chunked"),
        ("/form", "--form", f"file=@{upload}"),
        ("/nowhere", "--data-binary", f"@{upload}"),
        ("/hello",),
    )
    assert found == ["1", *"0" * 6]


@check("options")
def head_is_answered_at_once(client: CurlClient) -> None:
    lines = client.run("--head", client.url + "/large").splitlines()
    assert lines[0].startswith("HTTP/1.1 200 ")
    assert f"Content-Length: {len(pages.LARGE)}" in lines


@check("options")
def expected_100_comes_before_the_body(client: CurlClient) -> None:
    for asked in (("--header", "Expect: 100-continue"), ()):  # told to, and by itself
        interim, reply = client.fetch_all("/echo/x", *BINARY, *asked, "--data-binary", "@-", stdin=OVER_A_MEGABYTE)
        assert (interim.status, interim.fields) == (100, [])
        assert reply.json()["sha256"] == sha256(OVER_A_MEGABYTE)
        assert reply.json()["fields"]["expect"] == "100-continue"


@check("options")
def body_over_the_limit_is_not_sent_by_who_expects_a_100(client: CurlClient) -> None:
    source = client.folder / "too-much"
    source.write_bytes(bytes(LIMIT_REQUEST_BODY + 1))
    written = ("--write-out", "%{http_code} %{size_upload}", "--output", "/dev/null")
    asked = ("--header", "Expect: 100-continue", "--data-binary", f"@{source}")
    assert client.run(*written, *asked, client.url + "/echo/x") == "413 0"


@check("options")
def chunked_upload_arrives_however_it_is_asked_for(client: CurlClient) -> None:
    for asked in (
        ("--upload-file", "-"),
        ("--header", "Transfer-Encoding: chunked", "--data-binary", "@-"),
        ("--header", "Transfer-Encoding: chunked", "--header", "Expect:", "--data-binary", "@-"),
    ):
        told = client.fetch("/echo/x", *BINARY, *asked, stdin=OVER_A_MEGABYTE).json()
        assert (told["length"], told["sha256"]) == (str(len(OVER_A_MEGABYTE)), sha256(OVER_A_MEGABYTE))


@check("options", frameworks=("flask",))
def download_is_resumed(client: CurlClient, site: Site) -> None:
    content = pattern(300_000)
    (site.folder / "download").write_bytes(content)
    partial = client.folder / "partial"
    partial.write_bytes(content[:100_000])
    client.run("--continue-at", "-", "--output", str(partial), client.url + "/file/download")
    assert sha256(partial.read_bytes()) == sha256(content)
    reply = client.fetch("/file/download", "--range", "100-199")
    assert (reply.status, reply.body) == (206, content[100:200])


@check("options", transports=("tcp",))
def request_to_a_proxy_is_answered_for_the_host_of_its_url(client: CurlClient) -> None:
    address, client.url = client.url, "http://other.example:81"
    proxied = ("--noproxy", "", "--proxy", address)
    told = client.fetch("/echo/a%20b?c", *proxied).json()
    assert told["target"] == "http://other.example:81/echo/a%20b?c"
    assert (told["host"], told["path"]) == ("other.example:81", "/echo/a b")
    assert told["fields"]["proxy-connection"] == "Keep-Alive"
    assert "501" in client.run(*proxied, "--proxytunnel", client.url, is_failure=True)


@check("options")
def offers_of_another_protocol_are_ignored(client: CurlClient) -> None:
    offers = [("--tr-encoding", "te", "gzip")]
    if "HTTP2" in client.run("--version"):
        offers.append(("--http2", "upgrade", "h2c"))
    for asked, name, value in offers:
        replies = client.fetch_all("/echo/x", asked)
        assert [reply.status for reply in replies] == [200]
        assert replies[0].json()["fields"][name] == value


@check("options")
def path_is_not_normalized(client: CurlClient) -> None:
    assert client.fetch("/echo/a/../b//./c", "--path-as-is").json()["path"] == "/echo/a/../b//./c"


@check("options")
def many_at_a_time_are_answered(client: CurlClient) -> None:
    written = ("--parallel", "--parallel-immediate", "--write-out", "%{http_code} %{size_download} ")
    found = client.run(*written, *["--output", "/dev/null"] * 10, *[client.url + "/large"] * 10)
    assert found.split() == ["200", str(len(pages.LARGE))] * 10
