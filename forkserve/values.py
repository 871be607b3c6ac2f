"""From what people write to the value of a setting.

    "30s", "2m", "500ms" ─▶ seconds     "64k", "10M", "1G" ─▶ bytes     "yes", "off", "1" ─▶ true or false
    "022" ─▶ umask                      "a,b" ─▶ ("a", "b")             True ─▶ preload on

One function for all sources: a text in a file means the same as in the environment and on the command line.
"""

from __future__ import annotations

import json
import os
import re
from difflib import get_close_matches
from typing import Any, Final, get_origin

import msgspec

from forkserve import cpus
from forkserve.networks import Networks
from forkserve.settings import NETWORKS, SCHEME_FIELDS, UNDERSCORE_NAMES, WORKER_CLASSES, Declaration, table

_BOOLEANS: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
_SWITCHES: Final = {"preload": ("off", "on"), "proxy_protocol": ("off", "auto")}
"""Choices that once were, or in gunicorn are, also false or true."""
_FACTORS: Final[dict[str, dict[str, float]]] = {
    "seconds": {"ms": 0.001, "s": 1, "m": 60, "h": 3600},
    "bytes": {"b": 1, "k": 1 << 10, "kb": 1 << 10, "m": 1 << 20, "mb": 1 << 20, "g": 1 << 30, "gb": 1 << 30},
}
_NUMBER: Final = re.compile(r"\s*([0-9.]+)\s*([a-zA-Z]+)\s*")
_GEVENT_NAMES: Final = ("gevent_wsgi", "gevent_pywsgi")
_UNDERSCORE_NAME: Final = re.compile(r"[A-Za-z0-9]*(?:_[A-Za-z0-9]*)+")
_HYPHEN_NAME: Final = re.compile(r"[A-Za-z0-9-]+")
_OWN_NAMES: Final = frozenset({"CONTENT_LENGTH", "CONTENT_TYPE", "TRANSFER_ENCODING"})
"""Fields that frame or describe the body: by another spelling they would be read in two ways."""
_GUNICORN_VALUES: Final = {
    ("logger_class", "gunicorn.glogging.Logger"): None,
    ("proxy_protocol", "none"): "off",
    **{("worker_class", f"egg:gunicorn#{name}"): name for name in WORKER_CLASSES},
    ("worker_class", "gunicorn.workers.sync.SyncWorker"): "sync",
    ("worker_class", "gunicorn.workers.gthread.ThreadWorker"): "gthread",
    ("worker_class", "gunicorn.workers.ggevent.GeventWorker"): "gevent",
    **{("worker_class", f"{prefix}{name}"): "gevent" for prefix in ("", "egg:gunicorn#") for name in _GEVENT_NAMES},
}
"""Values that name a part of gunicorn which has its counterpart here."""


class NotAllowed(ValueError):
    """A value that the setting cannot have; the text says what it can be."""


def read(declaration: Declaration, value: object) -> Any:
    """The value that ``value`` stands for, checked against the declaration.

    Raises:
        NotAllowed: it stands for none.
    """
    kind, name = declaration.plain_type, declaration.name
    if isinstance(value, str) and value.strip().lower() in declaration.setting.words.split():
        value = cpus.available_cpus()  # "auto" of workers is the only word so far
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and (name, value) in _GUNICORN_VALUES:
        value = _GUNICORN_VALUES[name, value]
    elif isinstance(value, str):
        value = _from_text(declaration, value)
    elif name in _SWITCHES and isinstance(value, bool):
        value = _SWITCHES[name][value]
    elif name in ("user", "group") and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    elif declaration.is_list and isinstance(value, list | tuple | set | frozenset):
        value = tuple(item for given in value for item in _items(declaration, given))
    if value == 0 and declaration.setting.zero_means is not None and type(value) is int:
        value = declaration.setting.zero_means
    if get_origin(kind) is dict:
        value = _plain(value)
    if name == "worker_class":
        _check_worker_class(value)
    texts = value if isinstance(value, tuple) else (value,)
    for text in texts:
        if isinstance(text, str):
            check_text(text)
    try:
        value = msgspec.convert(value, declaration.type, strict=True)
    except msgspec.ValidationError as error:
        raise NotAllowed(f"expected {declaration.allowed}") from error
    check_items(declaration, value)
    return value


