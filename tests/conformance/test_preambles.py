"""Each preamble of the PROXY protocol means the same to the pure floor and over a socket, however it is cut.

``preambles/NAME.raw`` holds the bytes, most with two requests behind the preamble; ``preambles.json`` what they mean:

    {"status": 400}          refused
    {"environ": {…}}         accepted: these variables in both requests; those that are not named are the connection's
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from forkserve.http.errors import RefusedRequest
from forkserve.http.proxy_protocol import Preamble, crc32c, read_preamble
from tests.conformance.driver import HERE, at_random_cuts, by_byte, first_request
from tests.conformance.test_requests import describe
from tests.serving import Served, serving

EXPECTED: dict[str, dict[str, Any]] = json.loads((HERE / "preambles.json").read_text())
NAMES = sorted(EXPECTED)
BY_BYTE_BYTES_MAX = 1000
"""Over a socket; the longer ones differ in nothing but their length."""


def raw(name: str) -> bytes:
    return (HERE / "preambles" / f"{name}.raw").read_bytes()


def cuts(name: str) -> Iterator[list[bytes]]:
    data = raw(name)
    yield [data]
    yield by_byte(data)
    for seed in range(10):
        yield at_random_cuts(data, f"{name}{seed}")


def fed(parts: list[bytes], version: Any = "auto") -> tuple[Preamble | None, int]:
    """The preamble, and the status of it and the first request behind it."""
    data = b""
    for index, part in enumerate(parts):
        data += part
        try:
            preamble = read_preamble(data, version)
        except RefusedRequest as refused:
            return None, refused.status
        if preamble is not None:
            assert preamble.size > len(data) - len(part), "it was whole before"
            return preamble, first_request([data[preamble.size :], *parts[index + 1 :]]).status
    return None, 400  # cut


def test_every_file_has_an_expectation_and_the_other_way_round() -> None:
    assert {path.stem for path in (HERE / "preambles").glob("*.raw")} == set(EXPECTED)


@pytest.mark.parametrize("name", NAMES)
def test_preamble_is_read_the_same_whole_by_byte_and_at_random_cuts(name: str) -> None:
    expected = EXPECTED[name]
    for parts in cuts(name):
        preamble, status = fed(parts)
        assert status == expected.get("status", 200)
        if "environ" in expected:
            assert preamble is not None
            assert preamble.variables == expected["environ"]


@pytest.mark.parametrize("name", [name for name in NAMES if "environ" in EXPECTED[name]])
def test_version_that_is_not_expected_is_refused(name: str) -> None:
    own, other = ("v1", "v2") if name.startswith("v1") else ("v2", "v1")
    assert fed([raw(name)], own)[1] == 200
    assert fed([raw(name)], other) == (None, 400)
    assert fed(by_byte(raw(name)), other) == (None, 400)


def test_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720 appendix B.4


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving(describe, proxy_protocol="auto") as served:
        yield served


@pytest.mark.parametrize("name", NAMES)
def test_server_takes_it_whole_by_byte_and_at_random_cuts(server: Served, name: str) -> None:
    data = raw(name)
    expected = EXPECTED[name]
    for parts in ([data], at_random_cuts(data, name), *([by_byte(data)] if len(data) < BY_BYTE_BYTES_MAX else [])):
        answers = server.talk(parts)
        if "status" in expected:
            assert [answer.status for answer in answers] == [expected["status"]]
            assert answers[0].header("Connection") == "close"
            continue
        assert [answer.status for answer in answers] == [200, 200]
        for answer in answers:
            environ = json.loads(answer.body)["environ"]
            named = {"REMOTE_ADDR": "127.0.0.1"} | expected["environ"]
            assert {key: environ[key] for key in named} == named
            told = {key for key in environ if key.startswith("PROXY_")}
            assert told == {key for key in named if key.startswith("PROXY_")}


def test_any_byte_in_any_place_is_read_or_refused() -> None:
    for name in NAMES:
        data = raw(name)[:BY_BYTE_BYTES_MAX]
        for place in range(min(len(data), 120)):
            for byte in (0, 1, 10, 13, 32, 37, 48, 127, 255, data[place] ^ 1, data[place] ^ 16):
                changed = data[:place] + bytes([byte]) + data[place + 1 :]
                assert fed([changed])[1] in (200, 400, 501, 505)
