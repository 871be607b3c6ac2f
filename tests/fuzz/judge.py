"""Was a case answered rightly?  The pure parser reads the same bytes, and its account is compared with what came back.

    case.data ── every_request (tests/conformance/driver.py) ──▶ outcomes ─┐
    received  ── read_answers (tests/serving.py) ──────────────▶ answers ──┴─ walked side by side ──▶ a problem, or None

Held for each connection that the client reads to its end:
  - what comes is well-formed answers and nothing else, and the server ends the connection;
  - the server accepts what the pure parser accepts, refuses what it refuses, in order, however the bytes were cut;
  - the application saw that environ and that body (tests/fuzz/application.py), and its answer came whole;
  - nothing is answered after an answer that says ``Connection: close``, and every other answer's successor is there.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from typing import Final

from forkserve.http.errors import RefusedRequest
from forkserve.http.proxy_protocol import read_preamble
from forkserve.server.connection import UNREAD_BYTES_MAX
from tests.conformance.driver import Outcome, every_request
from tests.fuzz.application import answer as reply_of
from tests.fuzz.cases import Case, Ending, Mode
from tests.fuzz.client import Received
from tests.serving import Answer, read_answers

TIMEOUT_S: Final = 1.0
"""The server's header_timeout and body_timeout: a client that took longer may be told so (408)."""

LIMITS: Final = frozenset({414, 431})
"""Refusals by length: with two things wrong, it depends on how many bytes are there which is seen first."""


class Problem(AssertionError):
    """A case was not answered rightly; the text says how."""


def judge(case: Case, received: Received, tally: Counter[str]) -> None:
    """Compare; counts what it saw in ``tally``.

    Raises:
        Problem: it does not fit.
    """
    outcomes = _outcomes([case.data], case.mode)
    if not _agree(outcomes, _outcomes(case.parts, case.mode)):
        raise Problem(f"the pure parser gives something else in pieces than whole ({_described(outcomes)})")
    if case.ending in (Ending.LEAVE, Ending.RESET):
        tally["unread"] += 1
        return
    if not received.has_ended:
        raise Problem(f"the connection was not ended within {received.seconds:.1f} s")
    methods = tuple("HEAD" if outcome.method == "HEAD" else "GET" for outcome in outcomes)
    try:
        answers = read_answers(io.BufferedReader(io.BytesIO(received.data)), methods)
    except (AssertionError, ValueError) as error:
        raise Problem(f"what came back is no sequence of answers: {error}") from error
    _walk(case, received, outcomes, answers, tally)


def _outcomes(parts: Sequence[bytes], mode: Mode) -> list[Outcome]:
    """What the pure floor makes of the bytes of a connection."""
    if mode is not Mode.PROXIED:
        return list(every_request(parts))
    data = b""
    for number, part in enumerate(parts, 1):
        data += part
        try:
            preamble = read_preamble(data, "auto") if data else None
        except RefusedRequest as refused:
            return [Outcome(refused.status)]
        if preamble is not None:
            return list(every_request([data[preamble.size :], *parts[number:]]))
    return [Outcome(400, is_cut=True)] if data else []


def _walk(
    case: Case, received: Received, outcomes: Sequence[Outcome], answers: Sequence[Answer], tally: Counter[str]
) -> None:
    left = list(answers)
    client_closed = False
    for outcome in outcomes:
        interim = list(takewhile(lambda answer: answer.status < 200, left))
        del left[: len(interim)]
        if not left and case.mode is Mode.STREAMED and len(case.data) > UNREAD_BYTES_MAX:
            break  # too much was left unread of a body whose length is not said: the connection ends there
        if not left:
            raise Problem(f"an answer is missing to {outcome.method!r} of {_described(outcomes)}")
        answer = left.pop(0)
        may_be_short = received.was_reset and not outcome.keep_alive and not case.is_unix and not left
        if outcome.status == 200:
            _compare(outcome, answer, case, tally, may_be_short=may_be_short)
        elif case.mode is Mode.STREAMED and outcome.head_environ and answer.header("X-Seen") is not None:
            _compare_unread(outcome, answer, tally)
        else:
            _compare_refusal(case, received, outcome, answer, tally)
        _check_interim(outcome, interim, answer)
        if answer.header("Connection") != "keep-alive":
            client_closed = bool(outcome.head_environ) and not outcome.keep_alive
            break
    if left:
        raise Problem(f"{len(left)} answers too many, the first is {left[0].status}, to {_described(outcomes)}")
    if received.was_reset and not client_closed:
        raise Problem("the server reset the connection")
    tally["nothing asked"] += not outcomes


