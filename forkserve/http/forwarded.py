"""What a trusted proxy says of the client: the scheme, the prefix of the application, the client's address.

    X-Forwarded-Proto: https             ──▶ wsgi.url_scheme                (secure_scheme_headers)
    SCRIPT_NAME: /shop                   ──▶ SCRIPT_NAME, PATH_INFO         (forwarder_headers)
    X-Forwarded-For: 192.0.2.7, 10.0.0.9 ──▶ REMOTE_ADDR, REMOTE_PORT       (forwarded_for)

One policy serves all connections of a worker; the parser applies it to a request of a trusted peer that has one of its
fields, and to no other.  From everybody else the fields are what they are, text in ``HTTP_…`` variables, and names with
an underscore are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from forkserve.http.errors import RefusedRequest
from forkserve.networks import IPAddress, Networks, parse_address

HOPS_MAX: Final = 32
"""Addresses read from the right end of X-Forwarded-For; a longer chain of proxies is a loop or an attack."""

_SCRIPT_NAME: Final = "HTTP_SCRIPT_NAME"
_FORWARDED_FOR: Final = "HTTP_X_FORWARDED_FOR"

_NODE: Final = re.compile(
    r"\[(?P<ipv6>[0-9A-Fa-f:.]+)\](?::(?P<port6>[0-9]{1,5}))?"
    r"|(?P<ipv4>[0-9.]+)(?::(?P<port4>[0-9]{1,5}))?"
    r"|(?P<bare>[0-9A-Fa-f:.]+)"
)
"""An address as proxies write it: with a port or without, IPv6 in brackets (RFC 7239 section 6) or bare."""


class Forwarding:
    """The policy for fields of trusted peers.

    Args:
        scheme_headers: names of fields, and of each the value that means https.
        forwarder_headers: names with an underscore that a trusted peer may send.
        forwarded_for: is ``REMOTE_ADDR`` taken from X-Forwarded-For?
        proxies: the addresses in X-Forwarded-For that are proxies of ours, not the client.

    Attributes:
        keys: the variables by which the parser sees that a request concerns this policy.
        passed_keys: those of them that come by a name with an underscore alone: dropped unless the peer is trusted.
    """

    __slots__ = ("_proxies", "_schemes", "keys", "passed_keys")

    def __init__(
        self,
        *,
        scheme_headers: Mapping[str, str] | None = None,
        forwarder_headers: Iterable[str] = (),
        forwarded_for: bool = False,
        proxies: Networks | None = None,
    ) -> None:
        self._schemes = tuple((_key(name), value) for name, value in (scheme_headers or {}).items())
        self._proxies = (proxies or Networks(())) if forwarded_for else None
        self.passed_keys = frozenset(map(_key, forwarder_headers))
        own = [_FORWARDED_FOR] if forwarded_for else []
        self.keys = self.passed_keys.union(own, (key for key, _ in self._schemes))

    def apply(self, environ: dict[str, Any]) -> None:
        """Take what a trusted peer says into the environ of a request that has one of :attr:`keys`.

        Raises:
            RefusedRequest: its fields contradict each other, are malformed, or lead out of the application.
        """
        scheme = self._scheme(environ)
        if scheme:
            environ["wsgi.url_scheme"] = scheme
        if _SCRIPT_NAME in environ and _SCRIPT_NAME in self.passed_keys:
            _mount(environ, environ[_SCRIPT_NAME])
        if self._proxies is not None and _FORWARDED_FOR in environ:
            client = client_of(environ["REMOTE_ADDR"], environ[_FORWARDED_FOR], self._proxies)
            if client is not None:
                environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = client

    def _scheme(self, environ: dict[str, Any]) -> str:
        """http or https; empty where no field says."""
        found = ""
        for key, secure in self._schemes:
            if key in environ:
                value = environ[key]
                scheme = "https" if value == secure else _scheme_of(value, secure)
                if found not in ("", scheme):
                    raise _contradiction()
                found = scheme
        return found


def _scheme_of(value: str, secure: str) -> str:
    """What a list says, whose elements may come from several proxies (RFC 9110 section 5.3): all the same."""
    said = {element.strip(" \t") == secure for element in value.split(",")}
    if len(said) > 1:
        raise _contradiction()
    return "https" if said.pop() else "http"


def _contradiction() -> RefusedRequest:
    return RefusedRequest(400, "fields of the proxy contradict each other: is it https or not?")


def client_of(peer: str, hops: str, proxies: Networks) -> tuple[str, str] | None:
    """Address and port of the client by X-Forwarded-For; None: it is the peer.

    From the right, where the nearest proxy has written, to the left, as long as each address is a proxy of ours: the
    next one was written by it.  What stands left of an address that is none of ours, or of what is no address, was
    written by anybody.  With ``*`` nobody can be told from a proxy of ours: then it is the right-most address.

    Args:
        peer: who the connection comes from; "" is a unix socket.
        hops: the value of the field.
        proxies: addresses that are ours.
    """
    if peer not in proxies:
        return None
    client: tuple[str, str] | None = None
    for element in reversed(hops.rsplit(",", HOPS_MAX)):
        element = element.strip(" \t")
        if not element:
            continue  # RFC 9110 section 5.6.1.2: empty elements of a list are ignored
        hop = _parse_hop(element)
        if hop is None:
            break
        client = str(hop[0]), hop[1]
        if proxies.has_all or not proxies.covers(hop[0]):
            break
    return client


def _parse_hop(element: str) -> tuple[IPAddress, str] | None:
    """Address and port ("" without one); None where it is no address ("unknown", a name, garbage)."""
    match = _NODE.fullmatch(element)
    if match is None:
        return None
    port = match["port6"] or match["port4"] or ""
    try:
        address = parse_address(match["ipv6"] or match["ipv4"] or match["bare"])
    except ValueError:
        return None
    if port and int(port) > 65535:
        return None
    return address, port


def _mount(environ: dict[str, Any], script_name: str) -> None:
    """Move the prefix of the path to ``SCRIPT_NAME`` (PEP 3333: it is the part that names the application)."""
    prefix = script_name.rstrip("/")
    if not prefix:
        return
    if prefix[0] != "/":
        raise RefusedRequest(400, "SCRIPT_NAME of the proxy is no path")
    path = environ["PATH_INFO"]
    if path == "":
        return  # the target * is about the server
    if path != prefix and not path.startswith(prefix + "/"):
        raise RefusedRequest(404, "the path is outside of SCRIPT_NAME")
    environ["SCRIPT_NAME"] = prefix
    environ["PATH_INFO"] = path[len(prefix) :]


def _key(name: str) -> str:
    """The environ key of a field name."""
    return "HTTP_" + name.upper().replace("-", "_")
