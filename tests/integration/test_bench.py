"""The benchmark runs: one short turn of some workloads, with a real load and a real server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.bench", "--python", sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


@pytest.fixture
def wrk() -> None:
    if shutil.which("wrk") is None:
        assert os.environ.get("CI") != "true", "there is no wrk command, though .ci/run installs it"
        pytest.skip("wrk is not installed (Debian: apt install wrk)")


@pytest.mark.usefixtures("wrk")
def test_a_short_run_measures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    written = tmp_path / "found.json"
    short = f"--servers forkserve --rounds 1 --seconds 1 --connections 4 --json {written}".split()
    done = bench(*short, "--workloads", "hello", "upload", "stream", "file")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(written.read_text())["results"]
    assert found["worker"] == "sync"
    for workload in ("hello", "upload", "stream", "file"):
        (sample,) = found["requests"][workload]["forkserve"]["samples"]
        assert sample["requests"] > 0
        assert 0 < sample["cpu_s"] <= sample["seconds"] * 1.5
        assert sample["complaints"] == []
        assert f"\n{workload} " in done.stdout
    assert "\033" not in done.stdout


def test_a_server_that_does_not_come_up_is_shown_with_what_it_said(tmp_path: Path, wrk: None) -> None:
    broken = tmp_path / "python"
    broken.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\necho no such server >&2\nexit 1\n')
    broken.chmod(0o755)
    done = bench("--python", str(broken), "--servers", "gunicorn", "--workloads", "hello", "--rounds", "1")
    assert done.returncode == 1
    assert "bench: this server does not answer" in done.stderr
    assert "no such server" in done.stderr
