"""The server's messages: their two formats, and that writing them never raises, blocks or can be forged."""

from __future__ import annotations

import fcntl
import json
import logging
import logging.config
import os
import re
import select
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from forkserve import log
from forkserve.errors import ForkserveError, SettingsError
from forkserve.settings import Settings


@pytest.fixture(autouse=True)
def quiet_logger() -> Iterator[None]:
    """Leave no handler behind."""
    yield
    for handler in log.logger.handlers[:]:
        log.logger.removeHandler(handler)
        handler.close()
        if isinstance(handler, log.DescriptorHandler | log.ForwardHandler):
            handler.let_go()
    log.logger.propagate = True
    log.logger.setLevel(logging.NOTSET)


class LogFile:
    """A log in a file that messages go to."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        log.setup(msgspec.structs.replace(Settings(), errorlog=str(path), **settings))

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()


def test_text_has_time_process_level_message_and_fields(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log")
    log.event(log.INFO, "worker.ready", "worker is ready", worker=3, path="/a b", age=1.23456789, gone=None, empty="")
    (line,) = file.lines()
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}"
    said = r'INFO worker is ready  worker=3 path="/a b" age=1\.23457'
    assert re.fullmatch(rf"{when} \[{os.getpid()}\] {said}", line)


def test_texts_of_several_lines_follow_the_line(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log")
    log.event(log.ERROR, "boot.failed", "it failed", traceback="Traceback\n  File\nError: x\n", worker=1)
    lines = file.lines()
    assert lines[0].endswith("ERROR it failed  worker=1")
    assert lines[1:] == ["  Traceback", "    File", "  Error: x"]


def test_exception_follows_the_line(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log")
    try:
        raise ValueError("of the application")
    except ValueError:
        log.logger.exception("hook %s failed", "pre_fork")
    assert file.lines()[0].endswith("ERROR hook pre_fork failed")
    assert file.lines()[-1] == "  ValueError: of the application"


def test_nobody_can_forge_a_line_or_colour_a_terminal(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log")
    log.event(log.INFO, "x", "path \x1b[31m\r", path="/\n2026-01-01 [1] INFO forged", odd="\u2028\x00\udc80")
    log.logger.warning("plain\n2026-01-01 00:00:00 +0000 [1] INFO forged")
    text = file.path.read_text()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u2028]", text)
    assert not [line for line in file.lines() if line.startswith("2026-01-01")]
    assert r"path \x1b[31m\r" in text


def test_json_is_one_object_a_line_with_the_same_fields(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log", log_format="json")
    log.event(log.WARNING, "worker.died", "worker died", worker=3, pid=7, stack="a\nb", gone=None, odd=Path("/x\udc80"))
    log.logger.error("plain %s", "words")
    first, second = (json.loads(line) for line in file.lines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", first.pop("time"))
    assert first == {
        "level": "warning",
        "pid": os.getpid(),
        "code": "worker.died",
        "message": "worker died",
        "worker": 3,
        "pid_": 7,
        "stack": "a\nb",
        "odd": "/x\udc80",
    }
    assert (second["logger"], second["message"], second["level"]) == ("forkserve", "plain words", "error")


def test_level_decides_what_is_written(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log", loglevel="warning")
    log.event(log.INFO, "a", "not this")
    log.event(log.WARNING, "a", "but this")
    assert [line.rpartition(" ")[2] for line in file.lines()] == ["this"]
    assert "but this" in file.lines()[0]


def test_colours_are_for_terminals_and_can_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    controller, terminal = os.openpty()
    try:
        log.setup(Settings(), error_fd=terminal)
        log.event(log.ERROR, "x", "coloured")
        monkeypatch.setenv("NO_COLOR", "1")
        log.setup(Settings(), error_fd=terminal)
        log.event(log.ERROR, "x", "plain")
        text = drained(controller).decode()
        assert "\x1b[31mERROR\x1b[0m coloured" in text
        assert " ERROR plain" in text
    finally:
        os.close(controller)
        os.close(terminal)


def test_record_that_cannot_be_formatted_is_said(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log")
    log.logger.info("%d", "no number")
    assert file.lines()[0].startswith("forkserve: a log record could not be formatted: ")


def flags_of(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_GETFL)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_full_log_never_blocks_and_what_was_dropped_is_said_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "PATIENCE_S", 0.01)
    if kind == "pipe":
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    else:
        reader, writer = (end.detach() for end in socket.socketpair())
    before = flags_of(writer)
    try:
        log.setup(Settings(), error_fd=writer)
        for number in range(5000):
            log.event(log.INFO, "x", "a" * 200, number=number)
        handler = log.logger.handlers[0]
        assert isinstance(handler, log.DescriptorHandler)
        dropped = handler.dropped
        assert dropped > 100
        assert flags_of(writer) == before
        taken = drained(reader)
        log.event(log.INFO, "x", "it works again")
        log.event(log.INFO, "x", "and goes on")
        lines = (taken + drained(reader)).decode().splitlines()
        assert lines[-3] == f"forkserve: {dropped} lines of this log were dropped, because nobody took them"
        assert lines[-2].endswith("it works again")
        assert lines[-1].endswith("and goes on")
    finally:
        os.close(reader)
        os.close(writer)


def drained(fd: int) -> bytes:
    """All that is in a descriptor now."""
    found = b""
    while select.select([fd], [], [], 0)[0]:
        found += os.read(fd, 65536)
    return found


@pytest.mark.parametrize("how", ["closed", "reader gone"])
def test_broken_log_raises_nothing(how: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    if how == "closed":
        os.close(writer)
    log.setup(Settings(), error_fd=writer)
    log.event(log.INFO, "x", "nobody hears this")
    handler = log.logger.handlers[0]
    assert isinstance(handler, log.DescriptorHandler)
    assert handler.dropped == 1
    log.event(log.INFO, "x", "nor this", traceback="of three\nlines\nin all\n")
    assert handler.dropped == 5
    if how != "closed":
        os.close(writer)


def test_setup_may_be_repeated_without_leaking_descriptors(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        log.setup(Settings(), error_fd=writer)
        before = os.listdir("/proc/self/fd")
        for _ in range(5):
            log.setup(Settings(), error_fd=writer)
            LogFile(tmp_path / "log")
        log.setup(Settings(), error_fd=writer)
        assert os.listdir("/proc/self/fd") == before
    finally:
        os.close(reader)
        os.close(writer)


def test_log_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ForkserveError, match=r"cannot open the log file .*/no/log \(No such file or directory\): make"
    ) as caught:
        log.open_file(str(tmp_path / "no" / "log"))
    assert caught.value.exit_code == 1


def test_logconfig_dict_takes_the_place_of_our_handler(tmp_path: Path) -> None:
    config = {
        "formatters": {"f": {"format": "mine %(levelname)s %(message)s"}},
        "handlers": {"h": {"class": "logging.FileHandler", "filename": str(tmp_path / "mine"), "formatter": "f"}},
        "loggers": {"gunicorn.error": {"handlers": ["h"], "level": "INFO", "propagate": False}},
    }
    ours = LogFile(tmp_path / "log", logconfig_dict=config)
    log.event(log.INFO, "x", "hello", worker=3)
    assert (tmp_path / "mine").read_text() == "mine INFO hello  worker=3\n"
    assert ours.lines() == []


def test_logconfig_json_is_read(tmp_path: Path) -> None:
    config = {
        "handlers": {"h": {"class": "logging.FileHandler", "filename": str(tmp_path / "mine")}},
        "loggers": {"forkserve": {"handlers": ["h"], "level": "INFO", "propagate": False}},
    }
    (tmp_path / "log.json").write_text(json.dumps(config))
    LogFile(tmp_path / "log", logconfig_json=str(tmp_path / "log.json"))
    log.event(log.INFO, "x", "hello")
    assert (tmp_path / "mine").read_text() == "hello\n"


def test_logconfig_without_our_logger_keeps_our_handler(tmp_path: Path) -> None:
    ours = LogFile(tmp_path / "log", logconfig_dict={"loggers": {"mysite": {"level": "INFO"}}})
    log.logger.propagate = False
    log.event(log.INFO, "x", "hello")
    assert ours.path.exists()


def test_logconfig_ini_file_is_read(tmp_path: Path) -> None:
    text = f"""
        [loggers]
        keys=root,forkserve
        [handlers]
        keys=h
        [formatters]
        keys=
        [logger_root]
        level=WARNING
        handlers=
        [logger_forkserve]
        level=INFO
        handlers=h
        qualname=forkserve
        propagate=0
        [handler_h]
        class=FileHandler
        args=({str(tmp_path / "mine")!r},)
        """
    (tmp_path / "log.ini").write_text(textwrap.dedent(text))
    root_handlers, root_level = logging.root.handlers[:], logging.root.level
    try:
        LogFile(tmp_path / "log", logconfig=str(tmp_path / "log.ini"))
        log.event(log.INFO, "x", "hello")
    finally:
        logging.root.handlers[:] = root_handlers
        logging.root.setLevel(root_level)
    assert (tmp_path / "mine").read_text() == "hello\n"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"logconfig": "/not/there.ini"}, "logconfig: [Errno 2] No such file or directory: '/not/there.ini'"),
        ({"logconfig_json": "/not/there.json"}, "logconfig_json: [Errno 2] No such file or directory"),
        (
            {"logconfig_dict": {"handlers": {"h": {"class": "no.Such"}}}},
            "logconfig_dict: Unable to configure handler 'h': ",
        ),
        ({"logger_class": "no.such.Logger"}, "logger_class = 'no.such.Logger': No module named 'no'"),
        ({"logger_class": "json.nope"}, "logger_class = 'json.nope': module 'json' has no attribute 'nope'"),
        ({"logger_class": "builtins.repr"}, "logger_class = 'builtins.repr': it made 'str'"),
    ],
)
def test_wrong_logging_configuration_is_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        LogFile(tmp_path / "log", **settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"logconfig": "/not/there"}, {"logger_class": "no.such"}, {"errorlog": "/not/there/log"}]
)
def test_failed_setup_leaves_the_log_as_it_was(tmp_path: Path, wrong: dict[str, Any]) -> None:
    file = LogFile(tmp_path / "log", loglevel="warning")
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(ForkserveError):
        log.setup(msgspec.structs.replace(Settings(), **wrong))
    assert os.listdir("/proc/self/fd") == descriptors
    log.event(log.INFO, "x", "below the level")
    log.event(log.WARNING, "x", "still here")
    assert [line.partition("WARNING ")[2] for line in file.lines()] == ["still here"]


def test_logger_class_may_be_a_logger_or_a_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
        import logging
        class Loud(logging.Logger):
            def handle(self, record):
                record.levelname = "LOUD"
                super().handle(record)
        def make(settings):
            made = Loud("made")
            made.setLevel("ERROR" if settings.loglevel == "info" else "DEBUG")
            return made
        def shared(settings):
            found = logging.getLogger("loud")
            found.propagate = False
            return found
        """
    (tmp_path / "loud_logs.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    for path in ("loud_logs.Loud", "loud_logs:make"):
        file = LogFile(tmp_path / path.replace(":", "."), logger_class=path)
        log.event(log.ERROR, "x", "hello")
        assert " LOUD hello" in file.lines()[0]
    log.event(log.INFO, "x", "below its own level")
    assert len(file.lines()) == 1
    descriptors = os.listdir("/proc/self/fd")
    file = LogFile(tmp_path / "again", logger_class="loud_logs:shared")
    file = LogFile(tmp_path / "once more", logger_class="loud_logs:shared")
    log.event(log.ERROR, "x", "by a shared logger")
    assert len(file.lines()) == 1
    assert os.listdir("/proc/self/fd") == descriptors
    sys.modules.pop("loud_logs")


def test_applications_logging_configuration_does_not_touch_the_servers(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log")
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})
    log.event(log.INFO, "x", "still here")
    assert file.lines()[0].endswith("still here")


