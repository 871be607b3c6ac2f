"""The rules of the house as functions over source text: no tools, no imports of what is checked.

    tree ─ read_package ─▶ [Source] ─ each rule ─▶ [Fault]      (printed as path:line: what is wrong)

A rule takes one parsed file and yields faults.  The planted faults beside it show that each rule finds what it is for.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

FLOORS: dict[str, int] = {
    "errors": 0,
    "clock": 0,
    "tracebacks": 0,
    "log": 0,
    "settings": 1,
    "sources": 1,
    "messages": 1,
    "networks": 1,
    "values": 1,
    "config_files": 1,
    "options": 1,
    "settings_docs": 1,
    "hooks": 1,
    "cpus": 1,
    "gunicorn_names": 1,
    "http": 2,
    "posix": 3,
    "ha": 4,
    "server": 5,
    "supervisor": 6,
    "workers": 6,
    "master": 7,
    "embedding": 7,
    "cli": 8,
    "ctl": 8,
    "__main__": 8,
}
"""First part of a module's name under forkserve → its floor.  Imports go down, or stay within a part or floor."""

APART = frozenset({"supervisor", "workers"})
"""Parts of one floor that never import each other."""

PURE = ("http", "supervisor.model", "supervisor.step", "supervisor.events", "workers.expectation")
"""Modules, and packages with all that is in them, that know nothing of the system: facts and time come as arguments."""

SYSTEM_MODULES = frozenset(
    "asyncio fcntl io.open logging mmap multiprocessing os random resource select selectors shutil signal socket ssl "
    "subprocess sys tempfile threading time".split()
)
"""What a pure module may not import."""

IMPURE_PARTS = frozenset({"clock", "log"})
"""Parts of floor 0 that pure modules may not import either."""

NO_WORKER_TYPES = frozenset({"forkserve.workers", "forkserve.workers.base", "forkserve.workers.hooks"})
"""What of workers/ is the same for all types."""
WORKER_TYPES_KNOW = tuple(
    "errors settings posix.unpatched server.exchange server.executor server.interruption server.lead server.reactor "
    "workers.expectation".split()
)
"""How a call is run, interrupted and given back: all of ours that a worker type may import."""
WORKER_TYPES_LEAVE_TO_OTHERS = frozenset("email html http json logging socket ssl urllib wsgiref".split())
"""Standard modules of parsing, framing, logging and sockets."""

MAY_EXIT = frozenset({"forkserve.cli", "forkserve.ctl", "forkserve.__main__"})
MAY_FORK = frozenset({"forkserve.posix.process"})
EXITS = frozenset({"sys.exit", "exit", "quit", "builtins.exit"})
FORKS = frozenset(
    "os._exit os.abort os.fork os.forkpty os.posix_spawn os.posix_spawnp os.wait os.wait3 os.wait4 os.waitid "
    "os.waitpid pty.fork os.system os.popen os.execv os.execve os.execvp os.execvpe os.execl os.execle".split()
)
FORKING_MODULES = frozenset({"subprocess", "multiprocessing", "pty"})

FUNCTION_LINES_MAX = 70
"""One screen; the docstring is not counted."""

MUTABLE_STATE_ALLOWED: dict[tuple[str, str], str] = {}
"""(module, name) of module-level state that is changed after import, each with its reason."""

MUTATORS = frozenset(
    "add append appendleft clear discard extend insert pop popitem popleft remove setdefault sort update".split()
)
MUTABLE_MAKERS = frozenset(
    "bytearray collections.Counter collections.defaultdict collections.deque Counter defaultdict deque dict list "
    "set".split()
)


