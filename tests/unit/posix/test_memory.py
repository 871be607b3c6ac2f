"""Memory of processes, and the kernel's count of those that it has killed for want of it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from forkserve.posix import memory


def test_memory_that_is_touched_counts() -> None:
    before = memory.used_bytes(os.getpid())
    assert before is not None
    with mmap.mmap(-1, 32 << 20) as taken:
        for offset in range(0, len(taken), mmap.PAGESIZE):
            taken[offset] = 1
        after = memory.used_bytes(os.getpid())
    assert after is not None
    assert 30 << 20 < after - before < 40 << 20


def test_where_the_share_cannot_be_read_resident_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "smaps_rollup":
            raise PermissionError
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    used = memory.used_bytes(os.getpid())
    assert used is not None
    assert used > 5 << 20


def test_a_process_that_has_ended_has_none() -> None:
    assert memory.used_bytes(2**22) is None  # above the largest pid (proc(5), pid_max)


@pytest.mark.parametrize(
    ("text", "count"), [("low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\n", 2), ("oom_kill_disable 0\noom_kill 7\n", 7)]
)
def test_the_kernels_count_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, count: int) -> None:
    file = tmp_path / "memory.events"
    file.write_text(text)
    monkeypatch.setattr(memory, "_event_files", lambda: [tmp_path / "missing", file])
    assert memory.kill_count() == count


def test_where_nobody_counts_there_were_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_event_files", lambda: [tmp_path / "missing"])
    assert memory.kill_count() == 0