def test_captured_output_goes_to_the_error_log(tmp_path: Path) -> None:
    script = f"""
        import os
        from forkserve import log
        from forkserve.settings import Settings
        print("before")
        log.setup(Settings(errorlog={str(tmp_path / "log")!r}, capture_output=True))
        print("printed")
        os.system("echo by a child >&2")
        log.event(log.INFO, "x", "said")
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("before\n", "")
    text = (tmp_path / "log").read_text()
    assert "by a child\n" in text
    assert "printed\n" in text
    assert "INFO said\n" in text


def test_rotated_files_are_followed(tmp_path: Path) -> None:
    script = """
        import os
        from forkserve import log
        from forkserve.settings import Settings
        handlers = {"h": {"class": "logging.FileHandler", "filename": "mine"}}
        config = {"handlers": handlers, "loggers": {"forkserve": {"handlers": ["h"]}}}
        settings = Settings(errorlog="log", capture_output=True, logconfig_dict=config)
        fd = log.open_file("log")
        log.setup(settings, error_fd=fd)
        print("first", flush=True)
        log.event(log.INFO, "x", "first")
        os.rename("log", "log.1")
        os.rename("mine", "mine.1")
        os.dup2(log.open_file("log"), fd)
        log.reopened(settings, fd)
        print("second", flush=True)
        log.event(log.INFO, "x", "second")
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, check=True)
    found = {name: (tmp_path / name).read_text() for name in ("log", "log.1", "mine", "mine.1")}
    assert found == {"log": "second\n", "log.1": "first\n", "mine": "second\n", "mine.1": "first\n"}
