"""Certificate, private key and authorities in memory that the master writes and workers read.

    memfd ─ version │ slot 0 │ slot 1            a slot: three lengths, their sum, the bytes
    master   fill slot (version + 1) % 2 ─▶ store the version, one aligned word
    worker   has the version changed? ─▶ copy its slot ─▶ the same version still, and the right sum?

The master reads the files with its own rights and before anybody becomes another user; a key that only root may read
works for workers without privileges.  A new certificate needs no message and no answer: whoever accepts a connection
looks at one word.  Readers map the memory read-only.  The sum is for processors that let a reader see the version
before the bytes.

Left to others: what the bytes mean (server/tls_context.py), and when they change (supervisor/certificates.py).
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from dataclasses import dataclass, field
from typing import Final

from forkserve.errors import ForkserveError

FILE_BYTES_MAX: Final = 1 << 20
"""The longest file; Debian's bundle of all public authorities has 220 KB.  Memory that is not written is not used."""

_SLOT_HEAD: Final = struct.Struct("=4Q")
_SLOT_BYTES: Final = _SLOT_HEAD.size + 3 * FILE_BYTES_MAX
_VERSION_BYTES: Final = 64
"""A cache line for the word that everybody looks at."""
_READS_MAX: Final = 3
"""A read is disturbed when two changes fall into it; they are seconds apart."""


@dataclass(frozen=True, slots=True)
class KeyMaterial:
    """What files of PEM blocks hold; secrets are not shown.

    Attributes:
        certificate: with the chain behind it.
        key: empty when it stands beside the certificate.
        authorities: of client certificates; empty if there are none.
    """

    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)
    authorities: bytes = field(repr=False)


class KeyRegion:
    """The shared memory; made by the master, attached by zygotes for themselves and their workers."""

    __slots__ = ("_map", "_words", "fd")

    def __init__(self, fd: int, mapped: mmap.mmap) -> None:
        self.fd = fd
        self._map = mapped
        self._words = memoryview(mapped)[:_VERSION_BYTES].cast("Q")

    @classmethod
    def create(cls) -> KeyRegion:
        """A new one, without material: version 0."""
        fd = os.memfd_create("forkserve-keys", os.MFD_CLOEXEC)
        os.ftruncate(fd, _VERSION_BYTES + 2 * _SLOT_BYTES)
        return cls(fd, mmap.mmap(fd, 0))

    @classmethod
    def attach(cls, fd: int) -> KeyRegion:
        """The one behind an inherited descriptor, which is closed: what this process starts shall not have it."""
        mapped = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        os.close(fd)
        return cls(-1, mapped)

    @property
    def version(self) -> int:
        """Counts the publications."""
        return int(self._words[0])

    def publish(self, material: KeyMaterial) -> int:
        """In the master: hand out new material; returns its version.

        Raises:
            ValueError: a part is longer than :data:`FILE_BYTES_MAX`.
        """
        parts = material.certificate, material.key, material.authorities
        if max(map(len, parts)) > FILE_BYTES_MAX:
            raise ValueError(f"key material of more than {FILE_BYTES_MAX} bytes")
        version = self.version + 1
        start = _slot_start(version)
        content = b"".join(parts)
        _SLOT_HEAD.pack_into(self._map, start, *map(len, parts), zlib.crc32(content))
        self._map[start + _SLOT_HEAD.size : start + _SLOT_HEAD.size + len(content)] = content
        self._words[0] = version
        return version

    def read(self) -> tuple[int, KeyMaterial]:
        """The version and material of now.

        Raises:
            ForkserveError: there is none, or it changes all the time.
        """
        for _attempt in range(_READS_MAX):
            version = self.version
            material = self._copy(_slot_start(version))
            if version and material is not None and self.version == version:
                return version, material
        raise ForkserveError("the certificate that the master handed out cannot be read; it is tried again later")

    def _copy(self, start: int) -> KeyMaterial | None:
        *lengths, total = _SLOT_HEAD.unpack_from(self._map, start)
        start += _SLOT_HEAD.size
        content = self._map[start : start + sum(lengths)]
        if zlib.crc32(content) != total:
            return None
        first, second, _third = lengths
        return KeyMaterial(content[:first], content[first : first + second], content[first + second :])


def _slot_start(version: int) -> int:
    return _VERSION_BYTES + version % 2 * _SLOT_BYTES