@dataclass(frozen=True)
class Fault:
    """One breach of one rule."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Source:
    """One file of the package under the name that it is imported by."""

    module: str
    path: str
    text: str
    is_package: bool = False

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def part(self) -> str:
        """The first part of its name under forkserve; empty for the package itself."""
        return self.module.partition(".")[2].partition(".")[0]

    def fault(self, node: ast.AST | int, text: str) -> Fault:
        return Fault(self.path, node if isinstance(node, int) else getattr(node, "lineno", 1), text)


Rule = Callable[[Source], Iterable[Fault]]


# ---------------------------------------------------------------------------------------------- reading the tree


def read_package(root: Path) -> list[Source]:
    """All files of forkserve/ and workers/, the link between them not followed."""
    sources = []
    for folder, package in (("forkserve", "forkserve"), ("workers", "forkserve.workers")):
        for directory, subdirectories, names in os.walk(root / folder):
            subdirectories[:] = sorted(name for name in subdirectories if name != "__pycache__")
            for name in sorted(names):
                if name.endswith(".py"):
                    sources.append(_read(root, Path(directory) / name, folder, package))
    return sources


def _read(root: Path, path: Path, folder: str, package: str) -> Source:
    parts = path.relative_to(root / folder).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join((package, *(parts[:-1] if is_package else parts)))
    return Source(module, str(path.relative_to(root)), path.read_text("utf-8"), is_package)


def imports(source: Source) -> Iterator[tuple[ast.stmt, str, bool]]:
    """Each imported name as ``module`` or ``module.name``, and whether only type checkers see the import."""
    typing_only = {
        id(inner)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, id(node) in typing_only
        elif isinstance(node, ast.ImportFrom):
            base = _base_of(source, node)
            for alias in node.names:
                yield node, f"{base}.{alias.name}", id(node) in typing_only


def _base_of(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = source.module.split(".")
    drop = node.level - 1 if source.is_package else node.level
    kept = parts[: len(parts) - drop]
    return ".".join((*kept, node.module) if node.module else kept)


def _dotted(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


# ---------------------------------------------------------------------------------------------- imports


def floors(source: Source) -> Iterator[Fault]:
    """Imports go down only; what type checkers alone see costs nothing and is left out."""
    if source.part and source.part not in FLOORS:
        yield source.fault(1, f"{source.module} has no floor: give it one in {Path(__file__).name}")
        return
    if not source.part:
        return  # the package itself only names its exports
    here = FLOORS[source.part]
    for node, name, typing_only in imports(source):
        there = _part_of(name)
        if typing_only or there is None or there == source.part or there == "":
            continue
        if there not in FLOORS:
            yield source.fault(node, f"{name} has no floor")
        elif FLOORS[there] > here:
            yield source.fault(
                node, f"{source.module} (floor {here}) imports {name} (floor {FLOORS[there]}): imports go down"
            )
        elif {there, source.part} == APART:
            yield source.fault(node, f"{source.part} and {there} never import each other")


def _part_of(name: str) -> str | None:
    """The part of forkserve that a name belongs to; empty for the package itself, None for others' modules."""
    head, _, rest = name.partition(".")
    if head != "forkserve":
        return None
    part = rest.partition(".")[0]
    return "" if part.startswith("__") and part != "__main__" else part


def bare_workers(source: Source) -> Iterator[Fault]:
    """An application may have a package named workers: ours is only known as forkserve.workers."""
    for node, name, _typing_only in imports(source):
        if name == "workers" or name.startswith("workers."):
            yield source.fault(node, "import forkserve.workers, never the bare name workers")


def pure(source: Source) -> Iterator[Fault]:
    """Pure modules import no part of the system, directly or through a module that is not pure."""
    if not _is_pure(source.module.partition(".")[2]):
        return
    for node, name, typing_only in imports(source):
        if typing_only:
            continue
        if name.partition(".")[0] in SYSTEM_MODULES:
            yield source.fault(node, f"{source.module} is pure and may not import {name}")
        part = _part_of(name)
        if part in IMPURE_PARTS or (part and FLOORS.get(part, 9) > 1 and not _is_pure(name.partition(".")[2])):
            yield source.fault(node, f"{source.module} is pure and {name} is not")


def _is_pure(name: str) -> bool:
    return any(name == pure_name or name.startswith(pure_name + ".") for pure_name in PURE) or (name == "supervisor")


def worker_types(source: Source) -> Iterator[Fault]:
    """A worker type says how calls are run; parsing, framing, logging and metrics are the same for all of them."""
    if source.part != "workers" or source.module in NO_WORKER_TYPES:
        return
    for node, name, typing_only in imports(source):
        head, _, rest = name.partition(".")
        is_known = head != "forkserve" or f"{rest}.".startswith(tuple(f"{known}." for known in WORKER_TYPES_KNOW))
        if not typing_only and (head in WORKER_TYPES_LEAVE_TO_OTHERS or not is_known):
            yield source.fault(node, f"{source.module} is a worker type and has no business with {name}")


# ---------------------------------------------------------------------------------------------- calls


def exits_and_forks(source: Source) -> Iterator[Fault]:
    """Only the command line exits; only posix/process.py forks, executes, leaves at once and reaps."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute | ast.Name):
            name = _dotted(node)
            if name in EXITS and source.module not in MAY_EXIT:
                yield source.fault(node, f"{name}: only the command line exits; raise a ForkserveError")
            if name in FORKS and source.module not in MAY_FORK:
                yield source.fault(node, f"{name}: only forkserve.posix.process forks, executes, leaves and reaps")
        if isinstance(node, ast.Raise) and source.module not in MAY_EXIT and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if _dotted(raised) == "SystemExit":
                yield source.fault(node, "SystemExit: only the command line exits")
    for node, name, _typing_only in imports(source):
        if (name in FORKS or name.partition(".")[0] in FORKING_MODULES) and source.module not in MAY_FORK:
            yield source.fault(node, f"{name}: only forkserve.posix.process forks, executes, leaves and reaps")
        if name == "sys.exit" and source.module not in MAY_EXIT:
            yield source.fault(node, "sys.exit: only the command line exits")


def sleeps(source: Source) -> Iterator[Fault]:
    """Nobody waits "a while": there is one place that blocks, with a deadline."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and _dotted(node) == "time.sleep":
            yield source.fault(node, "time.sleep: wait for the fact, in the one place that blocks")
    for node, name, _typing_only in imports(source):
        if name == "time.sleep":
            yield source.fault(node, "time.sleep: wait for the fact, in the one place that blocks")


