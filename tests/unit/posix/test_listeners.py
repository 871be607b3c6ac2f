"""Addresses, and real sockets behind them."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from forkserve.errors import ListenError, SettingsError
from forkserve.posix import listeners
from forkserve.posix.listeners import (
    Address,
    Listener,
    adopt_listener,
    open_listener,
    open_listeners,
    parse_address,
    systemd_listeners,
)

LOCAL = Address(kind="tcp", host="127.0.0.1", port=0)


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(closing: ExitStack, address: Address | str, backlog: int = 16) -> Listener:
    listener = open_listener(parse_address(address) if isinstance(address, str) else address, backlog=backlog)
    closing.callback(listener.close)
    return listener


def connect(closing: ExitStack, listener: Listener) -> socket.socket:
    """A client that has connected to ``listener``."""
    client = closing.enter_context(socket.socket(listener.socket.family))
    client.settimeout(5)
    client.connect(listener.socket.getsockname())
    return client


# ------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", Address(kind="tcp", host="127.0.0.1", port=8000)),
        ("tcp://127.0.0.1:8000", Address(kind="tcp", host="127.0.0.1", port=8000)),
        (" localhost:0 ", Address(kind="tcp", host="localhost", port=0)),
        ("localhost", Address(kind="tcp", host="localhost", port=8000)),
        (":8080", Address(kind="tcp", host="0.0.0.0", port=8080)),
        ("[::1]:80", Address(kind="tcp", host="::1", port=80)),
        ("[::]", Address(kind="tcp", host="::", port=8000)),
        ("[fe80::1%eth0]:80", Address(kind="tcp", host="fe80::1%eth0", port=80)),
        ("unix:/run/x.sock", Address(kind="unix", path="/run/x.sock")),
        ("unix:///run/x.sock", Address(kind="unix", path="/run/x.sock")),
        ("unix:x.sock", Address(kind="unix", path="x.sock")),
        ("unix:@name", Address(kind="abstract", path="name")),
        ("fd://3", Address(kind="fd", fd=3)),
    ],
)
def test_an_address_is_understood(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["127.0.0.1:8000", "[::1]:80", "localhost:0", "unix:/run/x.sock", "unix:@name", "fd://3"]
)
def test_an_address_gives_its_text_back(text: str) -> None:
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("a\0b:80", "unprintable"),
        ("8000", "a port alone is written :8000"),
        ("::1:80", "brackets"),
        ("[::1", "malformed|brackets"),
        ("host:http", "the port 'http' is not a number"),
        ("host:", "the port '' is not a number"),
        ("host:65536", "the port '65536' is not a number from 0 to 65535"),
        ("host:-1", "the port '-1'"),
        ("host:²", "the port '²'"),
        ("http://host:80", "http:// is not known"),
        ("user@host:80", "malformed"),
        ("host/path:80", "malformed"),
        ("unix:", "path or name is missing"),
        ("unix:@", "path or name is missing"),
        ("unix:/" + "x" * 107, "108 bytes long and the system allows 107"),
        ("fd://", "descriptor's number"),
        ("fd://x", "descriptor's number"),
        ("fd://-1", "descriptor's number"),
    ],
)
def test_what_is_no_address_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why) as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------- opening


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1:0", "http://127.0.0.1:"),
        ("localhost:0", "http://127.0.0.1:"),
        (":0", "http://0.0.0.0:"),
        ("[::1]:0", "http://[::1]:"),
    ],
)
def test_tcp_is_listened_on_and_says_where(closing: ExitStack, text: str, url: str) -> None:
    listener = opened(closing, text)
    assert listener.url.startswith(url)
    assert listener.url.rsplit(":", 1)[1] == str(listener.socket.getsockname()[1])
    assert listener.name == str(parse_address(text))
    connect(closing, listener)


def test_sockets_are_non_blocking_and_close_on_exec(closing: ExitStack) -> None:
    for text in ("127.0.0.1:0", f"unix:@{uuid.uuid4()}"):
        listener = opened(closing, text)
        assert listener.socket.getblocking() is False
        assert not os.get_inheritable(listener.fileno())
        with pytest.raises(BlockingIOError):
            listener.socket.accept()


def test_an_address_can_be_bound_again_at_once(closing: ExitStack) -> None:
    first = opened(closing, LOCAL)
    port = first.socket.getsockname()[1]
    client = connect(closing, first)
    accepted, _ = first.socket.accept()
    accepted.close()  # this side closes first: its connection stays in TIME_WAIT
    assert client.recv(1) == b""
    first.close()
    opened(closing, f"127.0.0.1:{port}")


def test_an_address_in_use_is_one_clear_line(closing: ExitStack) -> None:
    port = opened(closing, LOCAL).socket.getsockname()[1]
    with pytest.raises(ListenError) as caught:
        opened(closing, f"127.0.0.1:{port}")
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port} (address already in use): "
        "another process listens there; stop it or choose another address"
    )
    assert caught.value.exit_code == 1


def test_an_abstract_name_in_use_is_one_clear_line(closing: ExitStack) -> None:
    text = f"unix:@{uuid.uuid4()}"
    assert opened(closing, text).url == text
    with pytest.raises(ListenError, match="address already in use"):
        opened(closing, text)


def test_an_address_of_another_machine_is_one_clear_line(closing: ExitStack) -> None:
    with pytest.raises(ListenError, match=r"cannot listen on 192\.0\.2\.1:0 \(.*\): no interface of this machine has"):
        opened(closing, "192.0.2.1:0")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 70])
def test_an_unknown_host_is_one_clear_line(closing: ExitStack, host: str) -> None:
    with pytest.raises(ListenError, match=f"the host '{host}' has no address here"):
        opened(closing, f"{host}:0")


def test_a_refused_permission_names_the_ways_out(closing: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forbidden(socket.socket):
        def bind(self, _address: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket, "socket", Forbidden)
    with pytest.raises(ListenError, match=r"on 0\.0\.0\.0:80 \(permission denied\): use a port above 1023, socket act"):
        opened(closing, "0.0.0.0:80")


def test_all_listeners_are_opened_or_none(closing: ExitStack, tmp_path: Path) -> None:
    good, bad = f"unix:{tmp_path}/good.sock", f"unix:{tmp_path}/missing/bad.sock"
    both = open_listeners([parse_address(good), LOCAL], backlog=5)
    assert [listener.name for listener in both] == [good, "127.0.0.1:0"]
    for listener in both:
        listener.close()
    with pytest.raises(ListenError, match="its directory does not exist"):
        open_listeners([parse_address(good), parse_address(bad)], backlog=5)
    assert not (tmp_path / "good.sock").exists()


# ------------------------------------------------------------------------------------------- unix paths


def test_a_unix_socket_has_its_mode_and_goes_with_its_listener(closing: ExitStack, tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    address = Address(kind="unix", path=str(path))
    listener = open_listener(address, backlog=5, mode=0o660, owner=(os.getuid(), os.getgid()))
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert listener.url == f"unix:{path}"
    connect(closing, listener)
    listener.close()
    assert not path.exists()
    listener.close()


def test_a_stale_unix_socket_is_replaced(closing: ExitStack, tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    connect(closing, opened(closing, f"unix:{path}"))


def test_a_live_unix_socket_is_refused_and_left_alone(closing: ExitStack, tmp_path: Path) -> None:
    live = opened(closing, f"unix:{tmp_path}/x.sock", backlog=1)
    with pytest.raises(ListenError, match=r"x\.sock \(address already in use\): a live process listens there"):
        opened(closing, f"unix:{tmp_path}/x.sock")
    connect(closing, live)
    with pytest.raises(ListenError, match="a live process listens there"):  # its queue is full now: alive all the same
        opened(closing, f"unix:{tmp_path}/x.sock")


def test_a_live_socket_of_another_type_is_refused(closing: ExitStack, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "x.sock"))
        with pytest.raises(ListenError, match="a live process listens there"):
            opened(closing, f"unix:{tmp_path}/x.sock")


def test_a_socket_that_may_not_be_probed_is_refused(
    closing: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(closing, f"unix:{tmp_path}/x.sock")

    class Forbidden(socket.socket):
        def connect_ex(self, _address: object) -> int:
            return errno.EACCES

    monkeypatch.setattr(socket, "socket", Forbidden)
    with pytest.raises(ListenError, match="whether a server is alive behind it cannot be told"):
        opened(closing, f"unix:{tmp_path}/x.sock")


@pytest.mark.parametrize("what", ["file", "directory", "link"])
def test_a_path_that_is_no_socket_is_never_removed(closing: ExitStack, tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.sock"
    if what == "file":
        path.write_text("precious")
    elif what == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ListenError, match=r"x\.sock is no socket; remove it or choose another path"):
        opened(closing, f"unix:{path}")
    assert os.path.lexists(path)


def test_a_missing_directory_is_one_clear_line(closing: ExitStack, tmp_path: Path) -> None:
    with pytest.raises(ListenError, match=r"\(no such file or directory\): its directory does not exist; create"):
        opened(closing, f"unix:{tmp_path}/no/x.sock")


def test_permissions_that_cannot_be_set_leave_no_socket_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_arguments: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chown", forbidden)
    with pytest.raises(ListenError, match=r"\(operation not permitted\)"):
        open_listener(Address(kind="unix", path=f"{tmp_path}/x.sock"), backlog=5, owner=(1, 1))
    assert not (tmp_path / "x.sock").exists()


def test_a_successors_socket_is_not_removed(closing: ExitStack, tmp_path: Path) -> None:
    first = opened(closing, f"unix:{tmp_path}/x.sock")
    os.unlink(tmp_path / "x.sock")
    second = opened(closing, f"unix:{tmp_path}/x.sock")
    first.close()
    connect(closing, second)


def test_a_fork_that_goes_on_as_the_owner_removes_the_path(closing: ExitStack, tmp_path: Path) -> None:
    listener = opened(closing, f"unix:{tmp_path}/x.sock")
    listener._opened_by_pid = 1  # as a fork sees its parent's
    assert listener.refuse_new() is False
    listener.take_over()
    listener.close()
    assert not (tmp_path / "x.sock").exists()


def test_an_inherited_socket_cannot_be_owned(closing: ExitStack) -> None:
    outside = closing.enter_context(socket.create_server(("127.0.0.1", 0)))
    listener = opened(closing, f"fd://{os.dup(outside.fileno())}")
    listener.take_over()
    assert listener.refuse_new() is False


def test_a_child_that_closes_its_copy_leaves_the_path(closing: ExitStack, tmp_path: Path) -> None:
    listener = opened(closing, f"unix:{tmp_path}/x.sock")
    copy = adopt_listener(os.dup(listener.fileno()), listener.name)
    assert copy.refuse_new() is False
    copy.close()
    connect(closing, listener)


# ------------------------------------------------------------------------------------------- inherited descriptors


def test_an_inherited_descriptor_is_used(closing: ExitStack) -> None:
    outside = closing.enter_context(socket.create_server(("127.0.0.1", 0)))
    fd = os.dup(outside.fileno())
    listener = opened(closing, f"fd://{fd}")
    assert (listener.name, listener.fileno()) == (f"fd://{fd}", fd)
    assert listener.url == f"http://127.0.0.1:{outside.getsockname()[1]}"
    assert listener.socket.getblocking() is False
    connect(closing, listener)
    assert listener.refuse_new() is False
    listener.close()
    connection = closing.enter_context(socket.create_connection(outside.getsockname(), timeout=5))
    assert connection.fileno() > 0


def test_a_closed_descriptor_is_one_clear_line(closing: ExitStack) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(ListenError, match=rf"descriptor {reader} for fd://{reader} \(bad file descriptor\): whoever"):
        opened(closing, f"fd://{reader}")
    with pytest.raises(ListenError, match="whoever starts"):
        opened(closing, f"fd://{10**20}")


def test_what_is_no_listening_socket_is_refused_and_stays_blocking(closing: ExitStack) -> None:
    reader, writer = os.pipe()
    closing.callback(os.close, writer)
    closing.callback(os.close, reader)
    plain = closing.enter_context(socket.socket())
    datagrams = closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    for fd, why in [
        (reader, "not a socket"),
        (plain.fileno(), "not a listening stream socket"),
        (datagrams.fileno(), "not a listening stream socket"),
    ]:
        with pytest.raises(ListenError, match=why):
            opened(closing, f"fd://{fd}")
        assert os.get_blocking(fd)


def test_systemds_sockets_are_taken_with_their_names(closing: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = [socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))]
    first, second = sorted((outside[0].fileno(), outside[1].fileno()))
    monkeypatch.setattr(listeners, "LISTEN_FDS_START", first)
    if second != first + 1:
        pytest.skip("the system did not give neighbouring descriptors")
    environ = {"LISTEN_PID": "77", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "web"}
    taken = systemd_listeners(environ, 77)
    for sock in outside:
        sock.detach()
    for listener in taken:
        closing.callback(listener.close)
    assert [listener.name for listener in taken] == [f"fd://{first}", f"fd://{second}"]
    assert [listener.fd_name for listener in taken] == ["web", ""]
    connect(closing, taken[1])


@pytest.mark.parametrize("environ", [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_FDS": "1"}])
def test_sockets_for_another_process_are_left_alone(environ: dict[str, str]) -> None:
    assert systemd_listeners(environ, 77) == []


def test_malformed_activation_is_one_clear_line() -> None:
    with pytest.raises(ListenError, match="LISTEN_FDS='two' must be numbers"):
        systemd_listeners({"LISTEN_PID": "77", "LISTEN_FDS": "two"}, 77)


# ------------------------------------------------------------------------------------------- the way out


@pytest.mark.parametrize("text", ["127.0.0.1:0", "[::1]:0", "[::]:0"])
def test_the_queue_length_counts_what_waits_to_be_accepted(closing: ExitStack, text: str) -> None:
    listener = opened(closing, text)
    assert listener.queue_length() == 0
    for count in (1, 2, 3):
        connect(closing, listener)
        assert listener.queue_length() == count
    closing.enter_context(listener.socket.accept()[0])
    assert listener.queue_length() == 2
    listener.close()
    assert listener.queue_length() is None


def test_unix_sockets_do_not_tell_their_queue(closing: ExitStack, tmp_path: Path) -> None:
    assert opened(closing, f"unix:{tmp_path}/x.sock").queue_length() is None


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("127.0.0.1:0", ConnectionRefusedError),
        ("[::1]:0", ConnectionRefusedError),
        ("[::]:0", ConnectionRefusedError),
        ("unix:", FileNotFoundError),
    ],
)
def test_new_connections_are_refused_while_queued_ones_are_answered(
    closing: ExitStack, tmp_path: Path, text: str, refusal: type[OSError]
) -> None:
    listener = opened(closing, text if text != "unix:" else f"unix:{tmp_path}/x.sock")
    waiting = [connect(closing, listener) for _ in range(5)]

    assert listener.refuse_new() is True
    assert listener.refuse_new() is True  # saying it twice changes nothing
    with pytest.raises(refusal):
        connect(closing, listener)
    for client in waiting:
        client.sendall(b"request")
    for _client in waiting:
        connection, _ = listener.socket.accept()
        connection.settimeout(5)
        with connection:
            assert connection.recv(7, socket.MSG_WAITALL) == b"request"
            connection.sendall(b"answer")
    assert [client.recv(6, socket.MSG_WAITALL) for client in waiting] == [b"answer"] * 5
    with pytest.raises(BlockingIOError):
        listener.socket.accept()


def test_one_refusal_acts_for_every_holder_of_the_socket(closing: ExitStack) -> None:
    listener = opened(closing, LOCAL)
    copy = adopt_listener(os.dup(listener.fileno()), listener.name)
    closing.callback(copy.close)
    client = connect(closing, listener)
    assert listener.refuse_new()
    with pytest.raises(ConnectionRefusedError):
        connect(closing, copy)
    closing.enter_context(copy.socket.accept()[0])
    assert client.fileno() > 0


def test_where_refusing_is_not_possible_it_is_said(closing: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(closing, f"unix:@{uuid.uuid4()}").refuse_new() is False
    listener = opened(closing, LOCAL)
    monkeypatch.setattr(listeners, "_SO_BINDTOIFINDEX", 9999)
    assert listener.refuse_new() is False
    connect(closing, listener)
    listener.close()
    assert listener.refuse_new() is False


def test_no_request_is_lost_over_a_gentle_end(closing: ExitStack) -> None:
    """Clients that connect flat out: each one is refused or answered, none is reset."""
    listener = opened(closing, LOCAL, backlog=512)
    target = listener.socket.getsockname()
    lost: list[OSError] = []
    answered = threading.Semaphore(0)

    def client() -> None:
        while True:
            try:
                with socket.create_connection(target, timeout=5) as connection:
                    connection.sendall(b"?")
                    if connection.recv(1) == b"!":
                        answered.release()
                    else:
                        lost.append(ConnectionResetError("end of file"))
            except ConnectionRefusedError:
                return
            except OSError as error:
                lost.append(error)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    listener.socket.settimeout(5)
    for served in range(400):
        if served == 200:
            assert listener.refuse_new()
            listener.socket.settimeout(0.2)
        try:
            connection, _ = listener.socket.accept()
        except TimeoutError:
            break
        connection.settimeout(5)
        with connection:
            if connection.recv(1):
                connection.sendall(b"!")
    for thread in clients:
        thread.join(timeout=10)
        assert not thread.is_alive()
    assert lost == []
    assert answered.acquire(timeout=0)
