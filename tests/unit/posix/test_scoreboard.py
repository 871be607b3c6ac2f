"""The scoreboard: rows in memory that outlives their writers."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

import pytest

from forkserve.posix import process, scoreboard
from forkserve.posix.scoreboard import TEXT_BYTES_MAX, InFlight, Scoreboard


@pytest.fixture
def board() -> Scoreboard:
    return Scoreboard.create(4)


def test_rows_do_not_touch_each_other(board: Scoreboard) -> None:
    for slot in range(4):
        board.row(slot).claim(worker_id=slot + 10, generation=3, now_ns=slot + 1)
        board.row(slot).words[scoreboard.CALLS_MAX] = 1
        board.row(slot).cell(0).begin(slot + 100, b"GET /%d HTTP/1.1\r\nHost: a\r\n" % slot + b"x" * 1000)
    for slot in range(4):
        row = board.row(slot)
        assert row.words[scoreboard.WORKER_ID] == slot + 10
        assert row.in_flight() == [InFlight(f"GET /{slot} HTTP/1.1", slot + 100)]


def test_a_request_is_in_flight_from_begin_to_end(board: Scoreboard) -> None:
    row = board.row(0)
    row.words[scoreboard.CALLS_MAX] = 3
    assert row.in_flight() == []
    row.cell(1).begin(5, b"GET / HTTP/1.1\r\n")
    row.cell(2).begin(4, b"GET /older HTTP/1.1\r\n")
    assert row.in_flight() == [InFlight("GET /older HTTP/1.1", 4), InFlight("GET / HTTP/1.1", 5)]
    row.cell(2).end()
    row.cell(1).end()
    assert row.in_flight() == []


def test_a_long_request_line_is_cut(board: Scoreboard) -> None:
    board.row(0).cell(0).begin(5, b"GET /" + b"a" * 9000 + b" HTTP/1.1")
    in_flight = board.row(0).cell(0).in_flight()
    assert in_flight is not None
    assert len(in_flight.request_line) == TEXT_BYTES_MAX


def test_the_last_sign_of_life_is_a_turn_or_the_begin_of_a_call(board: Scoreboard) -> None:
    row = board.row(0)
    row.words[scoreboard.CALLS_MAX] = 1
    row.beat(7)
    assert row.last_sign_ns() == 7
    row.cell(0).begin(9, b"GET / HTTP/1.1")
    assert row.last_sign_ns() == 9
    row.beat(11)
    assert row.last_sign_ns() == 11


def test_a_claimed_row_is_a_newcomers(board: Scoreboard) -> None:
    board.row(1).words[scoreboard.CALLS_MAX] = 1
    board.row(1).cell(0).begin(5, b"GET / HTTP/1.1")
    board.row(1).claim(worker_id=2, generation=1, now_ns=6)
    assert board.row(1).cell(0).in_flight() is None
    assert board.row(1).in_flight() == []
    assert board.row(1).words[scoreboard.REQUESTS] == 0


def test_there_is_no_row_beyond_the_last(board: Scoreboard) -> None:
    for slot in (-1, 4):
        with pytest.raises(IndexError):
            board.row(slot)


def test_what_a_killed_process_was_doing_can_still_be_read(board: Scoreboard) -> None:
    def child() -> NoReturn:
        Scoreboard.attach(board.fd).row(2).cell(0).begin(42, b"POST /pay HTTP/1.1\r\n")
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    pid = process.fork_child(child)
    os.waitpid(pid, 0)
    assert board.row(2).cell(0).in_flight() == InFlight("POST /pay HTTP/1.1", 42)
