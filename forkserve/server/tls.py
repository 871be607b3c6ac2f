"""TLS of one generation's workers: the context, made anew when the certificate changes.

    zygote   TlsServer ─ renew ─▶ context       when it has the application: once, before it forks
    worker      └──────── renew ─▶ context      when it does not, or when the certificate changed before it was forked
             wrap(socket) ─ version changed? ─▶ renew, or go on with the old one and say so ─▶ TlsSocket

A context made before the fork has one set of keys for session tickets, which all workers share: any of them resumes
the session of any other.  One that a worker makes for itself has keys of its own (the ssl module cannot set them), and
a session of another worker costs a full handshake again.

Importing this does not import ssl: an application that patches it may be yet to come.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from forkserve import log
from forkserve.errors import ForkserveError
from forkserve.posix.key_material import KeyRegion
from forkserve.server.transport import PlainSocket
from forkserve.settings import Hook

if TYPE_CHECKING:
    from forkserve.server.tls_context import TlsSettings
    from forkserve.server.tls_socket import TlsSocket


class TlsServer:
    """Makes plain sockets speak TLS.

    Args:
        region: where the master puts certificate and key.
        settings: how TLS is to be spoken.
        hook: the user's ``ssl_context``.

    Attributes:
        handshake_timeout_ns: how long a client may take for its handshake.
    """

    def __init__(self, region: KeyRegion, settings: TlsSettings, hook: Hook | None) -> None:
        self.handshake_timeout_ns = int(settings.handshake_timeout * 1e9)
        self._region = region
        self._settings = settings
        self._hook = hook
        self._version = 0
        self._make: Callable[[PlainSocket], TlsSocket] | None = None

    def renew(self) -> None:
        """Make the context of the certificate of now, unless it is made already.

        Raises:
            ForkserveError: it cannot be made; the one before stays.
            OSError: there are no descriptors or no memory for it at this moment.
        """
        from forkserve.server.tls_context import make_context
        from forkserve.server.tls_socket import TlsSocket

        if self._region.version == self._version:
            return
        version, material = self._region.read()
        try:
            context = make_context(material, self._settings, self._hook)
        except ForkserveError:
            self._version = version  # the same would fail again
            raise
        self._version = version
        self._make = partial(TlsSocket, context=context, suppress_ragged_eofs=self._settings.suppress_ragged_eofs)

    def wrap(self, sock: PlainSocket) -> TlsSocket:
        """The TLS socket of a connected, non-blocking socket, which it takes over.

        Raises:
            OSError: the peer has gone; the socket is closed.
        """
        if self._region.version != self._version:
            self._renew_or_keep()
        assert self._make is not None, "renew() comes first"
        return self._make(sock)

    def _renew_or_keep(self) -> None:
        try:
            self.renew()
        except ForkserveError as error:
            log.event(
                log.ERROR,
                "tls.kept",
                f"{error}; going on with the certificate of before",
                traceback=error.traceback_text or None,
            )
        except OSError:
            return  # at this moment: the next connection tries again
