"""Loading the application: from "module:attribute" to a WSGI callable, or to an error that helps.

    mysite.wsgi:application          the attribute
    mysite.wsgi                      its attribute `application`
    mysite.wsgi:container.app        attributes of attributes
    mysite.wsgi:create_app("prod")   a factory, called with literal arguments

Promises: every failure is one :class:`AppLoadError` whose message says what was looked for and what is there instead;
its traceback begins at the application's own first frame, without ours and importlib's.

Leaves to others: when and in which process to load, and what to do about a failure (zygote, workers, command line).
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from inspect import CO_VARARGS, iscoroutinefunction
from types import FunctionType, ModuleType
from typing import Any, NoReturn

from forkserve import tracebacks
from forkserve.errors import AppLoadError, PrivilegeError

_MACHINERY = (__file__, importlib.__file__)
_FACTORY_HELP = "write a factory as module:name() with literal arguments, such as create_app('production', debug=False)"


def prepare_path(chdir: str, pythonpath: Iterable[str] = ()) -> None:
    """Change to the application's directory and put it, behind ``pythonpath``, in front of the module path.

    Args:
        chdir: absolute path of the directory.
        pythonpath: more directories, the first one first.

    Raises:
        PrivilegeError: the directory cannot be changed to.
    """
    try:
        os.chdir(chdir)
    except OSError as error:
        raise PrivilegeError(f"chdir = {chdir!r}: cannot change to it ({error.strerror})") from error
    for entry in (chdir, *reversed([os.path.abspath(path) for path in pythonpath])):
        if entry in sys.path:
            sys.path.remove(entry)
        sys.path.insert(0, entry)


def load_application(spec: str) -> Callable[..., Any]:
    """Import the application that ``spec`` names.

    Args:
        spec: ``module``, ``module:attribute`` or ``module:factory(literal, name=literal)``.

    Returns:
        The WSGI callable.

    Raises:
        AppLoadError: it cannot be imported, found or called, or what it gives is no WSGI callable.
    """
    module_name, colon, expression = spec.partition(":")
    if not module_name or (colon and not expression.strip()) or not _is_dotted(module_name):
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        example = f"{dotted}:{expression or 'application'}" if "/" in module_name else "mysite.wsgi:application"
        raise AppLoadError(f"{spec!r} is no application: write module:attribute, for example {example}")
    names, call = _parse(spec, expression.strip() or "application")
    module = _import(spec, module_name)
    found = _attribute(spec, module, names)
    if call is not None:
        found = _call(spec, found, ".".join(names), *call)
    name = ".".join(names) + ("()" if call is not None else "")
    if not callable(found):
        raise AppLoadError(f"{spec}: {_not_callable(found, name, called=call is not None)}")
    if iscoroutinefunction(found) or iscoroutinefunction(getattr(found, "__call__", None)):  # noqa: B004
        raise AppLoadError(f"{spec}: {name} is an ASGI application; forkserve serves WSGI applications")
    _check_arguments(spec, found, name, called=call is not None)
    return found  # type: ignore[no-any-return]  # callable() is all that can be known of a user's object


def _check_arguments(spec: str, found: Any, name: str, *, called: bool) -> None:
    """Refuse a function that every request would fail to call: most often a factory without its ()."""
    if not isinstance(found, FunctionType):
        return  # what a class or a C function takes is its own affair
    code = found.__code__  # not its signature, which a decorator copies from what it wraps
    if code.co_flags & CO_VARARGS or code.co_argcount >= 2:
        return
    hint = "" if called else f": if it makes the application, write {spec.partition(':')[0]}:{name}()"
    what = f"the function that {name} returned" if called else name
    raise AppLoadError(
        f"{spec}: {what} takes {code.co_argcount or 'no'} argument{'s' * (code.co_argcount != 1)}, but a WSGI "
        f"application is called with two, environ and start_response{hint}"
    )


def _is_dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _parse(spec: str, expression: str) -> tuple[list[str], tuple[list[Any], dict[str, Any]] | None]:
    """The attribute's dotted names, and the arguments where it is a call."""
    try:
        node = ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise AppLoadError(
            f"{spec}: {expression!r} is neither an attribute's name nor a call; {_FACTORY_HELP}"
        ) from error
    call = None
    if isinstance(node, ast.Call):
        try:
            positional = [ast.literal_eval(argument) for argument in node.args]
            named = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg is not None}
        except (ValueError, TypeError, RecursionError, MemoryError) as error:
            raise AppLoadError(
                f"{spec}: the arguments of {expression!r} are not all literals; {_FACTORY_HELP}"
            ) from error
        if len(named) != len(node.keywords):
            raise AppLoadError(f"{spec}: **arguments cannot be given here; {_FACTORY_HELP}")
        call, node = (positional, named), node.func
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise AppLoadError(f"{spec}: {expression!r} is neither an attribute's name nor a call; {_FACTORY_HELP}")
    return [node.id, *names], call


