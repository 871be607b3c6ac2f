"""What holds for every test: none may hang.  And an authority that issues certificates to those that speak TLS.

Waits for facts have deadlines of their own, far below this one, and say what they waited for.  This one is for a read
or join that should never have had to wait: it fails the test there instead of holding up the run.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from tests.certificates import Authority

TEST_DEADLINE_S = 300
"""Above what the slowest test takes (it builds packages and makes virtual environments)."""


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """Fail a test that hangs; a timer is not inherited by what the test forks (setitimer(2))."""

    def too_long(_signum: int, _frame: FrameType | None) -> None:
        pytest.fail(f"the test did not end within {TEST_DEADLINE_S} s", pytrace=True)

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(TEST_DEADLINE_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One for all tests."""
    return Authority(tmp_path_factory.mktemp("authority"))
