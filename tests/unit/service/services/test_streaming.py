# SPDX-License-Identifier: Apache-2.0
"""Streams of messages, as a call has them."""

from __future__ import annotations

from lamella.protocol.proto.transfers_pb2 import Progress
from lamella.protocol.proto.types_pb2 import Descriptor
from lamella.service.grpc.rpc import Call
from lamella.service.services.streaming import Exchange


def news(size: int) -> Progress:
    return Progress(event="waiting", desc=Descriptor(annotations={"note": "x" * size}))


def test_unread_progress_takes_little_memory() -> None:
    exchange = Exchange(iter(()), Call({}))
    for _ in range(1000):
        exchange.tell(news(100_000))
    exchange.end()
    kept = [value.ByteSize() for value in exchange.outgoing()]
    assert kept != []
    assert sum(kept) < 2 << 20


def test_large_progress_is_sent_if_none_waits() -> None:
    exchange = Exchange(iter(()), Call({}))
    outgoing = exchange.outgoing()
    for _ in range(3):
        exchange.tell(news(4 << 20))
        assert Progress.FromString(next(outgoing).value) == news(4 << 20)
    exchange.end()
    assert list(outgoing) == []