# ---------------------------------------------------------------------------------------------- shape


def function_length(source: Source) -> Iterator[Fault]:
    """A function fits on one screen."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            first = node.body[0]
            if ast.get_docstring(node) is not None:
                lines -= (first.end_lineno or first.lineno) - first.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield source.fault(node, f"{node.name} has {lines} lines, more than {FUNCTION_LINES_MAX}")


def module_state(source: Source) -> Iterator[Fault]:
    """Nothing at module level changes after import, and importing does no work."""
    names: set[str] = set()
    for node in source.tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await):
            yield source.fault(node, f"work at import: {ast.unparse(node)[:60]}")
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name):
            names.add(target.id)
            is_constant = target.id.upper() == target.id or target.id == "__all__"
            if node.value is not None and _is_mutable(node.value) and not is_constant:
                yield from _state_fault(source, node, target.id)
    for statement in ast.walk(source.tree):
        if isinstance(statement, ast.Global):
            for name in statement.names:
                yield from _state_fault(source, statement, name)
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            local = _names_bound_in(statement)
            for inner in ast.walk(statement):
                if (changed := _changed_name(inner)) in names and changed not in local:
                    yield from _state_fault(source, inner, changed)


def _state_fault(source: Source, node: ast.AST, name: str) -> Iterator[Fault]:
    if (source.module, name) not in MUTABLE_STATE_ALLOWED:
        yield source.fault(node, f"module-level mutable state: {name}")


def _is_mutable(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        return _dotted(value.func) in MUTABLE_MAKERS
    return isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)


def _names_bound_in(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    bound = {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
    return bound | {
        node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def _changed_name(node: ast.AST) -> str:
    """The plain name whose contents a statement or call changes; empty when there is none."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        return _dotted(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
        return _dotted(node.func.value)
    return ""


def silent_excepts(source: Source) -> Iterator[Fault]:
    """An ignored error says why it may be ignored."""
    lines = source.text.splitlines()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield source.fault(node, "bare except: name what is expected")
            if all(_does_nothing(statement) for statement in node.body):
                end = node.body[-1].end_lineno or node.lineno
                if not any("#" in line for line in lines[node.lineno - 1 : end]):
                    yield source.fault(node, "an error is ignored without a reason: say why in a comment")
        if isinstance(node, ast.With) and any("suppress(" in ast.unparse(item.context_expr) for item in node.items):
            around = lines[max(node.lineno - 2, 0) : node.body[-1].end_lineno]
            if not any("#" in line for line in around):
                yield source.fault(node, "an error is suppressed without a reason: say why in a comment")


def _does_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass | ast.Continue) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def docstrings(source: Source) -> Iterator[Fault]:
    """Every module, and every public class, function and method, says what it is."""
    if source.text.strip() and ast.get_docstring(source.tree) is None:
        yield source.fault(1, f"{source.module} has no docstring")
    yield from _undocumented(source, source.tree.body)


def _undocumented(source: Source, body: Iterable[ast.stmt]) -> Iterator[Fault]:
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        is_overload = any(_dotted(decorator).endswith(("overload", ".setter")) for decorator in node.decorator_list)
        if ast.get_docstring(node) is None and not is_overload:
            yield source.fault(node, f"{node.name} has no docstring")
        is_protocol = isinstance(node, ast.ClassDef) and any("Protocol" in _dotted(base) for base in node.bases)
        if isinstance(node, ast.ClassDef) and not is_protocol:  # a protocol's members are documented where they live
            yield from _undocumented(source, node.body)


RULES: tuple[Rule, ...] = (
    floors,
    bare_workers,
    pure,
    worker_types,
    exits_and_forks,
    sleeps,
    function_length,
    module_state,
    silent_excepts,
    docstrings,
)
"""All rules about single files of the package."""


# ---------------------------------------------------------------------------------------------- all texts

MACHINE_PATHS = re.compile(r"(?<![\w.~-])/(?:" + "|".join(("wo" + "rk", "fa" + "rm", "ro" + "ot")) + r")/")
"""Paths that exist on one developer's machine only."""

TEXT_SUFFIXES = frozenset(
    {"", ".py", ".md", ".cfg", ".toml", ".in", ".txt", ".conf", ".http", ".yml", ".yaml", ".json"}
)


def machine_paths(path: str, text: str) -> Iterator[Fault]:
    """No text of the project names a path of a developer's machine."""
    for number, line in enumerate(text.splitlines(), 1):
        if MACHINE_PATHS.search(line):
            yield Fault(path, number, "names a path of one machine")
