"""Channels: messages and descriptors between two processes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import msgspec
import pytest

from forkserve import messages
from forkserve.posix.channel import CLOSED, DATAGRAM_BYTES_MAX, Channel, channel_pair


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = channel_pair()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_a_message_arrives_whole_with_its_descriptors(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    reader, writer = os.pipe()
    assert ours.send(messages.Spawn(worker_id=7, slot=2), [writer])
    received = theirs.receive()
    assert isinstance(received, tuple)
    message, fds = received
    assert message == messages.Spawn(worker_id=7, slot=2)
    assert len(fds) == 1
    assert not os.get_inheritable(fds[0])
    os.write(fds[0], b"through")
    assert os.read(reader, 10) == b"through"
    for fd in (reader, writer, *fds):
        os.close(fd)


def test_nothing_to_receive_is_none_and_the_end_of_the_other_side_is_closed(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    assert theirs.receive() is None
    ours.send(messages.Ready())
    ours.close()
    assert theirs.receive() == (messages.Ready(), [])
    assert theirs.receive() is CLOSED
    assert theirs.receive() is CLOSED


def test_sending_never_blocks_and_says_when_the_other_side_does_not_read(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    message = messages.BootFailed(message="x" * 50_000)
    sent = 0
    while ours.send(message):
        sent += 1
        assert sent < 10_000
    assert sent >= 1
    for _ in range(sent):
        assert theirs.receive() == (message, [])
    assert ours.send(message)


def test_sending_to_nobody_is_false(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    theirs.close()
    assert not ours.send(messages.Ready())
    ours.close()
    assert not ours.send(messages.Ready())


def test_a_message_over_the_limit_is_refused_before_it_is_sent(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    with pytest.raises(ValueError, match="over"):
        ours.send(messages.BootFailed(message="x" * (DATAGRAM_BYTES_MAX + 1)))
    assert theirs.receive() is None


def test_rubbish_that_arrives_is_refused_and_leaves_no_descriptor_behind() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(theirs)
    reader, writer = os.pipe()
    before = os.listdir("/proc/self/fd")
    with ours:
        socket.send_fds(ours, [b"rubbish"], [writer])
        with pytest.raises(msgspec.DecodeError):
            channel.receive()
        assert os.listdir("/proc/self/fd") == before
    channel.close()
    os.close(reader)
    os.close(writer)


def test_rubbish_is_no_message() -> None:
    for rubbish in (b"", b"{", b'{"type":"Nonsense"}', b'{"type":"Spawn"}', b"\xff"):
        with pytest.raises(msgspec.DecodeError):
            messages.decode(rubbish)
