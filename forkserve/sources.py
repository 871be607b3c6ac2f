"""Where settings come from, and which source wins.

    default  <  file  <  WEB_CONCURRENCY  <  GUNICORN_CMD_ARGS  <  FORKSERVE_<NAME>  <  command line
             PORT, FORWARDED_ALLOW_IPS: only where nothing of these sets bind, forwarded_allow_ips

Promises: every value is checked, also one that a stronger source overrides; every wrong one ends in a
:class:`SettingsError` of one line that names source, key, value and what is allowed; every value's origin is known.
Nothing is started, printed or changed here, apart from what a Python configuration file does itself.

Leaves to others: reading files (:mod:`forkserve.config_files`), what texts mean (:mod:`forkserve.values`), what to do
with the result (the command line, the master at a reload).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from forkserve import config_files, values
from forkserve.config_files import load_hooks
from forkserve.errors import SettingsError
from forkserve.gunicorn_names import warning_for
from forkserve.settings import Declaration, Hooks, Settings, advice, check_combinations, names, table

__all__ = ["Loaded", "load", "load_hooks"]

PREFIX = "FORKSERVE_"

_SERVICE_LINK = re.compile(r"FORKSERVE_(SERVICE_(HOST|PORT)(_.*)?|PORT(_\d+_[A-Z]+(_(PROTO|PORT|ADDR))?)?)")
"""Kubernetes puts these into every container of a namespace with a service named "forkserve"."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings with their history.

    Attributes:
        settings: complete and checked.
        hooks: the functions of a Python configuration file.
        origins: of each setting, "default" or source and key, such as "forkserve.toml: workers".
        warnings: lines for the log.
        config_path: the configuration file (absolute, or ``python:MODULE``); None if there is none.
    """

    settings: Settings
    hooks: Hooks
    origins: dict[str, str]
    warnings: tuple[str, ...]
    config_path: str | None


@dataclass(slots=True)
class _Layer:
    """What one source gives: the values, unchecked, and of each its origin."""

    values: dict[str, object] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def put(self, name: str, value: object, origin: str) -> None:
        self.values[name] = value
        self.origins[name] = origin


def load(cli_values: Mapping[str, object], environ: Mapping[str, str], cwd: str) -> Loaded:
    """Gather all settings.

    Args:
        cli_values: what the command line gives, by setting; None stands for "not given".
        environ: environment variables.
        cwd: the directory in which configuration files are looked for and relative paths begin, absolute.

    Raises:
        SettingsError: a value, name, file or combination is wrong.
    """
    command_line = _from_command_line(cli_values)
    environment, arguments, concurrency = _from_variables(environ), _from_arguments(environ), _from_platform(environ)
    stronger = (command_line, environment, arguments)
    config_path, config_origin, found_warnings = _config_path(stronger, cwd)
    file, hooks = _from_file(config_path, config_origin, cwd)
    layers = (_from_defaults(environ), file, concurrency, arguments, environment, command_line)

    found: dict[str, Any] = {}
    origins = dict.fromkeys(table(), "default")
    for layer in layers:
        for name, value in layer.values.items():
            found[name] = _read(table()[name], value, layer.origins[name])
            origins[name] = layer.origins[name]
    _bind_to_port(found, origins, environ)
    chdir = values.resolve_paths(found, cwd)
    try:
        values.check_text(chdir)
    except values.NotAllowed as error:
        raise SettingsError(f"{origins['chdir']}: chdir = {chdir!r}: {error}") from error
    if not os.path.isdir(chdir):
        raise SettingsError(f"{origins['chdir']} = {chdir!r}: there is no such directory")
    found["config"] = config_path
    settings = Settings(**found)
    for problem in check_combinations(settings):
        raise SettingsError(_with_source(problem, origins))
    warnings = [*found_warnings, *(line for layer in layers for line in layer.warnings), *advice(settings)]
    return Loaded(settings, hooks, origins, tuple(warnings), config_path)


def _from_command_line(cli_values: Mapping[str, object]) -> _Layer:
    layer = _Layer()
    for name, value in cli_values.items():
        if name not in table():
            raise SettingsError(f"command line: unknown setting {name!r}{config_files.did_you_mean(name)}")
        if value is not None:
            layer.put(name, value, f"command line: {_flag_of(name)}")
    return layer


def _flag_of(name: str) -> str:
    """The first long flag of a setting; APP for the argument."""
    flags = table()[name].setting.flags.replace("/", " ").split()
    return next((flag.partition("=")[0] for flag in flags if flag.startswith("--")), "APP" if name == "app" else name)


def _from_variables(environ: Mapping[str, str]) -> _Layer:
    layer = _Layer()
    for variable, value in environ.items():
        if not variable.startswith(PREFIX) or _SERVICE_LINK.fullmatch(variable):
            continue
        name = names().get(variable.removeprefix(PREFIX).lower())
        if name is None or variable != variable.upper():
            near = get_close_matches(variable.removeprefix(PREFIX).lower(), names(), n=1)
            hint = f"; did you mean {PREFIX}{near[0].upper()}?" if near else "; docs/SETTINGS.md lists them"
            raise SettingsError(f"environment: {variable} is no setting of forkserve{hint}")
        if name in layer.values:
            raise SettingsError(f"{layer.origins[name]} and {variable} are the same setting: keep one of them")
        layer.put(name, value, f"environment: {variable}")
    return layer


def _from_arguments(environ: Mapping[str, str]) -> _Layer:
    """GUNICORN_CMD_ARGS; flags of gunicorn's that do nothing here give a warning, as in a file of gunicorn's."""
    variable, layer = "GUNICORN_CMD_ARGS", _Layer()
    text = environ.get(variable, "")
    if not text.strip():
        return layer
    from forkserve import options  # click: not for those who do without

    try:
        given = options.parse(shlex.split(text))
    except (ValueError, SettingsError) as error:
        raise SettingsError(f"environment: {variable} = {text!r}: {error}") from error
    for name, value in given.values.items():
        layer.put(name, value, f"environment: {variable} {_flag_of(name)}")
    if given.unsupported:
        layer.warnings.append(warning_for(f"environment: {variable}", given.unsupported))
    return layer


def _from_platform(environ: Mapping[str, str]) -> _Layer:
    """The variables that settings declare beside their own."""
    layer = _Layer()
    for name, declaration in table().items():
        for variable in declaration.setting.env.split():
            if environ.get(variable, "").strip():
                layer.put(name, environ[variable], f"environment: {variable}")
    return layer


def _from_defaults(environ: Mapping[str, str]) -> _Layer:
    """The variables that give a default; an empty one does too."""
    layer = _Layer()
    for name, declaration in table().items():
        variable = declaration.setting.default_env
        if variable and variable in environ:
            layer.put(name, environ[variable], f"environment: {variable}")
    return layer


def _config_path(layers: Iterable[_Layer], cwd: str) -> tuple[str | None, str, list[str]]:
    """The configuration file; who named it, empty for one that was found; warnings."""
    for layer in layers:
        given = layer.values.get("config")
        if given:
            origin = layer.origins["config"]
            return config_files.resolve(_read(table()["config"], given, origin), cwd), origin, []
    path, warnings = config_files.find(cwd)
    return path, "", warnings


def _from_file(path: str | None, origin: str, cwd: str) -> tuple[_Layer, Hooks]:
    layer = _Layer()
    if path is None:
        return layer, Hooks()
    try:
        content = config_files.read(path, cwd)
    except config_files.UnreadableFileError as error:
        raise SettingsError(f"{origin}: {error}" if origin else str(error)) from error
    for name, value in content.values.items():
        layer.put(name, value, f"{content.label}: {content.keys[name]}")
    layer.warnings.extend(content.warnings)
    return layer, content.hooks


def _read(declaration: Declaration, value: object, origin: str) -> Any:
    try:
        return values.read(declaration, value)
    except values.NotAllowed as error:
        shown = "***" if declaration.setting.secret else repr(value)
        raise SettingsError(f"{origin} = {shown}: {error}") from error


def _bind_to_port(found: dict[str, Any], origins: dict[str, str], environ: Mapping[str, str]) -> None:
    port = environ.get("PORT", "").strip()
    if "bind" in found or not port:
        return
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise SettingsError(f"environment: PORT = {port!r}: expected a port number from 0 to 65535, or bind to be set")
    found["bind"] = (f"0.0.0.0:{port}",)
    origins["bind"] = "environment: PORT"


def _with_source(problem: str, origins: Mapping[str, str]) -> str:
    """A problem that names settings, with the sources that set them in front."""
    named = [origins[word] for word in re.findall(r"\w+", problem) if word in origins]
    sources = dict.fromkeys(origin.partition(":")[0] for origin in named if origin != "default")
    return f"{' and '.join(sources)}: {problem}" if sources else problem