def _import(spec: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        _fail_import(spec, name, error)


def _fail_import(spec: str, name: str, error: BaseException) -> NoReturn:
    text = tracebacks.own_traceback(error, _MACHINERY)
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if (
        missing
        and (name == missing or name.startswith(missing + "."))
        and tracebacks.first_own_frame(error, _MACHINERY) is None
    ):
        raise AppLoadError(f"{spec}: there is no module {missing!r}{_hint_for_missing(missing)}") from error
    if missing:
        message = (
            f"{spec}: {name} was found, but imports {missing!r}, which is not there: install it or correct the import"
        )
    elif isinstance(error, SyntaxError):
        place = f" in {error.filename} line {error.lineno}" if error.filename else f" while importing {name}"
        message = f"{spec}: syntax error{place}: {error.msg}"
    elif isinstance(error, SystemExit):
        message = f"{spec}: importing {name} left the interpreter with sys.exit({error.code!r})"
    else:
        message = f"{spec}: importing {name} failed: {_one_line(error)}"
    raise AppLoadError(message, text) from error


def _hint_for_missing(missing: str) -> str:
    """What to do about a module that is not there: a near name, or where it was looked for."""
    parent, _, last = missing.rpartition(".")
    if missing.endswith(".py") or last == "py":
        return f": write {parent!r} without .py"
    near = get_close_matches(last, _modules_in(parent), n=1)
    if near:
        return f"; did you mean {parent + '.' if parent else ''}{near[0]}?"
    if parent:
        return f" in {parent}"
    return f" in {os.getcwd()} or on Python's path: start in the project's directory, or use --chdir or --pythonpath"


def _modules_in(parent: str) -> list[str]:
    """Names of modules beside the missing one: in its package, or in the first directory of the path."""
    if parent:
        spec = importlib.util.find_spec(parent)
        places = list(spec.submodule_search_locations or ()) if spec else []
    else:
        places = sys.path[:1] or [os.getcwd()]
    found = []
    for place in places:
        try:
            found += [name.removesuffix(".py") for name in os.listdir(place or ".")]
        except OSError:
            continue  # an entry of the path that is no directory offers no names
    return [name for name in found if name.isidentifier()]


def _attribute(spec: str, module: ModuleType, names: list[str]) -> Any:
    found: Any = module
    place = module.__name__
    for name in names:
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise AppLoadError(f"{spec}: {place} has no attribute {name!r}{_near(found, name)}") from error
        except Exception as error:
            message = f"{spec}: reading {place}.{name} failed: {_one_line(error)}"
            raise AppLoadError(message, tracebacks.own_traceback(error, _MACHINERY)) from error
        place = f"{place}.{name}"
    return found


def _near(holder: Any, name: str) -> str:
    """Names that were perhaps meant: similar ones, else those that look like an application."""
    public = [other for other in vars(holder) if not other.startswith("_")] if hasattr(holder, "__dict__") else []
    near = get_close_matches(name, public, n=3)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    usual = [other for other in ("application", "app", "create_app", "make_app", "wsgi") if other in public]
    if usual:
        written = [other + "()" if other.startswith(("create", "make")) else other for other in usual]
        return f"; it has {', '.join(written)}"
    return f"; it has {', '.join(public[:8])}" if public else "; it has no public attributes"


def _call(spec: str, factory: Any, name: str, positional: list[Any], named: dict[str, Any]) -> Any:
    if not callable(factory):
        raise AppLoadError(f"{spec}: {name} is {_kind(factory)}, not a function that can be called: leave out the ()")
    try:
        return factory(*positional, **named)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        if isinstance(error, TypeError) and tracebacks.first_own_frame(error, _MACHINERY) is None:
            message = f"{spec}: {name} cannot be called with these arguments: {error}"
        elif isinstance(error, SystemExit):
            message = f"{spec}: {name}() left the interpreter with sys.exit({error.code!r})"
        else:
            message = f"{spec}: {name}() failed: {_one_line(error)}"
        raise AppLoadError(message, tracebacks.own_traceback(error, _MACHINERY)) from error


def _not_callable(found: Any, name: str, *, called: bool) -> str:
    if called:
        return f"{name} returned {_kind(found)}, which is not a WSGI callable"
    if isinstance(found, ModuleType):
        return f"{name} is a module, not a WSGI callable: write {found.__name__}:application"
    return f"{name} is {_kind(found)}, not a WSGI callable"


def _kind(found: Any) -> str:
    return "None" if found is None else f"an object of type {type(found).__name__}"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


_FRAMEWORKS = {
    "flask": "Flask",
    "django": "Django",
    "bottle": "Bottle",
    "falcon": "Falcon",
    "pyramid": "Pyramid",
    "cherrypy": "CherryPy",
    "werkzeug": "Werkzeug",
    "webob": "WebOb",
    "web": "web.py",
    "connexion": "Connexion",
    "dash": "Dash",
    "flask_restx": "Flask",
    "apistar": "API Star",
    "morepath": "Morepath",
    "a2wsgi": "ASGI behind a2wsgi",
    "asgiref": "ASGI behind asgiref",
    "whitenoise": "WhiteNoise",
}
"""First part of a class's module → the framework, for :func:`describe`."""


def describe(application: Callable[..., Any]) -> str:
    """What an application is, for people: its framework where that is known, and its class or function."""
    if isinstance(application, FunctionType):
        return f"function {application.__qualname__} of {application.__module__}"
    kinds = [*type(application).__mro__]
    owner = getattr(application, "__self__", None)  # a bound method, such as bottle's app.wsgi
    if owner is not None and not isinstance(owner, ModuleType):
        kinds = [*type(owner).__mro__, *kinds]
    known = [_FRAMEWORKS.get(kind.__module__.partition(".")[0]) for kind in kinds]
    framework = next(filter(None, known), None)
    name = f"{type(application).__module__}.{type(application).__qualname__}"
    return f"{framework} ({name})" if framework else f"an object of {name}"
