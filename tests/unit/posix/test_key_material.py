"""Certificate and key in shared memory."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from forkserve.errors import ForkserveError
from forkserve.posix import process
from forkserve.posix.key_material import FILE_BYTES_MAX, KeyMaterial, KeyRegion

FIRST = KeyMaterial(b"certificate 1", b"key 1", b"")
SECOND = KeyMaterial(b"certificate 2, longer", b"", b"authorities 2")


@pytest.fixture
def region() -> Iterator[KeyRegion]:
    made = KeyRegion.create()
    yield made
    os.close(made.fd)


def test_what_is_published_is_read_with_its_version(region: KeyRegion) -> None:
    assert region.version == 0
    reader = KeyRegion.attach(os.dup(region.fd))
    for number, material in enumerate((FIRST, SECOND, FIRST, SECOND), 1):
        assert region.publish(material) == number
        assert reader.version == number
        assert reader.read() == (number, material)


def test_before_the_first_publication_there_is_nothing_to_read(region: KeyRegion) -> None:
    with pytest.raises(ForkserveError, match="cannot be read"):
        region.read()


def test_material_as_long_as_may_be(region: KeyRegion) -> None:
    longest = KeyMaterial(b"c" * FILE_BYTES_MAX, b"k" * FILE_BYTES_MAX, b"a" * FILE_BYTES_MAX)
    for _ in range(2):
        region.publish(longest)
        assert region.read()[1] == longest
    with pytest.raises(ValueError, match=str(FILE_BYTES_MAX)):
        region.publish(KeyMaterial(b"", b"k" * (FILE_BYTES_MAX + 1), b""))
    assert region.read() == (2, longest)


def test_the_slot_that_is_read_is_not_the_one_that_is_written(region: KeyRegion) -> None:
    """A reader that is slow sees the old material whole while the next is being written."""
    region.publish(FIRST)
    before = os.pread(region.fd, os.fstat(region.fd).st_size, 0)
    region.publish(SECOND)
    after = os.pread(region.fd, os.fstat(region.fd).st_size, 0)
    at = before.index(FIRST.certificate)
    assert after[at : at + len(FIRST.certificate)] == FIRST.certificate


def test_bytes_that_have_not_arrived_yet_are_not_taken_for_material(region: KeyRegion) -> None:
    region.publish(FIRST)
    content = os.pread(region.fd, os.fstat(region.fd).st_size, 0)
    os.pwrite(region.fd, b"C", content.index(FIRST.certificate))
    with pytest.raises(ForkserveError, match="cannot be read"):
        region.read()


def test_readers_cannot_write_and_have_no_descriptor_to_pass_on(region: KeyRegion) -> None:
    region.publish(FIRST)
    fd = os.dup(region.fd)
    reader = KeyRegion.attach(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(TypeError, match="read-write"):
        reader.publish(SECOND)
    assert region.read() == (1, FIRST)


def test_a_child_sees_what_its_parent_publishes_later(region: KeyRegion) -> None:
    ours, theirs = os.pipe()
    region.publish(FIRST)
    reader = KeyRegion.attach(os.dup(region.fd))

    def child() -> None:
        os.read(ours, 1)
        process.leave(0 if reader.read() == (2, SECOND) else 1)

    pid = process.fork_child(child)
    region.publish(SECOND)
    os.write(theirs, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(ours)
    os.close(theirs)


def test_secrets_are_not_shown() -> None:
    assert "key 1" not in repr(FIRST)


def test_the_descriptor_is_not_inherited_unasked(region: KeyRegion) -> None:
    assert not os.get_inheritable(region.fd)
