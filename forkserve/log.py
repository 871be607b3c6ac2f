"""The server's own messages: one line a state change, for people or for machines, through standard logging.

    log.event(INFO, "worker.ready", "worker is ready", worker=3, generation=1)
        │ logger "forkserve"
        ├─ default      a descriptor, as text   2026-01-01 12:00:00 +0000 [812] INFO worker is ready  worker=3
        │                             or JSON   {"time": "…", "level": "info", "pid": 812, "code": "worker.ready", …}
        ├─ logconfig, logconfig_dict, logconfig_json    the user's handlers instead
        └─ logger_class                                 the user's logger instead

Promises: writing never raises, and never waits longer than :data:`PATIENCE_S` for a reader who does not read; what was
dropped is counted and said once, when there is a reader again.  No inherited descriptor is made non-blocking, because
it is shared with whoever started us (its other holders would get EAGAIN).  Control characters in a message (a request
line, say) reach the log escaped, and further lines of a text are indented, so that nobody can forge a line or colour a
terminal.

Leaves to others: the access log (:mod:`forkserve.server.access_log`), opening log files anew (the master).
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import socket
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from time import localtime, strftime
from typing import Any, Final, Protocol

from forkserve.clock import monotonic_s
from forkserve.errors import ForkserveError, SettingsError


class ServerLogger(logging.Logger):
    """A logger that the application cannot switch off by accident.

    logging.config disables every logger that it is not told about (``disable_existing_loggers``), so an application's
    own logging configuration would silence the server.
    """

    @property
    def disabled(self) -> bool:
        """Never."""
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        return


def _server_logger(name: str) -> logging.Logger:
    made = logging.getLogger(name)
    made.__class__ = ServerLogger
    return made


logger: Final = _server_logger("forkserve")
"""Where every message of the server goes in."""

access_logger: Final = _server_logger("forkserve.access")
"""Where the access log's lines go in, if the user's logging configuration gives it handlers; never passed on above."""

PATIENCE_S: Final = 0.2
"""How long a line waits for room in a full pipe or socket; after a dropped line no line waits until one got through."""

CHUNK_BYTES: Final = select.PIPE_BUF
"""A pipe that poll(2) calls writable takes this much at once without blocking (pipe(7))."""

DEBUG, INFO, WARNING, ERROR, CRITICAL = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL

_COLOURS = {DEBUG: "2", INFO: "32", WARNING: "33", ERROR: "31", CRITICAL: "1;31"}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_PLAIN_VALUE = re.compile(r"[^\s\"'=\\]+")
_RESERVED = frozenset({"time", "level", "pid", "code", "message", "logger"})


class LogSettings(Protocol):
    """The settings that logging reads; ``forkserve.settings.Settings`` has them."""

    @property
    def errorlog(self) -> str: ...
    @property
    def loglevel(self) -> str: ...
    @property
    def log_format(self) -> str: ...
    @property
    def logconfig(self) -> str | None: ...
    @property
    def logconfig_dict(self) -> dict[str, Any]: ...
    @property
    def logconfig_json(self) -> str | None: ...
    @property
    def logger_class(self) -> str | None: ...
    @property
    def capture_output(self) -> bool: ...


class Event:
    """A message with its code and fields; as text (for handlers of the user's) it is what the text format shows."""

    __slots__ = ("code", "fields", "message")

    def __init__(self, code: str, message: str, fields: Mapping[str, object]) -> None:
        self.code, self.message, self.fields = code, message, fields

    def __str__(self) -> str:
        """The message, the short fields on its line, the texts of several lines below it."""
        first, *rest = self.message.split("\n")
        short = []
        for key, value in self.fields.items():
            if isinstance(value, str) and "\n" in value:
                rest.extend(value.rstrip("\n").split("\n"))
            elif value is not None and value != "":
                short.append(f"{key}={_short(value)}")
        line = first + ("  " + " ".join(short) if short else "")
        return _escaped("\n".join([line, *rest]))


def event(level: int, code: str, message: str, **fields: object) -> None:
    """Say one thing that happened.

    Args:
        level: a level of the logging module.
        code: the kind of event, dotted words such as ``worker.ready``; stable, for machines.
        message: one line for people.
        fields: facts; a text of several lines (a traceback) is written below the line, a None is left out.
    """
    if logger.isEnabledFor(level):
        logger.log(level, Event(code, message, fields))


def setup(settings: LogSettings, *, error_fd: int | None = None) -> None:
    """Make this process log as the settings say; may be called again, for example after a log file was opened anew.

    If it fails, messages go on to where they went before.

    Args:
        settings: the logging settings.
        error_fd: an open descriptor of the error log; None: standard error, or ``errorlog`` is opened here.

    Raises:
        SettingsError: the user's logging configuration or logger class cannot be used.
        ForkserveError: the error log cannot be opened.
    """
    old_handlers, old_level, old_propagate = logger.handlers[:], logger.level, logger.propagate
    logger.handlers.clear()
    try:
        _add_handlers(settings, error_fd)
    except BaseException:
        logger.handlers[:], logger.propagate = old_handlers, old_propagate
        logger.setLevel(old_level)
        raise
    for old in old_handlers:
        if old not in logger.handlers:
            _dispose(old)


def reopened(settings: LogSettings, error_fd: int | None = None) -> None:
    """To be called in each process after the error log's descriptor was given a new file (after SIGUSR1).

    Captured output follows into the new file; files that the user's logging configuration writes are opened anew.

    Args:
        settings, error_fd: as for :func:`setup`.
    """
    if settings.capture_output:
        _redirect_output(2 if error_fd is None else error_fd)
    for handler in {*logger.handlers, *access_logger.handlers, *logging.root.handlers}:
        if isinstance(handler, logging.FileHandler) and handler.mode.startswith("a"):
            handler.close()  # it opens its file again with the next message


def _add_handlers(settings: LogSettings, error_fd: int | None) -> None:
    logger.setLevel(settings.loglevel.upper())
    logger.propagate = False
    has_handlers = _apply_user_config(settings)
    owned = error_fd is None and settings.errorlog != "-"
    fd = error_fd if error_fd is not None else open_file(settings.errorlog) if owned else 2
    default = DescriptorHandler(fd, owned=owned)
    default.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter(colours=_has_colours(fd)))
    try:
        if settings.logger_class:
            logger.addHandler(ForwardHandler(_user_logger(settings), default))
        elif has_handlers:
            _dispose(default)
        else:
            logger.addHandler(default)
    except BaseException:
        _dispose(default)
        raise
    if settings.capture_output:
        _redirect_output(fd)


