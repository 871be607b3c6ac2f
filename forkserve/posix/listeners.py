"""Listening sockets: from an address as people write it to a socket that accepts, and the gentle way out.

    "127.0.0.1:8000" "[::1]:8000" "localhost:8000" ":8000"    TCP; a host name is listened on by its IPv4 address
    "unix:/run/app.sock"   "unix:@name"                       a path, or a name of the abstract namespace
    "fd://3"                                                  an inherited descriptor that already listens

    text ─ parse_address ─▶ Address ─ open_listener ─▶ Listener ─ refuse_new ─▶ queue emptied ─ close
                                       adopt_listener ─▶ (the same socket in a zygote or worker)

Promises: sockets are non-blocking and close-on-exec from birth; a stale unix socket is replaced and a live one is never
touched; a file that is no socket is never removed; every failure is one line that says what was tried, with which
value, what the system answered and what to do.

Left to others: when to open and close (the master), accepting (the worker's reactor, which also sets TCP_NODELAY).
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from forkserve.errors import ListenError, SettingsError
from forkserve.posix import unpatched

DEFAULT_PORT: Final = 8000
"""The port of an address that names none."""

UNIX_PATH_BYTES_MAX: Final = 107
"""unix(7): sun_path holds 108 bytes, the last of them NUL."""

LISTEN_FDS_START: Final = 3
"""sd_listen_fds(3): the first descriptor that is handed over."""

_SO_BINDTOIFINDEX: Final = 62
"""socket(7) since Linux 5.0; the standard library does not name it."""

_NO_SUCH_INTERFACE: Final = 0x7FFFFFFE
"""An interface index that no machine has."""

_TCPI_UNACKED_OFFSET: Final = 24
"""<linux/tcp.h>, struct tcp_info: of a listening socket tcpi_unacked is the length of its accept queue."""

Kind = Literal["tcp", "unix", "abstract", "fd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen, as it was asked for; ``str()`` gives the text back that :func:`parse_address` understands.

    Attributes:
        host, port: of ``tcp``; the host without brackets, port 0 lets the system choose.
        path: of ``unix``; of ``abstract`` the name without its ``@``.
        fd: of ``fd``.
    """

    kind: Kind
    host: str = ""
    port: int = 0
    path: str = ""
    fd: int = -1

    def __str__(self) -> str:
        match self.kind:
            case "tcp":
                return _host_and_port(self.host, self.port)
            case "unix":
                return f"unix:{self.path}"
            case "abstract":
                return f"unix:@{self.path}"
            case "fd":
                return f"fd://{self.fd}"


def _host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# ---------------------------------------------------------------------------------------------- text to Address


def parse_address(text: str) -> Address:
    """The address behind a text of the ``bind`` setting; the words are gunicorn's.

    Raises:
        SettingsError: the text is no address.
    """
    text = text.strip()
    if not text or not text.isprintable():
        raise _bad_address(text, "it is empty or holds unprintable characters")
    if text.startswith("unix:"):
        return _parse_unix(text)
    if text.startswith("fd://"):
        number = text.removeprefix("fd://")
        if not number.isascii() or not number.isdigit():
            raise _bad_address(text, "what follows fd:// must be a descriptor's number")
        return Address(kind="fd", fd=int(number))
    return _parse_tcp(text)


def _bad_address(text: str, why: str) -> SettingsError:
    return SettingsError(
        f"bind {text!r} is no address: {why}; write HOST:PORT, [IPV6]:PORT, unix:PATH, unix:@NAME or fd://N"
    )


def _parse_unix(text: str) -> Address:
    path = text.removeprefix("unix:").removeprefix("//")
    kind: Kind = "abstract" if path.startswith("@") else "unix"
    if kind == "abstract":
        path = path[1:]
    if not path:
        raise _bad_address(text, "a path or name is missing")
    length = len(os.fsencode(path))
    if length > UNIX_PATH_BYTES_MAX:
        raise _bad_address(
            text, f"its path is {length} bytes long and the system allows {UNIX_PATH_BYTES_MAX} (choose a shorter one)"
        )
    return Address(kind=kind, path=path)


