"""The fuzzer for a few seconds, always with the same inputs; and planted faults, which it must find."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.cases import Case, Ending, Mode, load, make_case, save
from tests.fuzz.fuzz import generated, run, shrink, targets
from tests.harness import ROOT

SEED = "make test"
INPUTS = 1_500
INPUTS_OF_A_FAULT = 1_500
"""A planted fault must be found within so many."""


def test_no_input_hurts_the_worker(tmp_path: Path) -> None:
    with targets() as aim:
        failure = run(itertools.islice(generated(SEED), INPUTS), aim)
    if failure is not None:
        save(tmp_path / "failure.jsonl", failure.cases, failure.problem)
        pytest.fail(f"{failure.problem}\nTry it again: python -m tests.fuzz.fuzz --replay {tmp_path}/failure.jsonl")
    for what in ("accepted", "refused", "cut", "unread"):
        assert aim.tally[what] > INPUTS / 50, "else the inputs test little"


FAULTS = {
    "accepts what can be framed in two ways": (
        Mode.BUFFERED,
        "import forkserve.http.request as request\n"
        "request._check_transfer_encoding = lambda environ, is_http11: None\n",
        "accepted by the server",
    ),
    "refuses what is right": (
        Mode.BUFFERED,
        "import forkserve.http.request as request\nrequest._TOKEN = request.re.compile('[A-Za-z-]+')\n",
        "accepted by the parser, but the server answers 400",
    ),
    "gives a body one byte too short": (
        Mode.BUFFERED,
        "from forkserve.server.body import BodyReader\n"
        "keep = BodyReader._keep\n"
        "BodyReader._keep = lambda self, block: keep(self, block[:4])\n",
        "the application did not see",
    ),
    "loses what is pipelined behind a body": (
        Mode.BUFFERED,
        "from forkserve.server.body import BodyReader\n"
        "feed = BodyReader.feed\n"
        "BodyReader.feed = lambda self, data: feed(self, data) and b''\n",
        "accepted by the parser, but|an answer is missing",
    ),
    "takes an unread body for the next request": (
        Mode.STREAMED,
        "from forkserve.server.connection import Connection\n"
        "def start_skipping(self, stream):\n"
        "    self._stream, self._buffer = None, stream.rest or bytes(stream._block)\n"
        "    self._become_idle()\n"
        "Connection._start_skipping = start_skipping\n",
        "accepted by the parser, but|answers too many",
    ),
    "leaves a byte of the balancer's preamble": (
        Mode.PROXIED,
        "import forkserve.http.proxy_protocol as protocol\n"
        "read = protocol.read_preamble\n"
        "def read_preamble(data, version):\n"
        "    preamble = read(data, version)\n"
        "    return preamble and preamble._replace(size=preamble.size - 1)\n"
        "protocol.read_preamble = read_preamble\n",
        "accepted by the parser, but|the good request",
    ),
    "sends a body after the head of a HEAD": (
        Mode.BUFFERED,
        "from forkserve.http.response import HeadWriter\n"
        "refusal = HeadWriter.refusal\n"
        "HeadWriter.refusal = lambda self, refused, wall_s, is_head: refusal(self, refused, wall_s, is_head=False)\n",
        "no sequence of answers",
    ),
    "has a defect": (
        Mode.BUFFERED,
        "from forkserve.server.connection import Connection\nConnection._on_end_of_stream = lambda self: 1 // 0\n",
        "ZeroDivisionError",
    ),
    "ends the worker": (
        Mode.BUFFERED,
        "import os\n"
        "from forkserve.server.exchange import Exchange\n"
        "run = Exchange.run\n"
        "Exchange.run = lambda self: os._exit(1) if 'HTTP_COOKIE' in self.environ else run(self)\n",
        "not by worker",
    ),
    "leaks descriptors": (
        Mode.BUFFERED,
        "import os\n"
        "from forkserve.server.connection import Connection\n"
        "refuse = Connection._refuse\n"
        "Connection._refuse = lambda self, refused, head: (os.dup(self.fd), refuse(self, refused, head))[1]\n",
        "descriptors open instead of",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, tmp_path: Path) -> None:
    mode, code, says = FAULTS[fault]
    (tmp_path / "planted.py").write_text(f"{code}\nfrom tests.fuzz.application import application\n")
    inputs = (case for case in generated(SEED) if case.mode is mode)
    with targets("planted:application", path=tmp_path, modes=[mode]) as aim:
        failure = run(itertools.islice(inputs, INPUTS_OF_A_FAULT), aim, narrowed=False)
    assert failure is not None
    assert re.search(says, failure.problem)


def test_a_failure_is_made_small_and_can_be_replayed(tmp_path: Path) -> None:
    case = Case(
        (b"GET / HTTP/1.1\r\nHo", b"st: a\r\nX: bad", b"\r\n\r\n" * 20), Ending.RESET, is_unix=False, name="one"
    )

    def problem_of(case: Case) -> str | None:
        return "it is bad" if b"bad" in case.data else None

    small, problem = shrink(case, "it was bad", problem_of)
    assert (small.data, problem) == (b"bad", "it is bad")
    save(tmp_path / "failure", [case, small], problem)
    assert load(tmp_path / "failure") == [case, small]


def test_a_seed_gives_the_same_inputs_again() -> None:
    first = [make_case("a", number) for number in range(50)]
    assert first == [make_case("a", number) for number in range(50)]
    assert first != [make_case("b", number) for number in range(50)]
    assert len({case.data for case in first}) > 40


def test_the_command_says_what_it_does_and_writes_nothing_when_nothing_hurts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.fuzz", "--seed", "7", "--seconds", "1"]
    done = subprocess.run(
        [*command, "--failure", str(tmp_path / "failure")], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("Seed 7, for 1 s …\n")
    assert done.stdout.endswith("Nothing hurt the worker.\n")
    assert not (tmp_path / "failure").exists()
