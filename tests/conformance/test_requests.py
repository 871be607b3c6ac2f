"""Each raw request means the same to the pure floor and over a socket, however it is cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.driver import (
    BODY_BYTES_MAX,
    EXPECTED,
    HERE,
    NAMES,
    Outcome,
    at_random_cuts,
    by_byte,
    first_request,
    raw,
)
from tests.serving import Served, serving


def check(outcome: Outcome, expected: dict[str, Any]) -> None:
    assert outcome.status == expected.get("status", 200)
    if "status" in expected:
        return
    for key, value in expected["environ"].items():
        assert outcome.environ.get(key) == value
    for key in expected.get("absent", ()):
        assert key not in outcome.environ
    if "body" in expected:
        assert outcome.body == expected["body"].encode("latin-1")
    assert outcome.keep_alive == expected["keep_alive"]


def test_every_file_has_an_expectation_and_the_other_way_round() -> None:
    assert {path.stem for path in (HERE / "requests").glob("*.http")} == set(EXPECTED)


@pytest.mark.parametrize("name", NAMES)
def test_parser_gives_the_same_whole_by_line_by_byte_and_at_random_cuts(name: str) -> None:
    data = raw(name)
    check(first_request([data]), EXPECTED[name])
    check(first_request(data.splitlines(keepends=True)), EXPECTED[name])
    if len(data) < 10_000:
        check(first_request(by_byte(data)), EXPECTED[name])
    for seed in range(10):
        check(first_request(at_random_cuts(data, f"{name}{seed}")), EXPECTED[name])


def describe(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """An application that tells what it was given."""
    body = environ["wsgi.input"].read().decode("latin-1")
    told = {key: value for key, value in environ.items() if isinstance(value, str)}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"environ": told, "body": body}).encode()]


@pytest.fixture(scope="module", params=[True, False], ids=["buffered", "streamed"])
def server(request: pytest.FixtureRequest, worker_type: str) -> Iterator[Served]:
    with serving(describe, limit_request_body=BODY_BYTES_MAX, request_buffering=request.param) as served:
        yield served


@pytest.mark.parametrize("name", NAMES)
def test_server_answers_the_same_whole_and_at_random_cuts(server: Served, name: str) -> None:
    data = raw(name)
    expected = EXPECTED[name]
    statuses = expected.get("answers") or [expected.get("status", 200)]
    for parts in ([data], at_random_cuts(data, name)):
        answers = [answer for answer in server.talk(parts) if answer.status != 100]
        assert [answer.status for answer in answers] == statuses
        if "status" in expected:
            assert answers[0].header("Connection") == "close"
            assert answers[0].header("Content-Type") == "text/plain; charset=utf-8"
            continue
        told = json.loads(answers[0].body)
        environ, body = told["environ"], told["body"].encode("latin-1")
        if not server.reactor.settings.request_buffering and environ.pop("HTTP_TRANSFER_ENCODING", None):
            assert "CONTENT_LENGTH" not in environ  # nobody knew it before the body had been read
            environ["CONTENT_LENGTH"] = str(len(body))
        check(Outcome(200, environ, body, answers[0].header("Connection") == "keep-alive"), expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("chunked-", "pipeline-", "body-"))])
def test_server_answers_the_same_by_byte(server: Served, name: str) -> None:
    statuses = EXPECTED[name].get("answers") or [EXPECTED[name].get("status", 200)]
    answers = [answer for answer in server.talk(by_byte(raw(name))) if answer.status != 100]
    assert [answer.status for answer in answers] == statuses
