"""forkserve: a pre-fork WSGI server that does not lose requests.

The package itself does no work when imported: names below are loaded when they are first asked for (PEP 562), so that
``import forkserve`` inside an application costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from forkserve.embedding import RunningServer, running
    from forkserve.errors import RequestTimeout
    from forkserve.master import Master
    from forkserve.settings import Settings

__all__ = ["Master", "RequestTimeout", "RunningServer", "Settings", "__version__", "running"]

_HOMES = {
    "Master": "forkserve.master",
    "RequestTimeout": "forkserve.errors",
    "RunningServer": "forkserve.embedding",
    "Settings": "forkserve.settings",
    "running": "forkserve.embedding",
}


def __getattr__(name: str) -> object:
    """Load an exported name from its module on first use.

    Raises:
        AttributeError: the package exports no such name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'forkserve' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
