"""What holds for every test: none may hang; and how tests are repeated for each worker type.

    pytestmark = pytest.mark.usefixtures("worker_type")        in a module: its tests run for sync, gthread and gevent
    @pytest.mark.worker_types("sync", "gthread")               on a test: for these alone, since it is about them

Servers that a test makes (``serving`` in serving.py, ``start`` in integration/conftest.py) are of the test's type.
An authority issues certificates to those that speak TLS.

Waits for facts have deadlines of their own, far below the one here, and say what they waited for.  This one is for a
read or join that should never have had to wait: it fails the test there instead of holding up the run.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from tests.certificates import Authority
from tests.serving import WORKER_TYPES, worker_type_here

TEST_DEADLINE_S = 300
"""Above what the slowest test takes (it builds packages and makes virtual environments)."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat what uses the fixture ``worker_type`` for each type, or for those of its marker."""
    if "worker_type" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("worker_types")
        types = marker.args if marker is not None else tuple(WORKER_TYPES)
        assert set(types) <= set(WORKER_TYPES), f"{metafunc.definition.nodeid}: there is no such worker type: {types}"
        metafunc.parametrize("worker_type", types, indirect=True, scope="module")


@pytest.fixture(scope="module")
def worker_type(request: pytest.FixtureRequest) -> Iterator[str]:
    """The worker type of this run of the test, and of the servers that are made for a whole module."""
    name: str = request.param
    before = worker_type_here.set(name)
    yield name
    worker_type_here.reset(before)


@pytest.fixture(autouse=True)
def worker_type_of_the_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """That of a module's fixture outlives the tests that use it: others have sync."""
    callspec = getattr(request.node, "callspec", None)
    before = worker_type_here.set(callspec.params.get("worker_type", "sync") if callspec is not None else "sync")
    yield
    worker_type_here.reset(before)


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
