"""The master's care for certificate and key: read, check, hand out, and look whether the files have changed.

    files ─ read ─▶ KeyMaterial ─ try it ─▶ region (posix/key_material.py) ─▶ every worker's next connection
      ▲                              └ wrong: the one in use stays, one line says why
      └── look, once a second: names, times, sizes ── changed? ─┘

A certificate and its key are two files, which nobody can replace at one moment.  What does not fit together (yet) is
tried again at the next look, and is an error only when the files have stopped changing.

Promises: at the start anything wrong ends it; afterwards nothing wrong is ever handed out.  Files are read with the
master's rights, and nothing of the user's is run.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forkserve import log
from forkserve.errors import SettingsError
from forkserve.posix.key_material import FILE_BYTES_MAX, KeyMaterial, KeyRegion
from forkserve.settings import Hook

if TYPE_CHECKING:
    from forkserve.server.tls_context import TlsSettings

Mark = tuple[str, int, int, int, int] | None
"""Name, device, inode, size and time of the last change of a file; None: no such setting, or no such file."""


@dataclass(slots=True)
class _Trouble:
    """Files that cannot be used, and whether that was said."""

    marks: tuple[Mark, ...]
    said: str = ""


class Certificates:
    """What TLS is served with.

    Args:
        settings: they name the files.

    Attributes:
        region: where zygotes and workers find it.

    Raises:
        SettingsError: a file cannot be read, or they do not fit together.
    """

    def __init__(self, settings: TlsSettings) -> None:
        self._marks = _marks(settings)
        self._material = check(settings)
        self._trouble: _Trouble | None = None
        self.region = KeyRegion.create()
        self.region.publish(self._material)

    def look(self, settings: TlsSettings) -> None:
        """Take the files anew if they have changed; called once in a while."""
        marks = _marks(settings)
        if marks != self._marks or self._trouble is not None:
            self._take(settings, marks, is_settled=self._trouble is not None and self._trouble.marks == marks)

    def take_anew(self, settings: TlsSettings) -> None:
        """Take the files as they are: somebody has asked for it, and is answered also if it was said before."""
        self._trouble = None
        self._take(settings, _marks(settings), is_settled=True)

    def _take(self, settings: TlsSettings, marks: tuple[Mark, ...], *, is_settled: bool) -> None:
        try:
            material = check(settings)
        except SettingsError as error:
            said = self._trouble.said if self._trouble is not None else ""
            if is_settled and said != str(error):
                said = str(error)
                log.event(logging.ERROR, "tls.refused", f"{error}; going on with the certificate of before")
            self._trouble = _Trouble(marks, said)
            return
        was_said = self._trouble is not None and self._trouble.said != ""
        self._trouble = None
        self._marks = marks
        if material != self._material or was_said:
            self._material = material
            version = self.region.publish(material)
            log.event(
                logging.INFO,
                "tls.renewed",
                "the certificate was taken anew: new connections get it",
                certfile=settings.certfile,
                version=version,
            )


def check(settings: TlsSettings, hook: Hook | None = None) -> KeyMaterial:
    """Read the files, and try whether one can serve with them.

    Args:
        hook: the user's ``ssl_context``, to be tried too.

    Raises:
        SettingsError: a file cannot be read, or they do not fit together.
        BootError: the hook failed.
    """
    from forkserve.server.tls_context import make_context  # imports ssl: not for a master without TLS

    material = _read_material(settings)
    make_context(material, settings, hook)
    return material


def _read_material(settings: TlsSettings) -> KeyMaterial:
    assert settings.certfile is not None
    certificate = _read("certfile", settings.certfile)
    if b"-----BEGIN " not in certificate or b"CERTIFICATE-----" not in certificate:
        raise SettingsError(f"certfile = {settings.certfile!r}: there is no certificate in PEM form in it")
    key = _read("keyfile", settings.keyfile) if settings.keyfile else b""
    if b"PRIVATE KEY-----" not in (key or certificate):
        if settings.keyfile:
            raise SettingsError(f"keyfile = {settings.keyfile!r}: there is no private key in PEM form in it")
        raise SettingsError(f"certfile = {settings.certfile!r}: there is no private key in PEM form in it: set keyfile")
    return KeyMaterial(certificate, key, _read("ca_certs", settings.ca_certs) if settings.ca_certs else b"")


def _marks(settings: TlsSettings) -> tuple[Mark, ...]:
    return tuple(_mark(path) for path in (settings.certfile, settings.keyfile, settings.ca_certs))


def _mark(path: str | None) -> Mark:
    if path is None:
        return None
    try:
        found = os.stat(path)  # follows links: certbot and Kubernetes exchange those
    except OSError:
        return None  # reading it will say why
    return path, found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns


def _read(setting: str, path: str) -> bytes:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SettingsError(f"{setting} = {path!r}: it is no file")
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise SettingsError(
            f"{setting} = {path!r} cannot be read ({(error.strerror or str(error)).lower()}): correct it, or its rights"
        ) from error
    if len(content) > FILE_BYTES_MAX:
        raise SettingsError(f"{setting} = {path!r}: it is longer than {FILE_BYTES_MAX} bytes")
    return content


def _open_at_once(path: str, flags: int) -> int:
    """A pipe that nobody writes to must not hold the master (fifo(7))."""
    return os.open(path, flags | os.O_NONBLOCK)
