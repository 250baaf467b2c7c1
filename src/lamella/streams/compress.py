# SPDX-License-Identifier: Apache-2.0
"""From blocks of a tar to the bytes of a blob, the same whatever the number of threads."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Final, Protocol

from lamella.streams.limits import Buffer

BLOCK_SIZE: Final = 1 << 20
"""Bytes of the tar that are compressed at a time."""

WINDOW: Final = 32 << 10
"""Bytes before a block that deflate may refer to."""

_GZIP_HEAD: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""No name, no time, no operating system: nothing but the tar decides the bytes (RFC 1952, 2.3)."""

_GZIP_LAST: Final = b"\x03\x00"
"""An empty last block, in the fixed code (RFC 1951, 3.2.6)."""

# A window of 8 MiB is the largest that every decoder must take (RFC 8878, 3.1.1.1.2) and makes level 3 a tenth smaller
# than its own of 2 MiB; a job of 4 MiB keeps what each thread holds at about 10 MB, where the default would be 40.
_ZSTD_WINDOW_LOG: Final = 23
_ZSTD_JOB: Final = 4 << 20


class Encoder(Protocol):
    """Compresses one stream, given in blocks of `BLOCK_SIZE` bytes of which only the last may be shorter."""

    @property
    def workers(self) -> int:
        """How many threads may be in `block` at once; 0 where it does no work."""
        ...

    @property
    def head(self) -> bytes:
        """What comes before the first block."""
        ...

    def block(self, data: memoryview, before: bytes) -> Buffer:
        """The block compressed; ``before`` is the end of the block before it, `WINDOW` bytes."""
        ...

    def account(self, data: memoryview) -> None:
        """Take note of a block. Called in the order of the stream, by one thread at a time."""
        ...

    def tail(self) -> bytes:
        """What comes after the last block."""
        ...

    def whole(self, data: memoryview) -> Buffer:
        """All of a stream that is a single block, in place of the calls above."""
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
    """One member whose blocks are compressed apart, each primed with the bytes before it and ended by a sync flush."""

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
    """What compresses a block at ``level``, safe to call from several threads."""
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
    """One frame with a checksum. The library's own threads do the work, one of ours hands it the blocks."""

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
                # With no worker at all the library cuts the stream differently, and other bytes come out.
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