_TCP_SYNTAX: Final = re.compile(
    r"(?: \[ (?P<ipv6> [0-9A-Fa-f:.]+ (?:%[^\]\s]+)? ) \] | (?P<host> [^\[\]:/\s@]* ) ) (?: : (?P<port> [^:]* ) )?",
    re.X,
)


def _parse_tcp(text: str) -> Address:
    rest = text.removeprefix("tcp://")
    if "://" in rest:
        raise _bad_address(text, f"{rest.split('://')[0]}:// is not known here")
    syntax = _TCP_SYNTAX.fullmatch(rest)
    if syntax is None:
        hint = "an IPv6 address stands in brackets" if rest.count(":") > 1 else "the host is malformed"
        raise _bad_address(text, hint)
    port_text = syntax["port"]
    if port_text is None and rest.isdigit():
        raise _bad_address(text, f"a port alone is written :{rest} (all IPv4 interfaces) or 127.0.0.1:{rest}")
    if port_text is None:
        port = DEFAULT_PORT
    elif port_text.isascii() and port_text.isdigit() and int(port_text) <= 65535:
        port = int(port_text)
    else:
        raise _bad_address(text, f"the port {port_text!r} is not a number from 0 to 65535")
    return Address(kind="tcp", host=syntax["ipv6"] or syntax["host"] or "0.0.0.0", port=port)


# ---------------------------------------------------------------------------------------------- the listener


class Listener:
    """A socket that listens, and what is known about it.  Owns the socket.

    Attributes:
        socket: non-blocking; accept from it.
        address: as asked for (its port may be 0).
        speaks_tls: do those who accept from it; set by who knows.
        fd_name: the name that systemd gave it; empty otherwise.
    """

    __slots__ = ("_opened_by_pid", "_path", "_path_identity", "_url", "address", "fd_name", "socket", "speaks_tls")

    def __init__(self, sock: socket.socket, address: Address, *, fd_name: str = "") -> None:
        sock.setblocking(False)
        sock.set_inheritable(False)
        self.socket = sock
        self.address = address
        self.fd_name = fd_name
        self.speaks_tls = False
        self._url = _url_of(sock, address)
        self._opened_by_pid: int | None = None  # this process made the socket, nobody lent it
        self._path = ""
        self._path_identity: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The address as text, as it was asked for."""
        return str(self.address)

    @property
    def url(self) -> str:
        """As it really is, for people: ``http://127.0.0.1:8000``, ``unix:/run/app.sock``."""
        return self._url.replace("http://", "https://", 1) if self.speaks_tls else self._url

    def fileno(self) -> int:
        """The descriptor to wait on; -1 once closed."""
        return self.socket.fileno()

    def refuse_new(self) -> bool:
        """From now on new connections are refused, while those in the accept queue and half-open ones stay whole.

        TCP: the socket is tied to an interface that does not exist (SO_BINDTOIFINDEX), so no new SYN finds it.  Unix:
        the path is removed.  Both act for every process that holds the socket and cannot be undone, so only the process
        that opened it may do it, and only when nobody else is to go on with it.

        Returns:
            False where it cannot be done (inherited sockets, abstract names, an old kernel): stop accepting and close.
        """
        if self._opened_by_pid != os.getpid() or self.fileno() == -1:
            return False
        if self.address.kind == "unix":
            self._remove_path()
            return True
        if self.address.kind != "tcp":
            return False
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, _NO_SUCH_INTERFACE)
        except OSError:
            return False  # before Linux 5.0, or forbidden by a sandbox: the answer says so
        return True

    def queue_length(self) -> int | None:
        """How many connections wait to be accepted; None where the system does not tell (unix sockets)."""
        if self.fileno() == -1 or self.socket.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCPI_UNACKED_OFFSET + 4)
        (waiting,) = struct.unpack_from("=I", info, _TCPI_UNACKED_OFFSET)
        return int(waiting)

    def close(self) -> None:
        """Close the socket; the process that made a unix socket also removes its path, if it is still its own."""
        if self._opened_by_pid == os.getpid():
            self._remove_path()
        self.socket.close()

    def take_over(self) -> None:
        """In a fork of the process that made the socket, which goes away: this process owns it from now on."""
        if self._opened_by_pid is not None:
            self._opened_by_pid = os.getpid()

    def _opened_here(self) -> None:
        """Note that this process made the socket and, for a path, which file it made."""
        self._opened_by_pid = os.getpid()
        if self.address.kind == "unix":
            self._path = os.path.abspath(self.address.path)
            status = os.lstat(self._path)
            self._path_identity = (status.st_dev, status.st_ino)

    def _remove_path(self) -> None:
        # The open socket keeps its inode, so the number cannot have been given to a successor's file meanwhile.
        if self._path_identity is None:
            return
        try:
            status = os.lstat(self._path)
            if (status.st_dev, status.st_ino) == self._path_identity:
                os.unlink(self._path)
        except OSError:
            pass  # gone already, or its directory is no longer ours to write: nothing of ours is left to remove
        self._path_identity = None


