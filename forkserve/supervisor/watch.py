"""The file watcher of `--reload`: a child of the master that says when source files have changed.

    watcher: watchfiles ─▶ FilesChanged ─▶ channel ─▶ master: as at SIGHUP

It is a process of its own since it needs threads, which the master must not have.  It leaves when the master does.
For development: watching costs memory and reloads happen whenever somebody saves.
"""

from __future__ import annotations

import glob
import os
import select
import signal
import sys
import threading
from collections.abc import Iterable
from importlib.util import find_spec
from typing import NoReturn

from forkserve import messages
from forkserve.errors import SettingsError
from forkserve.posix import process, signals
from forkserve.posix.channel import CLOSED, Channel, channel_pair
from forkserve.settings import Settings
from forkserve.supervisor.children import Child, Children

PATHS_TOLD_MAX = 20
"""How many changed files are named: the log shows three, and a message must fit a datagram."""

_PYTHON_ENDINGS = (".py", ".pyi", ".pyx", ".pyd")


def start_watcher(children: Children, settings: Settings) -> None:
    """Start the watcher as one of the master's children.

    Raises:
        SettingsError: the library for it is not installed.
    """
    if find_spec("watchfiles") is None:
        raise SettingsError("reload = true needs the package watchfiles: pip install 'forkserve[reload]'")
    ours, theirs = channel_pair()
    extra = [os.path.abspath(each) for each in settings.reload_extra_files]
    folders = [settings.chdir, *settings.pythonpath]
    arguments = [str(theirs.fileno()), *folders, "--", *extra]
    command = process.python_command("forkserve.supervisor.watch:watcher_main", arguments)
    pid = process.exec_program(command, os.environ, [theirs.fileno()])
    theirs.close()
    children.add(Child("watcher", 1, 0, ours, pid=pid))


def watcher_main() -> NoReturn:
    """Where the watcher's interpreter begins: its channel's descriptor, folders, ``--``, extra files and patterns."""
    from watchfiles import watch

    process.set_title("watcher")
    for signum in signals.DEFAULTED_IN_CHILD:
        signal.signal(signum, lambda *_: None)  # the terminal's group: only the master decides
    divide = sys.argv.index("--")
    channel = Channel.from_fd(int(sys.argv[0]))
    folders, extra = sys.argv[1:divide], sys.argv[divide + 1 :]
    master_has_gone = threading.Event()
    threading.Thread(target=_wait_for_end, args=(channel, master_has_gone), daemon=True).start()
    places = _places(folders, extra)
    for changes in watch(*places, watch_filter=None, stop_event=master_has_gone, raise_interrupt=False):
        paths = sorted({path for _kind, path in changes if _matters(path, extra)})
        if paths and not channel.send(messages.FilesChanged(paths=tuple(paths[:PATHS_TOLD_MAX]))):
            break
    process.leave(0)


def _wait_for_end(channel: Channel, ended: threading.Event) -> None:
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while poll.poll() and channel.receive() is not CLOSED:
        continue
    ended.set()


def _places(folders: Iterable[str], extra: Iterable[str]) -> list[str]:
    """What to watch: the folders, and the nearest existing folder of each extra file that lies outside of them."""
    places = list(dict.fromkeys(folder for folder in folders if os.path.isdir(folder)))
    for pattern in extra:
        for path in glob.glob(pattern, recursive=True) or [pattern]:
            folder = path if os.path.isdir(path) else os.path.dirname(path)
            if os.path.isdir(folder) and not any(folder == place or folder.startswith(place + "/") for place in places):
                places.append(folder)
    return places


def _matters(path: str, extra: Iterable[str]) -> bool:
    if "/__pycache__/" in path or "/.git/" in path:
        return False
    if path.endswith(_PYTHON_ENDINGS):
        return True
    return any(path == each or path.startswith(each + "/") or path in glob.glob(each, recursive=True) for each in extra)