def check_text(text: str) -> None:
    """Refuse what cannot travel between our processes as JSON, or be a file's name.

    Raises:
        NotAllowed: the text holds bytes that are no UTF-8, or NUL.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise NotAllowed("expected text in UTF-8") from error
    if "\0" in text:
        raise NotAllowed("expected text without NUL")


def _from_text(declaration: Declaration, text: str) -> object:
    kind, unit = declaration.plain_type, declaration.setting.unit
    try:
        if declaration.choices:
            return _choice(declaration, text.strip().lower())
        if declaration.is_list:
            return tuple(_items(declaration, text))
        if kind is bool:
            return _BOOLEANS[text.strip().lower()]
        if declaration.name == "umask":
            return int(text, 8) if re.fullmatch(r"0[0-7]+", text.strip()) else int(text, 0)
        if kind in (int, float):
            return _number(text, kind, _FACTORS.get(unit, {}))
        if get_origin(kind) is dict:
            return msgspec.json.decode(text)
    except (ValueError, KeyError, msgspec.DecodeError) as error:
        raise NotAllowed(f"expected {declaration.allowed}") from error
    return None if not text and declaration.default is None else text


def _choice(declaration: Declaration, text: str) -> str:
    if text not in declaration.choices and declaration.name in _SWITCHES and text in _BOOLEANS:
        return _SWITCHES[declaration.name][_BOOLEANS[text]]
    return text


def _number(text: str, kind: type, factors: dict[str, float]) -> float:
    found = _NUMBER.fullmatch(text)
    if found and factors:
        number = float(found[1]) * factors[found[2].lower()]
        return int(number) if kind is int else number
    return int(text) if kind is int else float(text)


def _items(declaration: Declaration, given: object) -> list[object]:
    """The items of a list that one text holds: cut at commas, or where commas belong to items at line ends."""
    if not isinstance(given, str):
        return [os.fspath(given) if isinstance(given, os.PathLike) else given]
    pieces = given.split(",") if declaration.setting.split else given.split("\n")
    return [piece.strip() for piece in pieces if piece.strip()]


def _plain(value: object) -> object:
    """A copy of ``value`` if it is plain data.

    Raises:
        NotAllowed: it holds a function, a class or another object, which cannot travel to other processes.
    """
    bad = _not_plain(value, "")
    if bad:
        raise NotAllowed(f"expected plain data: {bad}; name functions and classes by their dotted paths as texts")
    try:
        return msgspec.json.decode(msgspec.json.encode(value))
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise NotAllowed(f"expected plain data: {error}") from error


def _not_plain(value: object, path: str) -> str:
    if isinstance(value, dict):
        return next(filter(None, (_not_plain(item, f"{path}.{key}".lstrip(".")) for key, item in value.items())), "")
    if isinstance(value, list | tuple):
        return next(filter(None, (_not_plain(item, f"{path}[{index}]") for index, item in enumerate(value))), "")
    if value is None or isinstance(value, str | int | float | bool):
        return ""
    return f"{path or 'it'} is an object of type {type(value).__name__}"


def check_items(declaration: Declaration, value: Any) -> None:
    """Refuse items of a list or table that have the type but no meaning.

    Raises:
        NotAllowed: one of them has none; the text names it.
    """
    items = declaration.setting.items
    if items == NETWORKS:
        try:
            Networks(value)
        except ValueError as error:
            raise NotAllowed(f"expected {declaration.allowed} ({error})") from error
    elif items in (UNDERSCORE_NAMES, SCHEME_FIELDS):
        pattern = _UNDERSCORE_NAME if items == UNDERSCORE_NAMES else _HYPHEN_NAME
        for name in value:
            if not pattern.fullmatch(name) or name.upper() in _OWN_NAMES:
                raise NotAllowed(f"expected {declaration.allowed} (not {name!r})")


def _check_worker_class(value: object) -> None:
    if not isinstance(value, str) or value in WORKER_CLASSES:
        return
    is_ours = "." in value and not value.startswith(("gunicorn.", "uvicorn."))
    if is_ours or (value.isidentifier() and value in installed_worker_classes()):
        return
    known = (*WORKER_CLASSES, *installed_worker_classes())
    near = get_close_matches(value, known, n=1)
    if near:
        raise NotAllowed(f"there is no such worker class; did you mean {near[0]}?")
    raise NotAllowed(f"the worker classes here are {', '.join(known)}; or name a class of your own by its dotted path")


def installed_worker_classes() -> dict[str, str]:
    """What packages offer: names of worker classes and their paths (entry points, group ``forkserve.workers``)."""
    from importlib.metadata import entry_points  # not at the top: it takes milliseconds, and is seldom needed

    return {point.name: point.value.replace(":", ".") for point in entry_points(group="forkserve.workers")}


def resolve_paths(found: dict[str, Any], cwd: str) -> str:
    """Make paths absolute: files are opened by several processes, each with a working directory of its own.

    Args:
        found: values by setting, changed in place.
        cwd: the directory in which ``chdir`` begins; other paths begin in ``chdir``.

    Returns:
        ``chdir``.
    """
    chdir = found["chdir"] = os.path.normpath(os.path.join(cwd, found.get("chdir", "")))
    for name, declaration in table().items():
        if not declaration.setting.path or not found.get(name):
            continue
        if declaration.is_list:
            found[name] = tuple(_absolute(path, chdir) for path in found[name])
        else:
            found[name] = _absolute(found[name], chdir)
    if "bind" in found:
        found["bind"] = tuple(_absolute_address(address, chdir) for address in found["bind"])
    return str(chdir)


def _absolute(path: str, chdir: str) -> str:
    return path if path == "-" else os.path.join(chdir, os.path.expanduser(path))


def _absolute_address(address: str, chdir: str) -> str:
    """A unix socket's path made absolute; every other address, and an abstract name (unix:@NAME), as it is."""
    scheme, colon, path = address.partition(":")
    if scheme != "unix" or not path or path.startswith(("/", "@", "\0")):
        return address
    return scheme + colon + os.path.join(chdir, path)


def shown(declaration: Declaration, value: object) -> str:
    """A value as TOML, with secrets masked; file modes are octal."""
    if declaration.setting.secret and isinstance(value, tuple):
        value = tuple(str(item).partition("=")[0] + "=***" for item in value)
    return f"0o{value:03o}" if declaration.name == "umask" and isinstance(value, int) else to_toml(value)


def to_toml(value: object) -> str:
    """A value as TOML writes it (https://toml.io/en/v1.0.0); plain data without None."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_toml(str(key))} = {to_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(to_toml(item) for item in value) + "]"
    return f"{value:g}" if isinstance(value, float) and value < 1e6 else str(value)