def _url_of(sock: socket.socket, address: Address) -> str:
    name = sock.getsockname()
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return f"http://{_host_and_port(name[0], name[1])}"
    if isinstance(name, bytes):
        return "unix:@" + os.fsdecode(name.removeprefix(b"\0"))
    return f"unix:{name}" if name else str(address)


# ---------------------------------------------------------------------------------------------- opening


def open_listener(
    address: Address, *, backlog: int, mode: int | None = None, owner: tuple[int, int] | None = None
) -> Listener:
    """A new socket that listens on ``address``; for ``fd://N`` the inherited one.

    Args:
        backlog: connections that may wait to be accepted; the kernel cuts it at net.core.somaxconn.
        mode: permission bits of a unix socket's path; None leaves what the process's umask gives.
        owner: user and group id of the path; None leaves the process's own.

    Raises:
        ListenError: the system refused; one line says what and why.
    """
    if address.kind == "fd":
        return _borrow(address.fd, address)
    try:
        family, target = _target_of(address)
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise _cannot_listen(address, error) from error
    clean_up = sock.close
    try:
        if address.kind == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif address.kind == "unix":
            _clear_path(address)
        sock.bind(target)
        listener = Listener(sock, address)
        listener._opened_here()
        clean_up = listener.close
        if address.kind == "unix":
            _set_permissions(address, mode, owner)  # nobody can connect before listen(2): no moment of wrong rights
        sock.listen(backlog)
    except BaseException as error:
        clean_up()
        if isinstance(error, OSError):
            raise _cannot_listen(address, error) from error
        raise
    return listener


def open_listeners(
    addresses: Iterable[Address], *, backlog: int, mode: int | None = None, owner: tuple[int, int] | None = None
) -> list[Listener]:
    """All of them or none: when one cannot be opened, those before it are closed again.

    Raises:
        ListenError: as of :func:`open_listener`.
    """
    listeners: list[Listener] = []
    try:
        for address in addresses:
            listeners.append(open_listener(address, backlog=backlog, mode=mode, owner=owner))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def adopt_listener(fd: int, address_text: str) -> Listener:
    """In a zygote or worker: the master's listener behind an inherited descriptor.

    It is not this process's to refuse for or to unlink; closing it closes this copy alone.

    Raises:
        ListenError: the descriptor is no listening socket.
    """
    return _borrow(fd, parse_address(address_text))


def systemd_listeners(environ: Mapping[str, str], pid: int) -> list[Listener]:
    """The sockets that systemd opened for this process (sd_listen_fds(3)); none when there are none for ``pid``.

    Raises:
        ListenError: the variables are malformed, or a descriptor is no listening socket.
    """
    pid_text, count_text = environ.get("LISTEN_PID", ""), environ.get("LISTEN_FDS", "")
    if not pid_text or not count_text:
        return []
    if not (pid_text.isdigit() and count_text.isdigit()):
        raise ListenError(
            f"cannot take over sockets: LISTEN_PID={pid_text!r} and LISTEN_FDS={count_text!r} must be numbers; "
            "start through systemd socket activation, or unset both"
        )
    if int(pid_text) != pid:
        return []  # meant for another process, e.g. our parent
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    listeners: list[Listener] = []
    for index in range(int(count_text)):
        fd = LISTEN_FDS_START + index
        fd_name = names[index] if index < len(names) else ""
        listeners.append(_borrow(fd, Address(kind="fd", fd=fd), fd_name=fd_name))
    return listeners


