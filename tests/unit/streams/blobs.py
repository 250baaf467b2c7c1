# SPDX-License-Identifier: Apache-2.0
"""Blobs and sources for the tests of streams."""

from __future__ import annotations

import gzip
import io
import random
import threading
from collections.abc import Callable
from functools import cache
from typing import Final

from lamella.streams.buffers import BUFFER_SIZE
from lamella.streams.zstandard import zstd

COMPRESSIONS: Final = ("gzip", "zstd", "none")
HEAD: Final = 16
"""A value of `SMALL_BLOB` that sends nearly every blob through the threads."""


@cache
def tar_like(size: int, seed: int = 0) -> bytes:
    """Bytes that compress about as well as a layer does, the same each time."""
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randrange(4, 60)) for _ in range(400)]
    out = bytearray()
    while len(out) < size:
        out += rng.choice(words)
        if rng.random() < 0.3:
            out += rng.randbytes(4)
    return bytes(out[:size])


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def zstd_frame(data: bytes) -> bytes:
    return zstd.compress(data, 1)


def skippable(data: bytes, kind: int = 0) -> bytes:
    return (0x184D2A50 + kind).to_bytes(4, "little") + len(data).to_bytes(4, "little") + data


PACK: Final[dict[str, Callable[[bytes], bytes]]] = {"gzip": gzipped, "zstd": zstd_frame, "none": bytes}

SIZES: Final = (0, 1, 511, BUFFER_SIZE - 1, BUFFER_SIZE, BUFFER_SIZE + 1, 2 * BUFFER_SIZE, 2_600_000)


class Trickle(io.RawIOBase):
    """A source that gives a few bytes at a time, and can't be rewound."""

    def __init__(self, data: bytes, step: int = 7_001) -> None:
        self._rest = memoryview(data)
        self._step = step
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        piece = self._rest[: min(len(buffer), self._step)]
        buffer[: len(piece)] = piece
        self._rest = self._rest[len(piece) :]
        self.given += len(piece)
        return len(piece)


class Failing(io.RawIOBase):
    """A source that breaks after so many bytes."""

    def __init__(self, data: bytes, error: Exception) -> None:
        self._data = io.BytesIO(data)
        self._error = error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        got = self._data.readinto(buffer)
        if not got:
            raise self._error
        return got


def workers() -> list[str]:
    """The threads of readers and writers that are there."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lamella_")]