def _dispose(handler: logging.Handler) -> None:
    handler.close()
    if isinstance(handler, DescriptorHandler | ForwardHandler):
        handler.let_go()


def open_file(path: str) -> int:
    """Open a log file for appending; it is made where it does not exist.

    Raises:
        ForkserveError: it cannot be opened.
    """
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o666)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ForkserveError(
            f"cannot open the log file {path} ({reason}): make its directory writable or choose another file"
        ) from error


class DescriptorHandler(logging.Handler):
    """Writes formatted records to a descriptor without ever raising or waiting for long.

    Args:
        fd: where to write; shared with others, so its flags stay as they are.
        owned: close ``fd`` with the handler.
    """

    def __init__(self, fd: int, *, owned: bool = False) -> None:
        super().__init__()
        self.dropped = 0
        self._sink = _sink_for(fd, owned)
        self._torn = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or count its lines as dropped."""
        try:
            data = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
        except Exception as error:  # a record whose arguments do not fit its format must not end the server
            data = f"forkserve: a log record could not be formatted: {error!r}: {record.msg!r}\n".encode()
        count = data.count(b"\n")
        if self.dropped:
            data = (
                f"forkserve: {self.dropped} lines of this log were dropped, because nobody took them\n".encode() + data
            )
        wait_until = monotonic_s() + (0 if self.dropped else PATIENCE_S)
        if self._torn:
            data = b"\n" + data
        if self._write_all(data, wait_until):
            self.dropped, self._torn = 0, False
        else:
            self.dropped += count

    def _write_all(self, data: bytes, wait_until: float) -> bool:
        view = memoryview(data)
        while view:
            try:
                if self._sink.may_block and not _is_writable(self._sink.fd, wait_until - monotonic_s()):
                    return False
                written = self._sink.write(view[:CHUNK_BYTES] if self._sink.may_block else view)
            except BlockingIOError:
                if not _is_writable(self._sink.fd, wait_until - monotonic_s()):
                    return False
                continue
            except OSError:
                return False  # closed, disk full, reader gone: counted by the caller, said when it works again
            self._torn = written < len(view)
            view = view[written:]
        return True

    def let_go(self) -> None:
        """Close what this handler opened for itself; nothing may be written after it.

        Not a part of close(): the application's logging configuration closes every handler there is.
        """
        self._sink.close()


@dataclass(frozen=True, slots=True)
class _Sink:
    """Where bytes go: a descriptor to poll, a function that writes, whether that may block."""

    fd: int
    write: Callable[[memoryview], int]
    close: Callable[[], None]
    may_block: bool = False


def _sink_for(fd: int, owned: bool) -> _Sink:
    """A way to write that does not block, where the kernel has one.

    A pipe is opened again through /proc, which gives a file description of our own whose flags nobody else sees; a
    socket (journald's) has a flag for each send; files do not block; for anything else (terminals) poll(2) has to do.
    """

    def close() -> None:
        if owned:
            os.close(fd)

    def write(data: memoryview) -> int:
        return os.write(fd, data)

    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            return _Sink(fd, write, close)
        if stat.S_ISFIFO(mode) and not owned:
            own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            return _Sink(own, lambda data: os.write(own, data), lambda: os.close(own))
        if stat.S_ISSOCK(mode) and socket.getdefaulttimeout() is None:  # a timeout would make it non-blocking for all
            sock = socket.socket(fileno=os.dup(fd))
            flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
            return _Sink(sock.fileno(), lambda data: sock.send(data, flags), sock.close)
    except OSError:
        pass  # another user's pipe cannot be opened again, a closed one cannot be looked at: poll and write
    return _Sink(fd, write, close, may_block=True)


def _is_writable(fd: int, wait_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(max(0.0, wait_s) * 1000))


class ForwardHandler(logging.Handler):
    """Passes records on to a logger of the user's.

    Args:
        target: the logger.
        default: our handler, lent to a logger that has none of its own.
    """

    def __init__(self, target: logging.Logger, default: DescriptorHandler) -> None:
        super().__init__()
        self.target = target
        self._lent = default
        if not target.hasHandlers() or any(isinstance(other, DescriptorHandler) for other in target.handlers):
            target.addHandler(default)  # beside the one that was lent before, which is taken back soon
        else:
            _dispose(default)

    def let_go(self) -> None:
        """Take back what was lent."""
        if self._lent in self.target.handlers:
            self.target.removeHandler(self._lent)
            _dispose(self._lent)

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one record on."""
        try:
            if self.target.isEnabledFor(record.levelno):
                self.target.handle(record)
        except Exception:
            return  # the user's logger lost it; saying so on standard error could block, saying it here would repeat


class TextFormatter(logging.Formatter):
    """Lines for people.

    Args:
        colours: colour the level.
    """

    def __init__(self, *, colours: bool = False) -> None:
        super().__init__()
        self.colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """Time, process, level, message and fields; texts of several lines below, indented."""
        when = strftime("%Y-%m-%d %H:%M:%S %z", localtime(record.created))
        level = record.levelname
        if self.colours and record.levelno in _COLOURS:
            level = f"\x1b[{_COLOURS[record.levelno]}m{level}\x1b[0m"
        text = str(record.msg) if isinstance(record.msg, Event) else _escaped(record.getMessage())
        if record.exc_info:
            text += "\n" + _escaped(self.formatException(record.exc_info))
        return f"{when} [{record.process}] {level} " + text.replace("\n", "\n  ")


class JsonFormatter(logging.Formatter):
    """One JSON object a line, ASCII only; a field that is called as one of ours gets an underscore."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as an object: time, level, pid, code, message, then its fields."""
        seconds = strftime("%Y-%m-%dT%H:%M:%S", localtime(record.created))
        offset = strftime("%z", localtime(record.created))
        found: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}{offset[:3]}:{offset[3:]}",
            "level": record.levelname.lower(),
            "pid": record.process,
        }
        if isinstance(record.msg, Event):
            found |= {"code": record.msg.code, "message": record.msg.message}
            fields = record.msg.fields.items()
            found |= {key + "_" if key in _RESERVED else key: value for key, value in fields if value is not None}
        else:
            found |= {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found, default=str)


