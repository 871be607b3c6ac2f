"""Counting CPUs under control groups, over made-up /proc and /sys trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forkserve.cpus import available_cpus


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def tree(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def test_affinity_counts_where_no_group_is(tmp_path: Path) -> None:
    assert available_cpus(str(tmp_path)) == 8


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("9900000 100000", 8),
        ("", 8),
    ],
)
def test_version_2_quota_counts_rounded_up(tmp_path: Path, quota: str, cpus: int) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": quota + "\n"})
    assert available_cpus(root) == cpus


def test_smallest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "400000 100000"}
    files["sys/fs/cgroup/a/cpu.max"] = "300000 100000"
    assert available_cpus(tree(tmp_path, files)) == 3


def test_quota_of_a_container_is_in_the_mounts_root(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/../../kubepods/x\n", "sys/fs/cgroup/cpu.max": "200000 100000"}
    assert available_cpus(tree(tmp_path, files)) == 2


@pytest.mark.parametrize(("quota", "cpus"), [("-1", 8), ("300000", 3)])
def test_version_1_quota_counts(tmp_path: Path, quota: str, cpus: int) -> None:
    files = {
        "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n3:memory:/docker/x\n",
        "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": quota,
        "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000",
    }
    assert available_cpus(tree(tmp_path, files)) == cpus
