"""Fork safety, pid files, log files, stacks."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from pathlib import Path
from typing import NoReturn

import pytest

from forkserve.errors import ForkserveError
from forkserve.posix import forksafety, process, stacks
from forkserve.posix.log_files import LogFiles
from forkserve.posix.pidfile import PidFile

# --- fork safety


def test_nothing_new_is_no_hazard(tmp_path: Path) -> None:
    before = forksafety.open_descriptors()
    with (tmp_path / "file").open("w"):
        assert forksafety.hazards(before) == ()


def test_a_thread_that_was_joined_is_no_hazard() -> None:
    before = forksafety.open_descriptors()
    for _attempt in range(50):
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join(10)
        assert forksafety.hazards(before) == ()


def test_a_running_thread_is_a_hazard_with_its_name() -> None:
    before = forksafety.open_descriptors()
    go = threading.Event()
    thread = threading.Thread(target=go.wait, name="exporter")
    thread.start()
    try:
        assert forksafety.hazards(before) == ("thread 'exporter' runs",)
    finally:
        go.set()
        thread.join(10)


@pytest.mark.parametrize("kind", ["socket", "pipe", "anon_inode"])
def test_an_open_socket_pipe_or_epoll_is_a_hazard(kind: str) -> None:
    before = forksafety.open_descriptors()
    made: list[int] = []
    if kind == "socket":
        made = [socket.socket().detach()]
    elif kind == "pipe":
        made = list(os.pipe())
    else:
        with select.epoll() as epoll:
            made = [os.dup(epoll.fileno())]
    found = forksafety.hazards(before)
    for fd in made:
        os.close(fd)
    assert len(found) == len(made)
    assert all(f"is an open {kind}" in reason for reason in found)


# --- pid files


def test_a_pid_file_names_this_process_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    file = PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    assert os.listdir(tmp_path) == ["pid"]
    file.remove()
    assert not path.exists()


@pytest.mark.parametrize("left_behind", ["", "nonsense", "-5", "999999999", "9" * 30])
def test_a_stale_pid_file_is_replaced(tmp_path: Path, left_behind: str) -> None:
    path = tmp_path / "pid"
    path.write_text(left_behind)
    PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"


def test_a_pid_file_of_a_live_process_is_respected(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("1\n")
    with pytest.raises(ForkserveError, match="names process 1, which is alive: stop that server first"):
        PidFile(str(path))
    assert path.read_text() == "1\n"


def test_a_successors_pid_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    file = PidFile(str(path))
    path.write_text("1\n")
    file.remove()
    assert path.read_text() == "1\n"


def test_a_pid_file_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ForkserveError, match=r"cannot write pid file .*no/pid \(No such file or directory\): make"):
        PidFile(str(tmp_path / "no" / "pid"))


def test_a_pid_file_that_is_a_directory_is_one_clear_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "pid").mkdir()
    with pytest.raises(ForkserveError, match=r"cannot write pid file .*pid \(Is a directory\): make"):
        PidFile(str(tmp_path / "pid"))
    assert os.listdir(tmp_path) == ["pid"]


# --- log files


def test_reopened_log_files_keep_their_descriptors(tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    files = LogFiles(str(path), None)
    assert files.error_fd is not None
    assert files.access_fd is None
    os.write(files.error_fd, b"before\n")
    path.rename(tmp_path / "error.log.1")
    os.write(files.error_fd, b"moved\n")
    files.reopen()
    os.write(files.error_fd, b"after\n")
    assert (tmp_path / "error.log.1").read_text() == "before\nmoved\n"
    assert path.read_text() == "after\n"
    files.close()


def test_a_log_file_that_cannot_be_reopened_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    files = LogFiles(str(folder / "error.log"), str(tmp_path / "access.log"))
    assert files.error_fd is not None
    folder.rename(tmp_path / "moved")
    with pytest.raises(ForkserveError, match=r"going on with the old file"):
        files.reopen()
    os.write(files.error_fd, b"still here\n")
    assert (tmp_path / "moved" / "error.log").read_text() == "still here\n"
    files.close()


def test_standard_streams_are_no_log_files() -> None:
    files = LogFiles("-", "-")
    assert (files.error_fd, files.access_fd) == (None, None)
    files.reopen()
    files.close()


# --- stacks


def test_an_aborted_process_leaves_its_stacks_even_inside_a_c_call() -> None:
    fd = stacks.make_stack_file()
    assert stacks.read_stacks(fd) == ""
    reader, writer = os.pipe()
    never, silent = os.pipe()

    def child() -> NoReturn:
        stacks.write_stacks_on_abort(fd)
        stuck_in_a_c_call(never, writer)
        process.leave(0)

    pid = process.fork_child(child)
    pidfd = process.open_pidfd(pid)
    assert pidfd is not None
    assert select.select([reader], [], [], 10)[0], "the child did not begin"
    assert os.read(reader, 1) == b"x"
    process.signal_process(pidfd, signal.SIGABRT)
    assert select.select([pidfd], [], [], 10)[0]
    status = process.reap(pidfd)
    assert status is not None
    assert status.signum == signal.SIGABRT
    assert "stuck_in_a_c_call" in stacks.read_stacks(fd)
    for each in (fd, pidfd, reader, writer, never, silent):
        os.close(each)


def stuck_in_a_c_call(reader: int, begun: int) -> None:
    os.write(begun, b"x")
    os.read(reader, 1)
