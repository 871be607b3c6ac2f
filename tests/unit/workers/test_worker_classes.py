"""Worker types by name, dotted path, and the errors of wrong ones."""

from __future__ import annotations

import pytest

from forkserve.errors import SettingsError
from forkserve.workers import load_worker_class
from forkserve.workers.sync import SyncExecutor


@pytest.mark.parametrize("name", ["sync", "forkserve.workers.sync.SyncExecutor"])
def test_known_types_are_found(name: str) -> None:
    assert load_worker_class(name) is SyncExecutor


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("snyc", "did you mean 'sync'"),
        ("zzz", "known are sync"),
        ("no.such.Class", "No module named 'no'"),
        ("forkserve.workers.sync.Nothing", "Nothing"),
        ("collections.OrderedDict", "no executor"),
    ],
)
def test_wrong_types_are_told(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        load_worker_class(name)
