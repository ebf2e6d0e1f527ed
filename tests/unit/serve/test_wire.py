"""Frames between a front and its worker."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyolo.errors import DataLoss
from steadyolo.serve import wire
from steadyolo.serve.wire import Message

BODIES = [b"", b"x", bytes(70_000)]


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none()), st.binary())
def test_what_is_sent_is_received(values: dict[str, object], body: bytes) -> None:
    sent = Message({**values, "kind": "test"}, body)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.send(ours, sent)
        received = wire.receive(theirs)
    assert received is not None
    assert (received.header, bytes(received.body)) == (sent.header, body)


@pytest.mark.parametrize("body", BODIES, ids=len)
def test_an_event_loop_receives_the_same(body: bytes) -> None:
    async def scenario() -> None:
        reader = asyncio.StreamReader()
        for _ in range(2):
            for frame in wire.frames(Message({"kind": "a"}, body)):
                reader.feed_data(bytes(frame))
        reader.feed_eof()
        for _ in range(2):
            message = await wire.receive_from(reader)
            assert message and bytes(message.body) == body
        assert await wire.receive_from(reader) is None

    asyncio.run(scenario())


def test_half_a_message_is_none() -> None:
    ours, theirs = socket.socketpair()
    frame = b"".join(bytes(one) for one in wire.frames(Message({"kind": "a"}, b"body")))
    with theirs:
        ours.sendall(frame[:-1])
        ours.close()
        assert wire.receive(theirs) is None


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<II", 1 << 30, 0),
        struct.pack("<II", 2, 0) + b"[]",
        struct.pack("<II", 2, 0) + b"{}",
        struct.pack("<II", 1, 0) + b"?",
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        with pytest.raises(DataLoss):
            wire.receive(theirs)
