# SPDX-License-Identifier: Apache-2.0
"""Encoders: compress blocks of a tar; the output does not depend on the number of threads."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Final, Protocol

from lamella.streams.limits import Buffer

BLOCK_SIZE: Final = 1 << 20
"""Bytes of the tar in one block."""

WINDOW: Final = 32 << 10
"""Bytes before a block that deflate can refer to."""

_GZIP_HEAD: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""No name, no time, no operating system, so that equal tars give equal bytes (RFC 1952, 2.3)."""

_GZIP_LAST: Final = b"\x03\x00"
"""An empty final block in the fixed code (RFC 1951, 3.2.6)."""

# 8 MiB is the largest window that every decoder must support (RFC 8878, 3.1.1.1.2); its output at level 3 is a tenth
# smaller than with the default window of 2 MiB. Jobs of 4 MiB need about 10 MB for each thread, the default 40 MB.
_ZSTD_WINDOW_LOG: Final = 23
_ZSTD_JOB: Final = 4 << 20


class Encoder(Protocol):
    """Compresses one stream, passed in blocks of `BLOCK_SIZE` bytes; only the last block may be shorter."""

    @property
    def workers(self) -> int:
        """How many threads may call `block` at once; 0 if it does no work."""
        ...

    @property
    def head(self) -> bytes:
        """The bytes before the first block."""
        ...

    def block(self, data: memoryview, before: bytes) -> Buffer:
        """Compress a block; ``before`` is the last `WINDOW` bytes of the previous block."""
        ...

    def account(self, data: memoryview) -> None:
        """Update checksums and sizes. Called for each block in the order of the stream, by one thread at a time."""
        ...

    def tail(self) -> bytes:
        """The bytes after the last block."""
        ...

    def whole(self, data: memoryview) -> Buffer:
        """Compress a stream of one block; replaces all other calls."""
        ...


class PlainEncoder:
    """No compression."""

    workers = 0
    head = b""

    def block(self, data: memoryview, before: bytes) -> Buffer:  # noqa: ARG002 - of the contract
        return data

    def account(self, data: memoryview) -> None:
        pass

    def tail(self) -> bytes:
        return b""

    def whole(self, data: memoryview) -> Buffer:
        return data


class GzipEncoder:
    """One gzip member. Blocks are compressed independently, primed with the previous bytes, and end by a sync flush."""

    head = _GZIP_HEAD

    def __init__(self, level: int, threads: int) -> None:
        self.workers = threads
        self.block = _deflate(level)
        self._crc = 0
        self._size = 0
        from isal import isal_zlib

        self._crc32 = isal_zlib.crc32

    def account(self, data: memoryview) -> None:
        self._crc = self._crc32(data, self._crc)
        self._size += len(data)

    def tail(self) -> bytes:
        return _GZIP_LAST + struct.pack("<II", self._crc, self._size & 0xFFFFFFFF)

    def whole(self, data: memoryview) -> Buffer:
        self.account(data)
        return b"".join((self.head, self.block(data, b"") if data else b"", self.tail()))


class _Deflater(Protocol):
    def compress(self, data: memoryview, /) -> bytes: ...

    def flush(self, mode: int, /) -> bytes: ...


def _deflate(level: int) -> Callable[[memoryview, bytes], bytes]:
    """A function that compresses a block at ``level``, safe to call from several threads."""
    if level <= 3:
        from isal import isal_zlib as engine

        level = 3 if level == 3 else 1
    else:
        from zlib_ng import zlib_ng as engine  # type: ignore[no-redef]

    new: Callable[..., _Deflater] = engine.compressobj
    settings = (level, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_DEFAULT_STRATEGY)

    def block(data: memoryview, before: bytes) -> bytes:
        state = new(*settings, before) if before else new(*settings)
        return state.compress(data) + state.flush(zlib.Z_SYNC_FLUSH)

    return block


class ZstdEncoder:
    """One zstd frame with a checksum. The library compresses in its own threads; one thread passes it the blocks."""

    workers = 1
    head = b""

    def __init__(self, level: int, threads: int) -> None:
        from lamella.streams.zstandard import zstd

        parameter = zstd.CompressionParameter
        self._state = zstd.ZstdCompressor(
            options={
                parameter.compression_level: level,
                parameter.window_log: _ZSTD_WINDOW_LOG,
                parameter.checksum_flag: 1,
                # Without workers the library splits the stream differently, so the output would differ.
                parameter.nb_workers: threads,
                parameter.job_size: _ZSTD_JOB,
            }
        )

    def block(self, data: memoryview, before: bytes) -> Buffer:  # noqa: ARG002 - of the contract
        return self._state.compress(data)

    def account(self, data: memoryview) -> None:
        pass

    def tail(self) -> bytes:
        return self._state.flush()

    def whole(self, data: memoryview) -> Buffer:
        return self._state.compress(data, self._state.FLUSH_FRAME)
