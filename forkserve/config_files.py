"""Configuration files: TOML with our names, or Python with gunicorn's.

    find(cwd)               ./forkserve.toml, else ./gunicorn.conf.py
    read(path, cwd)         ─▶ FileContent: values by setting, hooks, warnings
    forkserve.toml          data; an unknown name is an error with its line
    *.py, python:MODULE     a program; its names that are settings or hooks count, others are its own affair

Promises: nothing is taken from a cache, so that a reload sees what is on disk; a failure says file and line in one
line, and for an exception of the file's own code shows the traceback from its first frame.
"""

from __future__ import annotations

import importlib.util
import inspect
import linecache
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import ModuleType
from typing import Any, Final, TypeVar

from forkserve import tracebacks
from forkserve.errors import SettingsError
from forkserve.gunicorn_names import UNSUPPORTED, warning_for
from forkserve.settings import HOOK_ARGUMENTS, Hook, Hooks, names

TOML_NAME: Final = "forkserve.toml"
PYTHON_NAME: Final = "gunicorn.conf.py"
_CLASS_SETTINGS = frozenset({"logger_class", "worker_class"})  # gunicorn takes the class itself here
_MACHINERY = (__file__, importlib.__file__)
T = TypeVar("T")


class UnreadableFileError(SettingsError):
    """A configuration file or module is not there, or cannot be read; whoever named it can say where."""


class ConfigFileError(SettingsError):
    """A Python configuration file raised an exception; ``traceback_text`` begins at its own first frame."""


@dataclass(frozen=True, slots=True)
class FileContent:
    """What a configuration file says.

    Attributes:
        label: the file's name as people know it, for messages.
        values: what it sets, unchecked, by setting.
        keys: the name that the file uses for a setting.
        hooks: its functions.
        warnings: lines for the log.
    """

    label: str
    values: dict[str, object] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    hooks: Hooks = field(default_factory=Hooks)
    warnings: list[str] = field(default_factory=list)


def find(cwd: str) -> tuple[str | None, list[str]]:
    """The configuration file that lies in ``cwd``, if any, and warnings."""
    present = [name for name in (TOML_NAME, PYTHON_NAME) if os.path.isfile(os.path.join(cwd, name))]
    if not present:
        return None, []
    ignored = [f"{present[0]} and {name} are both here: {name} is ignored" for name in present[1:]]
    return os.path.join(cwd, present[0]), ignored


def resolve(path: str, cwd: str) -> str:
    """The absolute path of a file, or ``python:MODULE`` as it is."""
    return path if path.startswith("python:") else os.path.join(cwd, path.removeprefix("file:"))


def read(path: str, cwd: str) -> FileContent:
    """Read one configuration file.

    Args:
        path: absolute path, or ``python:MODULE``.
        cwd: the directory that messages are relative to and that Python files import from.

    Raises:
        SettingsError: it cannot be read, is no TOML or Python, fails, or holds unknown names.
    """
    label = path if path.startswith("python:") else _label(path, cwd)
    return _read_toml(path, label) if path.endswith(".toml") else _read_python(path, label, cwd)


def _label(path: str, cwd: str) -> str:
    inside = os.path.relpath(path, cwd)
    return path if inside.startswith("..") else inside


def _read_bytes(path: str, label: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UnreadableFileError(f"cannot read the configuration file {label} ({reason})") from error


def _read_toml(path: str, label: str) -> FileContent:
    try:
        text = _read_bytes(path, label).decode("utf-8-sig")
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{label}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise SettingsError(f"{label}: not valid TOML: its lists or tables are nested too deep") from error
    content = FileContent(label)
    for key, value in table.items():
        if key not in names():
            raise SettingsError(f"{label}{_line_of(text, key)}: {_unknown_in_toml(key, value)}")
        _add(content, key, value)
    return content


def _line_of(text: str, key: str) -> str:
    pattern = re.compile(rf"""\s*\[*\s*["']?{re.escape(key)}["']?\s*[=.\]]""")
    lines = (number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line))
    return f" line {line}" if (line := next(lines, None)) else ""


def _unknown_in_toml(key: str, value: object) -> str:
    if key in HOOK_ARGUMENTS:
        return f"{key} is a hook, which needs a Python configuration file such as {PYTHON_NAME}"
    if key in UNSUPPORTED:
        return f"{key} is gunicorn's: forkserve {UNSUPPORTED[key].why}"
    if isinstance(value, dict):
        return (
            f"[{key}] is a table, but settings are not in tables: write them above the first [table]{did_you_mean(key)}"
        )
    return f"unknown setting {key!r}{did_you_mean(key)}"