def _compare(outcome: Outcome, answer: Answer, case: Case, tally: Counter[str], *, may_be_short: bool) -> None:
    """An accepted request.  ``may_be_short``: the client sent on after it had said close; over TCP it may be reset."""
    environ = outcome.head_environ if case.mode is Mode.STREAMED else outcome.environ
    reply = reply_of({**environ, "wsgi.input": io.BytesIO(outcome.body)})
    seen = answer.header("X-Seen")
    if seen is None:
        raise Problem(f"accepted by the parser, but the server answers {answer.status} {answer.body[:200]!r}")
    if seen != reply.seen:
        raise Problem(f"the application did not see {environ} and a body of {len(outcome.body)} bytes")
    if answer.status != int(reply.status[:3]) or answer.header("X-Wrong"):
        raise Problem(f"status {answer.status} instead of {reply.status}")
    body = b"" if outcome.method == "HEAD" else reply.body
    if may_be_short and len(answer.body) < len(body) and body.startswith(answer.body):
        tally["reset by their own sender"] += 1
        return
    if answer.body != body or not answer.is_whole:
        raise Problem(f"the answer ({reply.way}) has {len(answer.body)} bytes instead of {len(body)}, or others")
    is_kept = answer.header("Connection") == "keep-alive"
    if is_kept and not outcome.keep_alive:
        raise Problem("the connection is kept against the client's wish")
    has_end = reply.has_known_length or outcome.environ["SERVER_PROTOCOL"] == "HTTP/1.1" or outcome.method == "HEAD"
    if not is_kept and outcome.keep_alive and not reply.closes and has_end and case.mode is not Mode.STREAMED:
        raise Problem("the connection is closed without need")
    tally["accepted"] += 1


def _compare_unread(outcome: Outcome, answer: Answer, tally: Counter[str]) -> None:
    """An application that reads bodies as they come has answered without reading one that it would not have got."""
    if reply_of({**outcome.head_environ, "wsgi.input": _Unreadable()}).seen != answer.header("X-Seen"):
        raise Problem("the application saw something else than what was sent")
    tally["unread bodies"] += 1


class _Unreadable(io.RawIOBase):
    def read(self, size: int | None = -1, /) -> bytes:
        raise Problem("the application has read a body that is refused, and answered all the same")

    readline = read


def _check_interim(outcome: Outcome, interim: Sequence[Answer], answer: Answer) -> None:
    statuses = [each.status for each in interim]
    if statuses.count(100) > outcome.expects_continue:
        raise Problem("100 Continue for a request that does not expect it")
    is_hinted = answer.header("X-Way") == "hinted" and outcome.head_environ["SERVER_PROTOCOL"] != "HTTP/1.0"
    if statuses.count(103) != is_hinted:
        raise Problem(f"interim answers {statuses}")


def _compare_refusal(case: Case, received: Received, outcome: Outcome, answer: Answer, tally: Counter[str]) -> None:
    if answer.header("X-Seen") is not None:
        raise Problem(f"refused by the parser ({outcome.status}), but accepted by the server")
    if answer.header("Connection") == "keep-alive":
        raise Problem("the connection is kept after a refusal")
    if answer.status == 408 and received.seconds >= TIMEOUT_S:
        tally["late"] += 1
        return
    if outcome.is_cut and case.ending is Ending.WAIT:
        raise Problem(f"a request that does not end is answered with {answer.status} instead of 408")
    if not _same_refusal(answer.status, outcome.status):
        raise Problem(f"refused with {answer.status} instead of {outcome.status}: {answer.body[:200]!r}")
    tally["cut" if outcome.is_cut else "refused"] += 1


def _agree(whole: Sequence[Outcome], in_pieces: Sequence[Outcome]) -> bool:
    if list(whole) == list(in_pieces):
        return True
    same_length = len(whole) == len(in_pieces)
    return same_length and whole[:-1] == in_pieces[:-1] and _same_refusal(whole[-1].status, in_pieces[-1].status)


def _same_refusal(first: int, second: int) -> bool:
    return first == second or (min(first, second) >= 400 and bool(LIMITS & {first, second}))


def _described(outcomes: Sequence[Outcome]) -> str:
    return f"{len(outcomes)} requests {[outcome.status for outcome in outcomes[:20]]}"