def _borrow(fd: int, address: Address, *, fd_name: str = "") -> Listener:
    """Take an inherited descriptor, and only if it is a stream socket that listens: others may share its O_NONBLOCK."""
    what = f"cannot use descriptor {fd} for {address}"
    try:
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except (OSError, OverflowError) as error:
        raise ListenError(
            f"{what} ({_answer(error)}): whoever starts this program must open it, listen on it and leave it open"
        ) from error
    if not is_socket:
        raise ListenError(f"{what}: it is open but not a socket; pass the number of a listening socket")
    sock = unpatched.Socket(fileno=fd)
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise ListenError(f"{what}: it is a socket but not a listening stream socket; listen(2) on it before the start")
    return Listener(sock, address, fd_name=fd_name)


def _target_of(address: Address) -> tuple[socket.AddressFamily, str | bytes | tuple[object, ...]]:
    """Family and bind(2) argument."""
    if address.kind == "unix":
        return socket.AF_UNIX, address.path
    if address.kind == "abstract":
        return socket.AF_UNIX, b"\0" + os.fsencode(address.path)
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ListenError(
            f"cannot listen on {address} ({_answer(error)}): the host {address.host!r} has no address here; "
            "use one of this machine's addresses, or 0.0.0.0 for all IPv4 interfaces"
        ) from error
    family, _type, _protocol, _name, target = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, target


def _clear_path(address: Address) -> None:
    """Remove what a dead server left at the path; refuse to touch anything else."""
    path = address.path
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise ListenError(f"cannot listen on {address}: {path} is no socket; remove it or choose another path")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        answer = probe.connect_ex(path)
    finally:
        probe.close()
    if answer == errno.ECONNREFUSED:
        os.unlink(path)  # nobody listens: its server is dead
    elif answer in (errno.EACCES, errno.EPERM):
        raise ListenError(
            f"cannot listen on {address} ({os.strerror(answer).lower()}): the socket there is not this user's, "
            "so whether a server is alive behind it cannot be told; remove it or start as its owner"
        )
    elif answer != errno.ENOENT:
        raise ListenError(
            f"cannot listen on {address} ({os.strerror(errno.EADDRINUSE).lower()}): a live process listens there; "
            "stop it or choose another path"
        )


def _set_permissions(address: Address, mode: int | None, owner: tuple[int, int] | None) -> None:
    try:
        if owner is not None:
            os.chown(address.path, *owner)
        if mode is not None:
            os.chmod(address.path, mode)
    except OSError as error:
        wish = f"owner {owner[0]}:{owner[1]}" if owner is not None else f"mode {mode:o}"
        raise ListenError(
            f"cannot give {address.path} its {wish} ({_answer(error)}): start as root, or leave out user and group"
        ) from error


# ---------------------------------------------------------------------------------------------- errors


def _answer(error: BaseException) -> str:
    """What the system said, in lower case and without numbers."""
    text = getattr(error, "strerror", None) or str(error)
    return str(text).lower()


_REMEDIES: Final[Mapping[int, str]] = {
    errno.EADDRINUSE: "another process listens there; stop it or choose another address",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address; use one of its own, or 0.0.0.0 for all",
    errno.EAFNOSUPPORT: "this machine does not offer that kind of address; use an IPv4 address",
    errno.ENOENT: "its directory does not exist; create it first",
    errno.ENOTDIR: "a part of its path is no directory; correct the path",
    errno.EROFS: "its file system is read-only; choose another directory",
    errno.EMFILE: "too many descriptors are open; raise the limit (ulimit -n)",
    errno.EINVAL: "the system does not take it; check the host and, for link-local IPv6, the interface after %",
}


def _cannot_listen(address: Address, error: OSError) -> ListenError:
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = (
            "use a port above 1023, socket activation, or the capability CAP_NET_BIND_SERVICE"
            if address.kind == "tcp"
            else "choose a directory that this user may write"
        )
    else:
        remedy = _REMEDIES.get(error.errno or 0, "choose another address")
    return ListenError(f"cannot listen on {address} ({_answer(error)}): {remedy}")
