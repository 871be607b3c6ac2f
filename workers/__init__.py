"""The worker types.  Each is a page: how the application is run; the rest is the reactor's (server/).

sync        one request at a time                                sync.py
gthread     as many as there are threads                         gthread.py
gevent      as many as worker_connections, on greenlets          ggevent.py
NAME        an entry point of the group forkserve.workers, of a package that is installed
a.b.Class   an executor class of your own (server/executor.py)
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Final, cast

from forkserve.errors import SettingsError
from forkserve.values import installed_worker_classes

if TYPE_CHECKING:
    from forkserve.server.executor import Executor

WORKER_CLASSES: Final = {
    "sync": "forkserve.workers.sync.SyncExecutor",
    "gthread": "forkserve.workers.gthread.ThreadExecutor",
    "gevent": "forkserve.workers.ggevent.GeventExecutor",
}
"""The types by their short names."""


def load_worker_class(name: str) -> type[Executor]:
    """The executor class of a worker type.

    Args:
        name: a short name or a dotted path to a class.

    Raises:
        SettingsError: there is no such type.
    """
    path = WORKER_CLASSES.get(name) or (name if "." in name else installed_worker_classes().get(name, name))
    module_name, dot, class_name = path.rpartition(".")
    if not dot:
        near = get_close_matches(name, WORKER_CLASSES, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(WORKER_CLASSES)}, or a dotted path"
        raise SettingsError(f"worker_class = {name!r}: there is no such worker type: {hint}")
    try:
        found = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"worker_class = {name!r}: {error}: name a class as package.module.Class") from error
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise SettingsError(f"worker_class = {name!r}: importing {module_name} failed: {text}") from error
    missing = [
        method
        for method in ("prepare", "settle", "poll_of", "serve", "run", "wait", "interrupt")
        if not callable(getattr(found, method, None))
    ]
    if missing:
        raise SettingsError(f"worker_class = {name!r}: it has no method {' and '.join(missing)}: it is no executor")
    return cast("type[Executor]", found)
