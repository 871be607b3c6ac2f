"""The rules hold for the tree, and each of them finds the faults that it is for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import rules
from tests.architecture.rules import Rule, Source

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def package() -> list[Source]:
    return rules.read_package(ROOT)


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_the_rule_holds(package: list[Source], rule: Rule) -> None:
    faults = [str(fault) for source in package for fault in rule(source)]
    assert not faults, "\n" + "\n".join(faults)


def test_the_whole_package_is_read(package: list[Source]) -> None:
    modules = {source.module for source in package}
    assert {"forkserve", "forkserve.errors", "forkserve.posix.listeners"} <= modules
    assert len(modules) == len(package)


def test_allowed_state_still_exists(package: list[Source]) -> None:
    by_name = {source.module: source.text for source in package}
    assert all(name in by_name[module] for module, name in rules.MUTABLE_STATE_ALLOWED)


def test_no_text_names_a_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False, timeout=60)
    if listed.returncode:
        pytest.skip("not a git clone")
    names = [Path(name) for name in listed.stdout.decode().split("\0") if name]
    texts = [name for name in names if name.suffix in rules.TEXT_SUFFIXES and (ROOT / name).is_file()]
    assert texts
    faults = [
        str(fault)
        for name in texts
        for fault in rules.machine_paths(str(name), (ROOT / name).read_text("utf-8", "replace"))
    ]
    assert not faults, "\n" + "\n".join(faults)


def test_importing_the_package_loads_nothing_else() -> None:
    code = "import sys, forkserve; print([name for name in sys.modules if 'forkserve.' in name or name == 'workers'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------- planted faults

LONG = "def long():\n" + "    x = 1\n" * 70

PLANTED: list[tuple[Rule, str, str, str]] = [
    # rule, module, text, what the fault says
    (rules.floors, "forkserve.http.head", "import forkserve.server.reactor", "imports go down"),
    (rules.floors, "forkserve.http.head", "from forkserve import log, cli", "forkserve.cli (floor 8)"),
    (rules.floors, "forkserve.posix.channel", "from ..server import reactor", "imports go down"),
    (rules.floors, "forkserve.posix.channel", "def f():\n    from forkserve.master import Master", "imports go down"),
    (rules.floors, "forkserve.supervisor.loop", "from forkserve.workers import base", "never import each other"),
    (rules.floors, "forkserve.workers.sync", "import forkserve.supervisor.model", "never import each other"),
    (rules.floors, "forkserve.attic", "", "has no floor"),
    (rules.floors, "forkserve.cli", "import forkserve.attic", "forkserve.attic has no floor"),
    (rules.bare_workers, "forkserve.cli", "import workers", "never the bare name"),
    (rules.bare_workers, "forkserve.cli", "from workers.sync import run", "never the bare name"),
    (rules.pure, "forkserve.http.head", "import socket", "may not import socket"),
    (rules.pure, "forkserve.http.head", "from os import path", "may not import os.path"),
    (rules.pure, "forkserve.http.head", "def f():\n    import time", "may not import time"),
    (rules.pure, "forkserve.http.head", "from forkserve import log", "forkserve.log is not"),
    (rules.pure, "forkserve.supervisor.model", "from forkserve.clock import wall_s", "is not"),
    (rules.pure, "forkserve.supervisor.step", "from forkserve.posix import process", "is not"),
    (rules.pure, "forkserve.supervisor.step", "from forkserve.supervisor.waiter import wait", "is not"),
    (rules.pure, "forkserve.workers.expectation", "import threading", "may not import threading"),
    (rules.worker_types, "forkserve.workers.sync", "from forkserve.http.request import HeadParser", "no business with"),
    (rules.worker_types, "forkserve.workers.sync", "from forkserve.server import connection", "no business with"),
    (rules.worker_types, "forkserve.workers.gthread", "from forkserve import log", "no business with forkserve.log"),
    (rules.worker_types, "forkserve.workers.gthread", "def f():\n    import logging", "no business with logging"),
    (rules.worker_types, "forkserve.workers.ggevent", "from forkserve.posix.scoreboard import CALLS", "no business"),
    (rules.worker_types, "forkserve.workers.newest", "import forkserve.server.access_log", "no business with"),
    (rules.exits_and_forks, "forkserve.master", "import sys\nsys.exit(1)", "only the command line exits"),
    (rules.exits_and_forks, "forkserve.master", "from sys import exit", "only the command line exits"),
    (rules.exits_and_forks, "forkserve.master", "raise SystemExit(2)", "only the command line exits"),
    (rules.exits_and_forks, "forkserve.master", "raise SystemExit", "only the command line exits"),
    (rules.exits_and_forks, "forkserve.cli", "import os\nos._exit(1)", "only forkserve.posix.process"),
    (rules.exits_and_forks, "forkserve.cli", "from os import fork", "only forkserve.posix.process"),
    (rules.exits_and_forks, "forkserve.workers.base", "os.waitpid(-1, 0)", "only forkserve.posix.process"),
    (rules.exits_and_forks, "forkserve.workers.base", "reap = os.waitid", "only forkserve.posix.process"),
    (rules.exits_and_forks, "forkserve.workers.base", "import subprocess", "only forkserve.posix.process"),
    (rules.sleeps, "forkserve.master", "import time\ntime.sleep(1)", "wait for the fact"),
    (rules.sleeps, "forkserve.master", "from time import sleep", "wait for the fact"),
    (rules.function_length, "forkserve.master", LONG, "long has 71 lines"),
    (rules.module_state, "forkserve.master", "cache = {}", "mutable state: cache"),
    (rules.module_state, "forkserve.master", "seen: list[int] = list()", "mutable state: seen"),
    (rules.module_state, "forkserve.master", "CACHE = {}\ndef f():\n    CACHE['a'] = 1", "mutable state: CACHE"),
    (rules.module_state, "forkserve.master", "CACHE = {}\ndef f():\n    CACHE.update(a=1)", "mutable state: CACHE"),
    (rules.module_state, "forkserve.master", "CACHE = {}\ndef f():\n    del CACHE['a']", "mutable state: CACHE"),
    (rules.module_state, "forkserve.master", "x = 1\ndef f():\n    global x", "mutable state: x"),
    (rules.module_state, "forkserve.master", "print('hello')", "work at import"),
    (rules.silent_excepts, "forkserve.master", "try:\n    f()\nexcept OSError:\n    pass", "without a reason"),
    (rules.silent_excepts, "forkserve.master", "try:\n    f()\nexcept:\n    g()", "bare except"),
    (
        rules.silent_excepts,
        "forkserve.master",
        "for i in j:\n  try:\n    f()\n  except E:\n    continue",
        "without a reason",
    ),
    (rules.silent_excepts, "forkserve.master", "with suppress(OSError):\n    f()", "without a reason"),
    (rules.docstrings, "forkserve.master", "x = 1", "has no docstring"),
    (
        rules.docstrings,
        "forkserve.master",
        '"""It."""\nclass A:\n    """An A."""\n    def b(self): ...',
        "b has no docstring",
    ),
]

FINE: list[tuple[Rule, str, str]] = [
    (
        rules.floors,
        "forkserve.cli",
        "from forkserve.master import Master\nfrom forkserve import __version__\nimport os",
    ),
    (rules.floors, "forkserve.http.head", "from forkserve.http.errors import Refused\nfrom . import limits"),
    (rules.floors, "forkserve.log", "if TYPE_CHECKING:\n    from forkserve.settings import Settings"),
    (rules.bare_workers, "forkserve.cli", "from forkserve import workers\nimport forkserve.workers.sync"),
    (rules.pure, "forkserve.supervisor.step", "from forkserve.supervisor.model import State\nimport dataclasses"),
    (
        rules.pure,
        "forkserve.http.head",
        "from forkserve.errors import ForkserveError\nfrom forkserve.settings import Settings",
    ),
    (
        rules.worker_types,
        "forkserve.workers.sync",
        "from forkserve.server.exchange import Exchange\nfrom forkserve.posix import unpatched\nimport threading",
    ),
    (rules.worker_types, "forkserve.workers.ggevent", "if TYPE_CHECKING:\n    import socket"),
    (rules.worker_types, "forkserve.workers.base", "from forkserve import log"),
    (rules.worker_types, "forkserve.server.reactor", "from forkserve import log"),
    (rules.exits_and_forks, "forkserve.cli", "import sys\nsys.exit(0)"),
    (rules.exits_and_forks, "forkserve.posix.process", "import os\nos.fork()\nos._exit(0)"),
    (rules.function_length, "forkserve.master", "def f():\n    '''" + "\n" * 200 + "'''\n    return 1"),
    (rules.module_state, "forkserve.master", "NAMES = {'a': 1}\ndef f():\n    names = {}\n    names['a'] = NAMES['a']"),
    (rules.module_state, "forkserve.master", "x = 1\ndef f(x):\n    x['a'] = 1"),
    (rules.silent_excepts, "forkserve.master", "try:\n    f()\nexcept OSError:\n    pass  # gone already"),
    (rules.docstrings, "forkserve.master", '"""It."""\nclass A(Protocol):\n    """An A."""\n    def b(self): ...'),
    (rules.docstrings, "forkserve.master", '"""It."""\nclass _A:\n    def b(self): ...'),
]


@pytest.mark.parametrize(
    ("rule", "module", "text", "says"), PLANTED, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_planted_fault_is_found(rule: Rule, module: str, text: str, says: str) -> None:
    faults = [str(fault) for fault in rule(Source(module, "planted.py", text))]
    assert any(says in fault for fault in faults), faults


@pytest.mark.parametrize(("rule", "module", "text"), FINE, ids=lambda value: getattr(value, "__name__", None))
def test_what_is_allowed_is_not_reported(rule: Rule, module: str, text: str) -> None:
    assert [str(fault) for fault in rule(Source(module, "fine.py", text))] == []


def test_the_worker_type_of_the_documentation_knows_no_more_than_ours() -> None:
    path = "docs/examples/own_worker.py"
    source = Source("forkserve.workers.own_worker", path, (ROOT / path).read_text())
    assert [str(fault) for fault in rules.worker_types(source)] == []


def test_every_rule_has_planted_faults() -> None:
    assert {rule for rule, *_ in PLANTED} == set(rules.RULES)


def test_a_planted_path_of_a_machine_is_found() -> None:
    planted = "see /" + "work/main/x.py\nfine: a/" + "work/b, https://host/" + "x/work\n"
    assert [fault.line for fault in rules.machine_paths("x.md", planted)] == [1]
