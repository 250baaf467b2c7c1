# SPDX-License-Identifier: Apache-2.0
"""What a call's messages may take of the memory, before the call takes them."""

from __future__ import annotations

from itertools import islice

import pytest

from lamella.errors import InvalidInput
from lamella.service.grpc import http2
from lamella.service.grpc.flow import WINDOW, FlowControl
from lamella.service.grpc.quota import Quota, SharedLimit
from lamella.service.grpc.rpc import Method
from lamella.service.grpc.stream import Stream

FRAME = 16_000


def stream(granted: list[int], *, takes_many: bool = True) -> Stream:
    """A call, and what its client is allowed to send besides what it may at first."""
    method = Method("/test/Many", lambda requests, call: None, bytes, takes_many, False, None)

    def send(frame: bytes) -> None:
        granted.append(http2.number(memoryview(frame)[http2.HEAD_SIZE :]))

    return Stream(1, method, {}, FlowControl(Quota(SharedLimit(1 << 30))), send)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_a_client_of_many_small_messages_waits_until_its_call_takes_them(size: int) -> None:
    granted: list[int] = []
    call = stream(granted)
    message = b"\0" + size.to_bytes(4, "big") + bytes(size)
    frame = message * (FRAME // len(message))
    frames = WINDOW // len(frame)
    for _ in range(frames):
        call.receive(0, memoryview(frame))
    assert granted == []
    taken = list(islice(call.requests(), frames * (FRAME // len(message))))
    assert taken == [bytes(size)] * len(taken)
    assert sum(granted) > WINDOW // 2


def test_a_client_of_a_fast_call_may_send_without_limit() -> None:
    granted: list[int] = []
    call = stream(granted)
    frame = memoryview(b"\0\0\0\0\x01x" * (FRAME // 6))
    requests = call.requests()
    sent = 0
    while sent < 3 * WINDOW:
        call.receive(0, frame)
        sent += len(frame)
        assert len(list(islice(requests, FRAME // 6))) == FRAME // 6
    assert sum(granted) > 2 * WINDOW


def test_a_second_request_of_a_call_that_takes_one_is_refused() -> None:
    call = stream([], takes_many=False)
    call.receive(0, memoryview(b"\0\0\0\0\0"))
    with pytest.raises(InvalidInput, match="more than one request"):
        call.receive(0, memoryview(b"\0\0\0\0\0"))
    with pytest.raises(InvalidInput, match="more than one request"):
        stream([], takes_many=False).receive(0, memoryview(b"\0\0\0\0\x01x" * 2))