def _short(value: object) -> str:
    """A field's value on a line: bare if it is one plain word, otherwise in quotes."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if _PLAIN_VALUE.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _has_colours(fd: int) -> bool:
    """Whether a terminal is there and nobody refused colours (https://no-color.org: set and not empty)."""
    return os.isatty(fd) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _redirect_output(fd: int) -> None:
    """Make standard output and error the error log, for print() and for children of the application."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            continue  # missing or closed: nothing is lost by not flushing it
    for number in (1, 2):
        if number != fd:
            os.dup2(fd, number)


def _apply_user_config(settings: LogSettings) -> bool:
    """Apply the user's logging configuration, if any; whether the logger has handlers by it."""
    source = next((name for name in ("logconfig_dict", "logconfig_json", "logconfig") if getattr(settings, name)), None)
    if source is None:
        return False
    import logging.config  # many modules; most servers do without

    logger.propagate = True
    access_logger.handlers.clear()
    access_logger.setLevel(INFO)
    try:
        if source == "logconfig":
            assert settings.logconfig is not None
            os.stat(settings.logconfig)  # fileConfig hides what is wrong with a missing file
            logging.config.fileConfig(settings.logconfig, disable_existing_loggers=False)
        else:
            config = settings.logconfig_dict or _read_json(settings.logconfig_json or "")
            logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, **_with_our_names(config)})
    except Exception as error:  # whatever the user's classes raise
        raise SettingsError(f"{source}: {_reason(error)}: correct the logging configuration") from error
    access_logger.propagate = not access_logger.handlers  # then its lines do not go among our messages as well
    if not logger.hasHandlers():
        logger.propagate = False
    return logger.hasHandlers()


