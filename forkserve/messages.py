"""The vocabulary between master, zygote and workers: every message that may cross a channel, and nothing else.

    master ──Load, Spawn, Leave──▶ zygote ──Loaded, LoadFailed, Spawned, SpawnFailed──▶ master
    master ──Drain, ReopenLogs───▶ worker ──Ready, BootFailed, RetireWish─────────────▶ master
    watcher ─FilesChanged────────▶ master
    check ───SettingsChecked─────▶ master

A message is one datagram of a SOCK_SEQPACKET channel, JSON with its type in ``type``.  Descriptors that travel with a
message (SCM_RIGHTS) are named in its docstring, in order.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from forkserve.settings import Settings


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=True):
    """Anything that crosses a channel."""


class Load(Message, frozen=True, kw_only=True):
    """Master to zygote, first of all: what to become.

    The descriptors of the listeners, the scoreboard, the hand-over (to give, to take) and the key material (without TLS
    None) were inherited; here are their numbers.
    """

    generation: int
    settings: Settings
    config_path: str | None
    argv: tuple[str, ...]
    listeners: tuple[tuple[int, str], ...]  # descriptor, address as text
    scoreboard_fd: int
    handover_fds: tuple[int, int]
    keys_fd: int | None = None
    stack_fd: int
    error_fd: int | None
    access_fd: int | None
    preload: bool
    master_pid: int


class Loaded(Message, frozen=True, kw_only=True):
    """Zygote to master: ready to spawn.

    ``preloaded`` says whether the application is in memory; ``fork_hazards`` why it may not stay there (then the
    zygote wants to be replaced by one that does not import).
    """

    preloaded: bool
    fork_hazards: tuple[str, ...] = ()


class LoadFailed(Message, frozen=True, kw_only=True):
    """Zygote to master: this generation cannot come up."""

    message: str
    traceback_text: str = ""


class Spawn(Message, frozen=True, kw_only=True):
    """Master to zygote: fork a worker.  Descriptors: the worker's end of its channel, its stack file (memfd)."""

    worker_id: int
    slot: int


class Spawned(Message, frozen=True, kw_only=True):
    """Zygote to master: the worker exists; the master is, or is about to be, its parent."""

    worker_id: int
    pid: int


class SpawnFailed(Message, frozen=True, kw_only=True):
    """Zygote to master: the fork failed; there is no such worker."""

    worker_id: int
    error: str


class Ready(Message, frozen=True, kw_only=True):
    """Worker to master: the application is loaded and connections are accepted."""


class BootFailed(Message, frozen=True, kw_only=True):
    """Worker to master: the application did not load here; the worker exits after this."""

    message: str
    traceback_text: str = ""


class RetireWish(Message, frozen=True, kw_only=True):
    """Worker to master: replace me, new before old.  ``reason`` is one of the reasons of the model."""

    reason: str


class Drain(Message, frozen=True, kw_only=True):
    """Master to worker: finish what you have and exit.

    ``stopping``: the whole server stops, new connections are refused already: empty the accept queue first.
    Otherwise siblings take what is in the queue: stop accepting at once, and hand connections over to ``heir``: workers
    of the own generation or of another one; none if nobody is there to take them.  Descriptor: where to give them, for
    another generation.
    """

    stopping: bool
    heir: Literal["none", "own", "other"] = "none"


class ReopenLogs(Message, frozen=True, kw_only=True):
    """Master to zygote or worker: log files were opened anew.

    Descriptors: the new error log if ``error``, then the new access log if ``access``; they take the places (dup2) of
    the old ones.
    """

    error: bool
    access: bool


class FilesChanged(Message, frozen=True, kw_only=True):
    """Watcher to master: source files changed; reload."""

    paths: tuple[str, ...]


class SettingsChecked(Message, frozen=True, kw_only=True):
    """Settings check to master: the configuration is good, or (``error``) why it is not."""

    error: str
    traceback_text: str = ""


AnyMessage = (
    Load
    | Loaded
    | LoadFailed
    | Spawn
    | Spawned
    | SpawnFailed
    | Ready
    | BootFailed
    | RetireWish
    | Drain
    | ReopenLogs
    | FilesChanged
    | SettingsChecked
)

MESSAGE_CHARS_MAX: Final = 4096
TRACEBACK_CHARS_MAX: Final = 16 * 1024
"""Even with every character escaped (six bytes, JSON) both fit into one datagram of a channel."""


def fitted(message: str, traceback_text: str) -> tuple[str, str]:
    """A user's error as it can cross a channel: cut (a traceback's end says more than its beginning), no surrogates."""
    cut = message[:MESSAGE_CHARS_MAX], traceback_text[-TRACEBACK_CHARS_MAX:]
    first, second = (text.encode("utf-8", "backslashreplace").decode() for text in cut)
    return first, second


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AnyMessage)


def encode(message: Message) -> bytes:
    """The datagram of a message."""
    return _encoder.encode(message)


def decode(datagram: bytes) -> AnyMessage:
    """The message of a datagram.

    Raises:
        msgspec.DecodeError: the datagram is none of ours.
    """
    message: AnyMessage = _decoder.decode(datagram)
    return message
