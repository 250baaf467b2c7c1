# SPDX-License-Identifier: Apache-2.0
"""Messages in the bytes of a stream, each behind its length (gRPC over HTTP/2, "Length-Prefixed-Message")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lamella.errors import Exhausted, Unsupported
from lamella.protocol import MAX_MESSAGE
from lamella.service.calls import Encoded

HEAD = 5
"""Bytes before each message."""

Part = bytes | memoryview


def framed(answers: Sequence[Any]) -> tuple[list[Part], int]:
    """The parts of messages with what goes before each, and how many bytes that is. Raises Exhausted."""
    parts: list[Part] = []
    total = 0
    for answer in answers:
        if isinstance(answer, Encoded):
            size = sum(map(len, answer.parts))
            parts.append(b"\0" + size.to_bytes(4, "big"))
            parts.extend(answer.parts)
        else:
            encoded = answer.SerializeToString()
            size = len(encoded)
            parts.append(b"\0" + size.to_bytes(4, "big") + encoded)
        if size > MAX_MESSAGE:
            raise Exhausted(f"an answer of {size} bytes, and {MAX_MESSAGE} is the limit", hint="ask with a filter")
        total += size + HEAD
    return parts, total


def unframed(partial: bytearray, payload: memoryview) -> list[bytes]:
    """The messages that are whole with ``payload``, which comes behind ``partial``; what is left is there afterwards.

    Raises Unsupported (compressed), Exhausted (too large).
    """
    size = len(payload) - HEAD
    if not partial and size >= 0 and int.from_bytes(payload[1:HEAD], "big") == size:
        _check(payload[0], size)
        return [bytes(payload[HEAD:])]
    partial += payload
    found = []
    while len(partial) >= HEAD:
        length = int.from_bytes(partial[1:HEAD], "big")
        _check(partial[0], length)
        end = HEAD + length
        if len(partial) < end:
            break
        with memoryview(partial) as whole:
            found.append(bytes(whole[HEAD:end]))
        del partial[:end]
    return found


def _check(compressed: int, length: int) -> None:
    if compressed:
        raise Unsupported("compressed messages are not taken")
    if length > MAX_MESSAGE:
        raise Exhausted(f"a message of {length} bytes, and {MAX_MESSAGE} is the limit")