def _read_json(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        found = json.load(file)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return found


def _with_our_names(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with gunicorn's loggers taken for ours, where ours are not in it."""
    loggers = dict(config.get("loggers", {}))
    for theirs, ours in (("gunicorn.error", "forkserve"), ("gunicorn.access", "forkserve.access")):
        if theirs in loggers and ours not in loggers:
            loggers[ours] = loggers[theirs]
    return {**config, "loggers": loggers} if loggers else config


def _reason(error: BaseException) -> str:
    """The error and what caused it, in one line (dictConfig hides the cause behind "Unable to configure …")."""
    texts = [str(error) or type(error).__name__]
    while (error := error.__cause__ or error.__context__) is not None and len(texts) < 3:  # type: ignore[assignment]
        texts.append(str(error) or type(error).__name__)
    return ": ".join(dict.fromkeys(texts)).replace("\n", " ")


def _user_logger(settings: LogSettings) -> logging.Logger:
    """The logger that ``logger_class`` names: a subclass of logging.Logger, or a function that gets the settings."""
    path = settings.logger_class or ""
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        factory = getattr(import_module(module), name)
        is_class = isinstance(factory, type) and issubclass(factory, logging.Logger)
        made = factory("forkserve") if is_class else factory(settings)
    except Exception as error:  # whatever the user's code raises
        raise SettingsError(
            f"logger_class = {path!r}: {_reason(error)}: name a function or class as module.name"
        ) from error
    if not isinstance(made, logging.Logger):
        raise SettingsError(f"logger_class = {path!r}: it made {type(made).__name__!r}: it must make a logging.Logger")
    return made
