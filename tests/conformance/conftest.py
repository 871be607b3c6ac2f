"""The servers whose pages are asked for by real clients: one a framework and worker type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.conformance.apps import pages
from tests.harness import WORKER_ARGUMENTS, Server, launch

APPLICATIONS = {
    "flask": "tests.conformance.apps.flask_pages:app",
    "django": "tests.conformance.apps.django_pages:application",
}

LIMIT_REQUEST_BODY = 8_000_000


@dataclass(frozen=True)
class Site:
    """A server and where it is found.

    Attributes:
        addresses: ``tcp`` and ``unix``.
        folder: of the files that it serves, and of its FIFOs.
    """

    server: Server
    addresses: dict[str, str]
    folder: Path


@pytest.fixture(scope="module")
def open_site(tmp_path_factory: pytest.TempPathFactory, worker_type: str) -> Iterator[Callable[[str], Site]]:
    """``open_site("flask")`` gives the site of that framework, which is opened once and closed at the end."""
    with ExitStack() as stack:

        @cache
        def opened(framework: str) -> Site:
            folder = tmp_path_factory.mktemp(framework)
            socket = folder / "socket"
            server = launch(
                *WORKER_ARGUMENTS[worker_type],
                *("--workers", "2", "--limit-request-body", str(LIMIT_REQUEST_BODY), APPLICATIONS[framework]),
                cwd=folder,
                log_path=folder / "log",
                environ={pages.FOLDER: str(folder)},
                bind=("127.0.0.1:0", f"unix:{socket}"),
            )
            stack.callback(server.end)
            server.wait_for("server.ready")
            return Site(server, {"tcp": server.urls[0], "unix": f"unix:{socket}"}, folder)

        yield opened


@pytest.fixture
def site(framework: str, open_site: Callable[[str], Site]) -> Iterator[Site]:
    """The site of the framework; what its log says of this test is shown when it fails."""
    opened = open_site(framework)
    begun = opened.server.log_path.stat().st_size
    yield opened
    with opened.server.log_path.open("rb") as log:
        log.seek(begun)
        said = log.read().decode("utf-8", "replace")
    print(f"--- log of the server:\n{said}")
    assert "worker.defect" not in said
