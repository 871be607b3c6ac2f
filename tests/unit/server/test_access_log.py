"""The access log: atoms, JSON, and outputs that are closed or full."""

from __future__ import annotations

import json
import logging
import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkserve import log
from forkserve.server.access_log import AccessLog
from forkserve.settings import Settings
from tests.serving import serving

pytestmark = pytest.mark.usefixtures("worker_type")

REQUEST = (
    b'GET /a%0Ab?c=d HTTP/1.1\r\nHost: h\r\nUser-Agent: agent "x"\r\nReferer: http://r/\r\nX-In: in\r\n'
    b"Authorization: Basic dXNlcjpzZWNyZXQ=\r\n\r\n"
)


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("201 Created", [("X-Out", "out")])
    return [b"12345"]


def lines(template: str, data: bytes = REQUEST, app: Callable[..., Any] = application) -> list[str]:
    reader, writer = os.pipe()
    with serving(app, observer=AccessLog(writer, template)) as server:
        server.talk(data)
    text = os.read(reader, 65536).decode() if select.select([reader], [], [], 0)[0] else ""
    os.close(reader)
    os.close(writer)
    return text.splitlines()


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("%(h)s %(l)s %(u)s", "127.0.0.1 - user"),
        ("%(r)s", "GET /a%0Ab?c=d HTTP/1.1"),
        ("%(m)s %(U)s %(q)s %(H)s", "GET /a\\x0ab c=d HTTP/1.1"),
        ("%(s)s %(b)s %(B)s", "201 5 5"),
        ("%(f)s %(a)s", 'http://r/ agent \\"x\\"'),
        ("%({x-in}i)s %({User-Agent}i)s %({x-none}i)s", 'in agent \\"x\\" -'),
        ("%({X-Out}o)s %({x-none}o)s", "out -"),
        ("%({REQUEST_METHOD}e)s %({nothing}e)s", "GET -"),
        ("%(nosuchatom)s", "-"),
        ("%(p)s", f"<{os.getpid()}>"),
    ],
)
def test_atoms(template: str, expected: str) -> None:
    assert lines(template) == [expected]


def test_default_format_is_gunicorns() -> None:
    (line,) = lines(Settings().access_log_format)
    assert line.startswith("127.0.0.1 - user [")
    assert line.endswith('] "GET /a%0Ab?c=d HTTP/1.1" 201 5 "http://r/" "agent \\"x\\""')


def test_durations_are_numbers() -> None:
    (line,) = lines("%(T)s %(D)s %(M)s %(L)s")
    seconds, micros, millis, decimal = line.split()
    assert int(seconds) == 0
    assert int(micros) >= 0
    assert int(millis) <= int(micros)
    assert float(decimal) < 5


def test_json_has_one_object_a_request() -> None:
    (first, second) = map(json.loads, lines("json", REQUEST + b"GET / HTTP/1.1\r\n\r\n"))
    assert (first["status"], first["path"], first["body_bytes"], first["client"]) == (201, "/a\nb", 5, "127.0.0.1")
    assert (second["status"], second["request"]) == (400, "GET / HTTP/1.1")


def test_refused_bytes_cannot_forge_a_line() -> None:
    assert lines('%(h)s "%(r)s" %(s)s', b'GET /\x1b[31m"\nx HTTP/1.1\r\nHost: h\r\n\r\n') == [
        '127.0.0.1 "GET /\\x1b[31m\\"\\x0ax HTTP/1.1" 400'
    ]


def test_malformed_format_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="format"):
        AccessLog(1, "%(h)z")


def test_closed_output_ends_nothing() -> None:
    reader, writer = os.pipe()
    with serving(application, observer=AccessLog(writer, "%(r)s")) as server:
        os.close(reader)
        assert [answer.status for answer in server.talk(REQUEST * 3)] == [201] * 3
    os.close(writer)


def test_full_output_ends_nothing() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    while select.select([], [writer], [], 0)[1]:
        os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    with serving(application, observer=AccessLog(writer, "%(r)s")) as server:
        assert [answer.status for answer in server.talk(REQUEST * 3)] == [201] * 3
    os.close(reader)
    os.close(writer)


def test_handlers_of_the_users_logger_get_each_line(tmp_path: Path) -> None:
    config = {
        "handlers": {"h": {"class": "logging.FileHandler", "filename": str(tmp_path / "access")}},
        "loggers": {"gunicorn.access": {"handlers": ["h"]}},
    }
    try:
        log.setup(Settings(logconfig_dict=config, loglevel="error"))
        assert lines("%(r)s 100%%", REQUEST * 2) == []
    finally:
        for place in (log.logger, log.access_logger):
            for handler in place.handlers[:]:
                place.removeHandler(handler)
                handler.close()
            place.propagate = True
        log.logger.setLevel(logging.NOTSET)
    assert (tmp_path / "access").read_text() == "GET /a%0Ab?c=d HTTP/1.1 100%\n" * 2


def test_application_with_broken_headers_still_has_its_line() -> None:
    def broken(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(200, "headers")
        return [b""]

    assert lines("%(s)s %({x}o)s", app=broken) == ["500 -"]


@pytest.mark.parametrize("rest", [b"Host: h", b"Host: h\r\nContent-Length: 5\r\n\r\nabc"])
def test_a_request_that_is_cut_is_named(rest: bytes) -> None:
    assert lines('"%(r)s" %(s)s', b"POST /a HTTP/1.1\r\n" + rest) == ['"POST /a HTTP/1.1" 400']
