"""The pure parts of the benchmark: what wrk, strace and perf say, medians, ratios, tables."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench import report
from tests.bench.__main__ import parse_arguments
from tests.bench.calls import parse_perf, parse_strace
from tests.bench.errors import BenchError
from tests.bench.idle import IdleCost
from tests.bench.load import parse
from tests.bench.report import Result, median_of
from tests.bench.samples import Sample, summary_of, used_s
from tests.bench.servers import command, require
from tests.bench.usage import cpu_s_by_process, memory_bytes, processes_of
from tests.bench.workloads import WORKLOADS

SAID = (
    "  29001 requests in 1.01s, 5.45MB read\nRequests/sec:  28700.01\n"
    '{"requests": 29001, "seconds": 1.010500, "p50_ms": 2.000, "p99_ms": 6.000, "max_ms": 9.5,'
    ' "errors": {"connect": 0, "read": 2, "write": 0, "status": 3, "timeout": 0}}\n'
)


def sample(per_s: float = 1000, cpu_us: float = 50, p50_ms: float = 2, p99_ms: float = 6, **other: float) -> Sample:
    requests = round(per_s * 2)
    return Sample(requests, 2.0, cpu_us * requests / 1e6, p50_ms, p99_ms, max_ms=other.get("max_ms", 10.0))


def test_what_wrk_says_is_read() -> None:
    seen = parse(SAID, cpu_s=0.4)
    assert (seen.requests, seen.seconds, seen.p50_ms, seen.p99_ms, seen.max_ms) == (29001, 1.0105, 2.0, 6.0, 9.5)
    assert seen.complaints == ("2 reads failed", "3 answers were no 2xx or 3xx")
    assert seen.cpu_s == 0.4


def test_a_load_without_answers_is_an_error_that_says_why() -> None:
    with pytest.raises(BenchError, match="no request was answered: 64 connections failed"):
        parse(SAID.replace("29001", "0").replace('"connect": 0', '"connect": 64').replace('"read": 2', '"read": 0')
              .replace('"status": 3', '"status": 0'))  # fmt: skip
    with pytest.raises(BenchError, match="did not say what came of it: unable to connect"):
        parse("unable to connect\n")


def test_system_calls_that_strace_counted_are_shared_among_requests() -> None:
    table = "    calls syscall\n--------- ----------------\n     2000 recvfrom\n      500 futex\n     2500 total\n"
    assert parse_strace(table, 1000) == {"recvfrom": 2.0, "futex": 0.5}


def test_system_calls_that_perf_counted_are_shared_and_the_rest_is_told() -> None:
    table = (
        "# started on a day\n\n"
        "4300,,raw_syscalls:sys_enter,1208502243,100.00,,\n"
        "2000,,syscalls:sys_enter_sendto,1208502243,100.00,,\n"
        "2200,,syscalls:sys_enter_recvfrom,1208502243,100.00,,\n"
        "0,,syscalls:sys_enter_futex,1208502243,100.00,,\n"
    )
    assert parse_perf(table, 1000) == {"recvfrom": 2.2, "sendto": 2.0, "others": 0.1}
    assert sum(parse_perf(table, 1000).values()) == pytest.approx(4.3)


def test_medians_are_taken_of_each_number_by_itself() -> None:
    found = summary_of([sample(1000, 50, max_ms=8), sample(3000, 40), sample(2000, 90, p99_ms=20)])
    assert (found.per_s, found.cpu_us, found.cpu_us_min, found.cpu_us_max) == pytest.approx((2000, 50, 40, 90))
    assert (found.p99_ms, found.max_ms, found.unfairness) == (6, 10, 3)
    assert (median_of([]), median_of([5, 1]), median_of([9, 1, 2])) == (0, 3, 2)


def test_processor_time_is_the_growth_of_each_clock_and_names_the_lost_ones() -> None:
    assert used_s({1: 1.0, 2: 5.0}, {1: 1.5, 2: 5.25, 3: 0.25}) == (1.0, ())
    cpu_s, complaints = used_s({1: 1.0, 2: 5.0}, {1: 2.0})
    assert cpu_s == 1.0
    assert complaints == ("1 processes of the server ended, their time is not counted",)


def test_what_is_possible_depends_on_the_calls_that_run_at_once() -> None:
    wait, compute, hello = WORKLOADS["wait"], WORKLOADS["compute"], WORKLOADS["hello"]
    assert [wait.calls_at_once(server, worker, 64) for server, worker in (
        ("forkserve", "sync"), ("gunicorn", "gthread"), ("gunicorn", "gevent"), ("granian", "gevent"),
    )] == [1, 32, 64, 32]  # fmt: skip
    assert wait.possible_per_s(32, 0.0) == 1600
    assert compute.possible_per_s(1, 2000.0) == 500
    assert hello.possible_per_s(1, 0.0) is None


def test_the_table_compares_with_gunicorn() -> None:
    result = Result("gthread", 64)
    result.samples["compute"] = {"forkserve": [sample(490, 2010)], "gunicorn": [sample(400, 2400, 100, 900)]}
    result.alone["compute"], result.in_place["compute"] = [2000.0], 2002.0
    heading, forkserve, gunicorn, alone, in_place = report.table(result).splitlines()
    assert heading.startswith("gthread   server")
    assert forkserve.split()[:8] == ["compute", "forkserve", "490", "1.23", "2010.0", "0.84", "2010.0", "…"]
    assert forkserve.endswith("98.0% of the possible")
    assert gunicorn.split()[:5] == ["gunicorn", "400", "1.00", "2400.0", "1.00"]
    assert alone.split() == ["in", "a", "loop", "2000.0"]
    assert in_place.split() == ["in", "place", "2002.0"]
    assert report.GREEN in report.table(result, is_coloured=True)
    assert "\033" not in report.table(result)


def test_without_gunicorn_there_is_no_ratio() -> None:
    result = Result("sync", 64)
    result.samples["hello"] = {"granian": [sample()]}
    assert report.table(result).splitlines()[1].split()[:5] == ["hello", "granian", "1,000", "-", "50.0"]


def test_idle_connections_are_told_with_their_memory_and_what_they_slow() -> None:
    result = Result("sync", 64)
    result.idle["forkserve"] = IdleCost(10_000, (10_000, 9_990), 2048.0, 20.0, 22.0, 5.0, 6.0)
    row = report.idle_table(result).splitlines()[1].split()
    assert row == ["forkserve", "10,000", "10,000", "…", "9,990", "2.00", "20.0", "22.0", "1.10", "5.00", "6.00"]
    assert report.document(result)["idle"]["forkserve"]["kept"] == (10_000, 9_990)


def test_the_same_worker_type_is_asked_of_each_server() -> None:
    python, wait = Path("/venv/bin/python"), WORKLOADS["wait"]
    forkserve = command(python, "forkserve", "gthread", wait, 8000, 1000)
    gunicorn = command(python, "gunicorn", "gthread", wait, 8000, 1000)
    assert forkserve == [part.replace("gunicorn", "forkserve") for part in gunicorn]
    assert "--threads 32" in " ".join(gunicorn)
    assert "--threads" not in command(python, "gunicorn", "sync", wait, 8000, 1000)
    assert "--blocking-threads 1 " in " ".join(command(python, "granian", "sync", wait, 8000, 1000))


def test_a_missing_program_is_named_with_its_package() -> None:
    with pytest.raises(BenchError, match=r"no-such-program is not installed \(Debian: apt install some-package\)"):
        require({"no-such-program": "some-package"})


def test_the_command_line_has_bounds() -> None:
    assert parse_arguments(["--worker", "all"]).workers == ["sync", "gthread", "gevent"]
    assert parse_arguments(["--workloads", "--idle", "10000"]).workloads == []
    for wrong in (["--rounds", "0"], ["--workloads", "nothing"], ["--cpus", "3"]):
        with pytest.raises(SystemExit):
            parse_arguments(wrong)


def test_the_clock_of_a_process_counts_threads_that_have_ended() -> None:
    code = (
        "import sys, threading, time\n"
        "def work():\n"
        "    while time.thread_time() < 0.1: pass\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()\n"
        "print(flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert processes_of(process.pid) == [process.pid]
        assert 0.1 <= cpu_s_by_process(process.pid)[process.pid] < 5
        assert memory_bytes(process.pid) > 1_000_000
        process.communicate()
    assert cpu_s_by_process(process.pid) == {}


def test_an_own_clock_is_the_same_as_the_interpreter_has() -> None:
    before = time.process_time()
    found = cpu_s_by_process(os.getsid(0)).get(os.getpid())
    assert found is not None
    assert before <= found <= time.process_time()
