"""The gevent worker type: each call on a greenlet.

    main greenlet   turn ─ poll: waits in gevent's hub ─ turn ─ …        the reactor's epoll is one watcher of the hub
    greenlets       call ─ blocks ─▶ hub ─▶ others ─ … ─▶ call ends ─▶ reactor.finish

An idle connection is the reactor's affair and costs no greenlet.  All is one thread: a greenlet that computes stops
everybody, the reactor too.  The standard library is patched (gevent.monkey) before anything of the application is
imported, in the zygote or, for an application that is an object, in the process that has it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from forkserve.errors import RequestTimeout, SettingsError
from forkserve.posix import unpatched
from forkserve.server.exchange import Exchange
from forkserve.server.executor import Executor, Poll
from forkserve.server.interruption import Calls
from forkserve.server.reactor import Reactor
from forkserve.settings import Settings

if TYPE_CHECKING:
    import select
    import socket
    from types import FrameType

_READ: Final = 1
_WRITE: Final = 2


class ByThrow:
    """A way into greenlets that wait (interruption.py): one that computes is not to be stopped.

    Args:
        hub: what they wait in.
    """

    def __init__(self, hub: Any) -> None:
        from gevent import getcurrent

        self._hub = hub
        self.here: Callable[[], Any] = getcurrent
        self._wanted: set[Any] = set()

    def frame_of(self, place: Any) -> FrameType | None:
        """Where it waits."""
        frame: FrameType | None = place.gr_frame
        return frame

    def send(self, place: Any) -> None:
        """It is thrown by the hub: thrown from here, its next wait would never come back to us."""
        self._wanted.add(place)
        self._hub.loop.run_callback(self._throw, place)

    def withdraw(self, place: Any) -> None:
        """Let the hub do nothing."""
        self._wanted.discard(place)

    def _throw(self, place: Any) -> None:
        if place in self._wanted:
            self._wanted.discard(place)
            place.throw(RequestTimeout)


class GeventExecutor(Executor):
    """Runs each exchange on a greenlet of its own."""

    is_multithread = True
    accepts_per_turn = 16

    @classmethod
    def prepare(cls) -> None:
        """Patch the standard library, and make the hub, so that its descriptors are there before the application."""
        try:
            import gevent
            from gevent import monkey
        except ImportError as error:
            raise SettingsError(
                f"worker_class = 'gevent' needs the package gevent ({error}): pip install 'forkserve[gevent]'"
            ) from error
        if "ssl" in sys.modules and not monkey.is_module_patched("ssl"):
            raise SettingsError(
                "worker_class = 'gevent': ssl was imported before gevent could patch it: name the application as "
                "module:attribute instead of giving the object, or call gevent.monkey.patch_all() first of all"
            )
        monkey.patch_all()
        gevent.get_hub()
        gevent.sleep(0)

    @classmethod
    def settle(cls) -> None:
        """The threads of gevent's pool (it looks up names on them) are made anew after a fork."""
        from gevent import get_hub

        get_hub().threadpool.kill()

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.calls_max = settings.worker_connections
        self.prepare()
        import gevent

        gevent.reinit()
        self._spawn: Callable[..., Any] = gevent.spawn
        self._sleep = gevent.sleep
        self._hub = gevent.get_hub()
        if threading.current_thread() is threading.main_thread():
            # gevent does it behind the first fork: the end of a child that was faster would never be seen.
            self._hub.loop.install_sigchld()
        self._main = gevent.getcurrent()
        self._is_waiting = False
        self._calls = Calls(ByThrow(self._hub))

    def poll_of(self, epoll: select.epoll) -> Poll:
        """The main greenlet waits in the hub; the epoll is watched there all the time, so that this costs no call."""
        self._epoll_poll: Poll = epoll.poll
        self._watcher = self._hub.loop.io(epoll.fileno(), _READ)
        self._timer = self._hub.loop.timer(0.0)
        return self._poll

    def serve(self, reactor: Reactor) -> None:
        """The calling greenlet turns the reactor."""
        import gevent

        self._reactor = reactor
        self._main = gevent.getcurrent()
        self._watcher.start(self._resume)
        reactor.turn_for_ever()
        self._watcher.stop()
        self._watcher.close()

    def run(self, exchange: Exchange) -> None:
        """Call on a new greenlet, at the hub's next turn."""
        self._spawn(self._call, exchange)

    def wait(self, fd: int, mask: int, timeout_s: float) -> bool:
        """Wait in the hub for a slow client."""
        import gevent

        watcher = self._hub.loop.io(fd, _READ if mask & 1 else _WRITE)
        with gevent.Timeout(timeout_s, False):
            self._hub.wait(watcher)
            return True
        return False

    def lend(self, sock: socket.socket) -> socket.socket:
        """A socket of gevent's (those of TLS are): the reactor's own would stop the whole process."""
        if isinstance(sock, unpatched.Socket):
            from gevent.socket import socket as gevent_socket

            sock = gevent_socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        return super().lend(sock)

    def interrupt(self, exchange: Exchange) -> str:
        """Throw RequestTimeout into the greenlet of this exchange where it waits."""
        return self._calls.interrupt(exchange)

    def _poll(self, timeout_s: float, events_max: int) -> list[tuple[int, int]]:
        if timeout_s > 0:
            self._is_waiting = True
            self._timer = self._hub.loop.timer(timeout_s)
            self._timer.start(self._resume)
            self._hub.switch()
            self._timer.stop()
            self._timer.close()
        else:
            self._sleep(0)
        return self._epoll_poll(0, events_max)

    def _resume(self) -> None:
        """In the hub: let the main greenlet go on, if it waits."""
        if self._is_waiting:
            self._is_waiting = False
            self._main.switch()

    def _call(self, exchange: Exchange) -> None:
        """The greenlet of one exchange."""
        self._calls.run(exchange)
        reactor = self._reactor
        if not self._is_waiting:
            reactor.finish_later(exchange)
            return
        reactor.finish(exchange)
        if reactor.is_turn_due and self._is_waiting:
            self._hub.loop.run_callback(self._resume)
