"""Real clients ask real applications: the same checks for each pair of them.

    {sync, gthread, gevent} x {Flask, Django} x {http.client, requests, httpx, curl} x {TCP, unix socket}
        x {checks.py, curl_checks.py}

What does not make sense together (a check of kept connections and one curl command a request) is left out, not skipped.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import curl_checks  # noqa: F401 its import adds to CHECKS
from tests.conformance.checks import CHECKS, Check
from tests.conformance.clients import CLIENTS, Client
from tests.conformance.conftest import APPLICATIONS, Site


def cases() -> Iterator[Any]:
    """All that make sense together."""
    for framework, name, transport, label in product(APPLICATIONS, CLIENTS, ("tcp", "unix"), CHECKS):
        if CHECKS[label].fits(CLIENTS[name], framework, transport):
            yield pytest.param(
                framework, CLIENTS[name], transport, CHECKS[label], id=f"{framework}-{name}-{transport}-{label}"
            )


CASES = list(cases())


@pytest.mark.parametrize(("framework", "kind", "transport", "check"), CASES)
def test_what_the_check_says_holds(
    site: Site, kind: type[Client], transport: str, check: Check, tmp_path: Path
) -> None:
    client = kind(site.addresses[transport], tmp_path)
    needed = {"client": client, "site": site}
    try:
        check.run(**{name: needed[name] for name in inspect.signature(check.run).parameters})
    finally:
        client.close()


def test_every_check_runs_somewhere() -> None:
    assert {case.values[3] for case in CASES} == set(CHECKS.values())
