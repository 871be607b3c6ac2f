"""Good clients beside a crowd of slow ones, all on one worker; `make crowd` measures what this only tries."""

from __future__ import annotations

import threading

import pytest

from tests.crowd import Crowd, Slowness, ask_well
from tests.harness import DEADLINE_S
from tests.integration.conftest import Start

SLOW = 200
GOOD = 10


@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_slow_clients_do_not_occupy_a_worker(start: Start, worker_class: str) -> None:
    server = start("tests.crowd:application", "--worker-class", worker_class, workers=1)
    address = ("127.0.0.1", server.port)
    crowd = Crowd(address, SLOW, pause_s=0.2)
    gathered, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=crowd.run, args=(over.is_set, gathered.set), daemon=True)
    thread.start()
    try:
        assert gathered.wait(DEADLINE_S), "the crowd did not gather"
        asked = ask_well(address, GOOD, seconds=3, pause_s=0.1)
    finally:
        over.set()
        thread.join(DEADLINE_S)
    assert not asked.failed
    assert len(asked.seconds) > GOOD * 3
    assert min(crowd.pieces[slowness] for slowness in Slowness) > SLOW, "the crowd was at it all the while"
    assert not server.events("worker.exit")
