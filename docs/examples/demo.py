"""The demo application of `make run`: plain WSGI (PEP 3333), no dependencies.

    /            a page that says which process answered
    /hello       13 bytes, what the benchmark asks for
    /slow?s=2    takes that many seconds (at most 60), then answers
    /stream      ten lines, one at a time
    /upload      POST: says how many bytes came and their SHA-256
    /crash       ends the worker process in mid-request: watch it being replaced
    /error       raises an exception: a 500, with the traceback in the log

Run it with any WSGI server: ``forkserve --pythonpath docs/examples demo:app``.
"""

from __future__ import annotations

import hashlib
import html
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Page = Callable[[Environ, StartResponse], Iterable[bytes]]

SLEEP_S_MAX = 60.0
requests_of_this_process = itertools.count(1)  # one worker process counts for itself


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The WSGI application: finds the page and calls it."""
    number = next(requests_of_this_process)
    page = PAGES.get(environ.get("PATH_INFO", "/"))
    if page is not None:
        return page(environ, start_response)
    if environ.get("PATH_INFO", "/") in ("/", ""):
        return _answer(start_response, _front_page(environ, number), "text/html; charset=utf-8")
    return _answer(
        start_response, "There is no such page here; / lists those that there are.\n", status="404 Not Found"
    )


application = app
"""The name under which servers look when they are given a module alone."""


def _answer(
    start_response: StartResponse, text: str, content_type: str = "text/plain; charset=utf-8", status: str = "200 OK"
) -> list[bytes]:
    body = text.encode()
    start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return [body]


def hello(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Thirteen bytes."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [b"Hello, world!"]


def slow(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer after the seconds named by ``s``."""
    try:
        seconds = float(parse_qs(environ.get("QUERY_STRING", "")).get("s", ["2"])[0])
    except ValueError:
        return _answer(start_response, "s must be a number of seconds, as in /slow?s=2\n", status="400 Bad Request")
    if not 0 <= seconds <= SLEEP_S_MAX:
        return _answer(start_response, f"s must be from 0 to {SLEEP_S_MAX:g} seconds\n", status="400 Bad Request")
    time.sleep(seconds)
    return _answer(start_response, f"Slept for {seconds:g} s in process {os.getpid()}.\n")


def stream(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Ten lines, without a length said before."""

    def lines() -> Iterator[bytes]:
        for number in range(1, 11):
            yield f"line {number} of 10 from process {os.getpid()}\n".encode()
            time.sleep(0.05)

    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return lines()


def upload(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Read the body and say what came."""
    if environ["REQUEST_METHOD"] not in ("POST", "PUT"):
        return _answer(
            start_response, "POST something here, e.g. curl --data-binary @FILE\n", status="405 Method Not Allowed"
        )
    digest, length = hashlib.sha256(), 0
    while chunk := environ["wsgi.input"].read(65536):
        digest.update(chunk)
        length += len(chunk)
    return _answer(start_response, f"{length} bytes, SHA-256 {digest.hexdigest()}\n")


def crash(_environ: Environ, _start_response: StartResponse) -> Iterable[bytes]:
    """End this process without a word, as a crash in a C extension would."""
    os._exit(1)


def error(_environ: Environ, _start_response: StartResponse) -> Iterable[bytes]:
    """Raise what a bug raises."""
    raise RuntimeError("this page always fails")


PAGES: dict[str, Page] = {
    "/hello": hello,
    "/slow": slow,
    "/stream": stream,
    "/upload": upload,
    "/crash": crash,
    "/error": error,
}


def _front_page(environ: Environ, number: int) -> str:
    facts = {
        "server": environ.get("SERVER_SOFTWARE", "unknown"),
        "worker process": os.getpid(),
        "its parent": os.getppid(),
        "generation": environ.get("forkserve.generation", "unknown"),
        "requests of this process": number,
        "you": environ.get("REMOTE_ADDR", "unknown"),
    }
    rows = "".join(f"<tr><th>{html.escape(name)}<td>{html.escape(str(fact))}" for name, fact in facts.items())
    links = "".join(
        f'<li><a href="{path}">{path}</a> {html.escape(page.__doc__ or "")}' for path, page in PAGES.items()
    )
    return FRONT_PAGE.replace("ROWS", rows).replace("LINKS", links)


FRONT_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>forkserve: it runs</title>
<style>
  :root { color-scheme: light dark }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 42em; margin: 10vh auto; padding: 0 1em }
  h1 { font-weight: 600 }
  table { border-collapse: collapse; margin: 1.5em 0 }
  th, td { text-align: left; padding: .3em 1.5em .3em 0; border-bottom: 1px solid #8884 }
  th { font-weight: 400; opacity: .7 }
  code, a { font-family: ui-monospace, monospace }
</style>
<h1>It runs.</h1>
<p>This page was made by one of the worker processes. Load it again: another one may answer.
<table>ROWS</table>
<p>Things to try:
<ul>LINKS</ul>
<p>While something runs, send the master <code>kill -HUP</code> and see that nothing is lost.
</html>
"""