def did_you_mean(name: str, cutoff: float = 0.6) -> str:
    """``; did you mean NAME?`` where a setting or hook has a similar name."""
    near = get_close_matches(name.lower().replace("-", "_"), [*names(), *HOOK_ARGUMENTS], n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""


def _add(content: FileContent, key: str, value: object) -> None:
    name = names()[key]
    if name == "config":
        raise SettingsError(f"{content.label}: config names this file: use -c or the variable FORKSERVE_CONFIG")
    if name in content.values:
        raise SettingsError(f"{content.label}: {content.keys[name]} and {key} are the same setting: keep one of them")
    content.values[name] = value
    content.keys[name] = key


def _read_python(path: str, label: str, cwd: str) -> FileContent:
    found = _evaluate(path, label, cwd)
    content = FileContent(label, hooks=_hooks_in(found, label))
    unsupported = []
    for key, value in found.items():
        if key in UNSUPPORTED:
            if value and not isinstance(value, ModuleType):
                unsupported.append(key)
        elif key in names():
            if _is_meant(key, value):
                _add(content, key, _dotted(value, key, label) if isinstance(value, type) else value)
        elif key.islower() and not key.startswith("_") and not callable(value) and not isinstance(value, ModuleType):
            near = did_you_mean(key, cutoff=0.8)
            if near and key not in HOOK_ARGUMENTS:
                content.warnings.append(f"{label}: {key!r} is no setting and is ignored{near}")
    if unsupported:
        content.warnings.append(warning_for(label, unsupported))
    return content


def _is_meant(key: str, value: object) -> bool:
    """Whether a name in a Python file is meant as a setting, not something imported or a helper of the same name."""
    if key == "config" or value is None or isinstance(value, ModuleType):
        return False
    return key in _CLASS_SETTINGS or not callable(value)


def _dotted(cls: type, key: str, label: str) -> str:
    if cls.__module__ == "__config__" or "<locals>" in cls.__qualname__:
        raise SettingsError(f"{label}: {key}: the class {cls.__name__} must lie in a module of its own: name it there")
    return f"{cls.__module__}.{cls.__qualname__}"


def _hooks_in(found: Mapping[str, Any], label: str) -> Hooks:
    hooks = {}
    for name, arguments in HOOK_ARGUMENTS.items():
        hook = found.get(name)
        if hook is None:
            continue
        if not callable(hook):
            raise SettingsError(f"{label}: {name} = {hook!r}: expected a function of ({', '.join(arguments)})")
        hooks[name] = _fitted(hook, name, arguments, label)
    return Hooks(**hooks)


def _fitted(hook: Hook, name: str, arguments: tuple[str, ...], label: str) -> Hook:
    """The hook, callable with all its arguments: gunicorn's post_request may take two or three of its four."""
    for count in (4, 3, 2) if name == "post_request" else (len(arguments),):
        if _accepts(hook, count):
            return hook if count == len(arguments) else _shortened(hook, count)
    raise SettingsError(f"{label}: {name} must be a function of ({', '.join(arguments)})")


def _accepts(hook: Hook, count: int) -> bool:
    try:
        inspect.signature(hook).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:
        return True  # a function in C that does not say what it takes: calling it will tell
    return True


def _shortened(hook: Hook, count: int) -> Hook:
    def shortened(*arguments: object) -> Any:
        return hook(*arguments[:count])

    return shortened


def load_hooks(config_path: str | None) -> Hooks:
    """Evaluate a configuration file again for its functions, which cannot travel to another process.

    Args:
        config_path: ``Loaded.config_path``; TOML files and None have no hooks.

    Raises:
        SettingsError: the file cannot be read or fails.
    """
    if config_path is None or config_path.endswith(".toml"):
        return Hooks()
    cwd = os.getcwd()
    return read(config_path, cwd).hooks


def _evaluate(path: str, label: str, cwd: str) -> dict[str, Any]:
    """Run a Python configuration file in a fresh module; its names."""
    with _importing_from(cwd):
        if path.startswith("python:"):
            path, label = _guarded(lambda: _file_of_module(path), label), label
        source = _read_bytes(path, label)
        linecache.checkcache(path)
        module = ModuleType("__config__")
        module.__file__ = path
        sys.modules["__config__"] = module  # where dataclasses and pickle look for a class's module
        _guarded(lambda: exec(compile(source, path, "exec", dont_inherit=True), module.__dict__), label)
    return {key: value for key, value in vars(module).items() if not key.startswith("__")}


def _file_of_module(path: str) -> str:
    name = path.removeprefix("python:")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not spec.has_location:
        raise UnreadableFileError(f"cannot read the configuration module {name!r}: there is no such Python module")
    return spec.origin


def _guarded(run: Callable[[], T], label: str) -> T:
    """Run code of the file's; what it raises becomes one line and its own traceback."""
    try:
        return run()
    except (KeyboardInterrupt, SettingsError):
        raise
    except SyntaxError as error:
        raise SettingsError(f"{label} line {error.lineno}: syntax error: {error.msg}") from error
    except BaseException as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigFileError(f"{label} failed: {text}", tracebacks.own_traceback(error, _MACHINERY)) from error


@contextmanager
def _importing_from(cwd: str) -> Iterator[None]:
    """Let a configuration file import what lies in ``cwd``.

    Afterwards the directory stays at the end of the path, where hooks find it and where it hides nothing of ours; the
    modules from it are forgotten, so that the next reading sees them as they are then.
    """
    known = set(sys.modules)
    importlib.invalidate_caches()
    sys.path.insert(0, cwd)
    try:
        yield
    finally:
        sys.path.remove(cwd)
        if cwd not in sys.path:
            sys.path.append(cwd)
        for name in set(sys.modules) - known - {"__config__"}:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if file.startswith(os.path.join(cwd, "")) and "site-packages" not in file:
                del sys.modules[name]
