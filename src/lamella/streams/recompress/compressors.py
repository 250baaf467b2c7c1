# SPDX-License-Identifier: Apache-2.0
"""Compressors whose output can be reproduced byte for byte, by name.

=================  ===================================================================================
name               writer
=================  ===================================================================================
``zlib N``         zlib at level N, one stream: Python, many others
``pigz N``         pigz with more than one thread, its blocks of 128 KiB
``lamella N``      Lamella
``zlib-ng N``      zlib-ng at level N, one stream
``isal N``         ISA-L at level N, one stream: igzip
``go N``           the standard library of Go up to 1.26: containerd, Docker, crane (a slow reimplementation)
``lamella-zstd N`` Lamella
``zstd N ...``     the zstd library with flags: ``checksum``, ``sized``, ``worker`` (as in zstd(1))
=================  ===================================================================================

The output of a library depends on its version; that of isal and zlib-ng also on the processor.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from lamella.errors import InvalidInput, Unsupported

if TYPE_CHECKING:
    from lamella.streams.limits import Buffer

_RAW: Final = -zlib.MAX_WBITS


class RecipeMember(Struct, frozen=True):
    """One compressed piece of a blob, such as a member of a gzip file."""

    by: str
    """The name of the compressor that reproduces it."""
    size: int
    """Uncompressed bytes."""
    head: bytes = b""
    """The bytes before the compressed data: the header."""


class Compressor(Protocol):
    """One compressed stream, with the methods of `zlib.compressobj`."""

    def compress(self, data: Buffer, /) -> Buffer:
        """Compress ``data`` and return the output so far."""
        ...

    def flush(self) -> Buffer:
        """End the stream and return the rest of the output."""
        ...


def _zlib(level: int) -> Compressor:
    return zlib.compressobj(level, zlib.DEFLATED, _RAW)


def _zlib_ng(level: int) -> Compressor:
    from zlib_ng import zlib_ng

    stream: Compressor = zlib_ng.compressobj(level, zlib.DEFLATED, _RAW)
    return stream


def _isal(level: int) -> Compressor:
    from isal import isal_zlib

    stream: Compressor = isal_zlib.compressobj(level, zlib.DEFLATED, _RAW)
    return stream


def _go(level: int) -> Compressor:
    if level == 1:
        from lamella.streams.recompress.go_fast_deflate import GoFastDeflate

        return GoFastDeflate()
    from lamella.streams.recompress.go_deflate import GoDeflate

    return GoDeflate(level)


class _Blocks:
    """Splits a stream into blocks, each passed on with the end of the previous one; `rest` returns the last block."""

    def __init__(self, size: int, first: Callable[[bytes, bytes], Buffer]) -> None:
        self._size = size
        self._block = first
        self._waiting = bytearray()
        self._before = b""

    def compress(self, data: Buffer) -> bytes:
        waiting, size = self._waiting, self._size
        waiting += data
        out = []
        at = 0
        while len(waiting) - at > size:
            block = bytes(waiting[at : at + size])
            out.append(self._block(block, self._before))
            self._before = block[-(32 << 10) :]
            at += size
        del waiting[:at]
        return b"".join(out)

    def rest(self) -> tuple[bytes, bytes]:
        return bytes(self._waiting), self._before


class _Lamella:
    def __init__(self, level: int) -> None:
        from lamella.streams.compress import BLOCK_SIZE
        from lamella.streams.compressions import new_encoder

        self._encoder = new_encoder("gzip", level, 1)
        self._blocks = _Blocks(BLOCK_SIZE, lambda data, before: self._encoder.block(memoryview(data), before))

    def compress(self, data: Buffer) -> Buffer:
        return self._blocks.compress(data)

    def flush(self) -> Buffer:
        data, before = self._blocks.rest()
        last = self._encoder.block(memoryview(data), before) if data else b""
        return b"".join((last, self._encoder.tail()[:-8]))


class _Pigz:
    """pigz: blocks primed with the previous bytes, each ended at a byte boundary by the shortest marker."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._blocks = _Blocks(128 << 10, self._block)

    def compress(self, data: Buffer) -> Buffer:
        return self._blocks.compress(data)

    def flush(self) -> Buffer:
        data, before = self._blocks.rest()
        stream = self._stream(before)
        return stream.compress(data) + stream.flush()

    def _stream(self, before: bytes) -> zlib._Compress:
        settings = (self._level, zlib.DEFLATED, _RAW, zlib.DEF_MEM_LEVEL, zlib.Z_DEFAULT_STRATEGY)
        return zlib.compressobj(*settings, before) if before else zlib.compressobj(*settings)

    def _block(self, data: bytes, before: bytes) -> bytes:
        stream = self._stream(before)
        start = stream.compress(data)
        other = stream.copy()
        synced = start + stream.flush(zlib.Z_SYNC_FLUSH)
        # Both flushes append an empty block, stored (000) or fixed (010): they differ first right after the data.
        partial = start + other.flush(zlib.Z_PARTIAL_FLUSH)
        at = max(0, len(synced) - 16)
        differ = int.from_bytes(synced[at : len(partial)], "little") ^ int.from_bytes(partial[at:], "little")
        end = 8 * at + (differ & -differ).bit_length() - 2
        bits = end % 8
        if bits & 1:
            return synced
        whole = bytearray(synced[: -(-end // 8)])
        if bits:
            whole[-1] &= (1 << bits) - 1
            tail = whole.pop()
            while bits % 8:
                tail |= 2 << bits
                bits += 10
            whole += tail.to_bytes(bits // 8, "little")
        return bytes(whole)


class _LamellaZstd:
    def __init__(self, level: int) -> None:
        from lamella.streams.compress import BLOCK_SIZE
        from lamella.streams.compressions import new_encoder

        self._encoder = new_encoder("zstd", level, 1)
        self._blocks = _Blocks(BLOCK_SIZE, lambda data, before: self._encoder.block(memoryview(data), before))
        self._any = False

    def compress(self, data: Buffer) -> Buffer:
        out = self._blocks.compress(data)
        self._any |= bool(self._blocks.rest()[1])
        return out

    def flush(self) -> Buffer:
        data, before = self._blocks.rest()
        if not self._any:
            return self._encoder.whole(memoryview(data))
        return b"".join((self._encoder.block(memoryview(data), before), self._encoder.tail()))


def _zstd(level: int, flags: Sequence[str], size: int) -> Compressor:
    from lamella.streams.zstandard import zstd

    parameter = zstd.CompressionParameter
    options: dict[int, int] = {parameter.compression_level: level}
    if "checksum" in flags:
        options[parameter.checksum_flag] = 1
    if "worker" in flags:
        options[parameter.nb_workers] = 1
    stream = zstd.ZstdCompressor(options=options)
    if "sized" in flags:
        stream.set_pledged_input_size(size)
    return stream


DEFLATE_COMPRESSORS: Final[dict[str, tuple[Callable[[int], Compressor], Sequence[int]]]] = {
    "lamella": (_Lamella, range(1, 10)),
    "zlib": (_zlib, range(10)),
    "pigz": (_Pigz, range(1, 10)),
    "zlib-ng": (_zlib_ng, range(1, 10)),
    "isal": (_isal, range(4)),
    "go": (_go, (1, *range(4, 10))),
}
USUAL_LEVELS: Final = {"zlib": 6, "lamella": 5, "pigz": 6, "zlib-ng": 6, "isal": 2, "go": 6}
_ZSTD_FLAGS: Final = frozenset({"checksum", "sized", "worker"})


def new_compressor(name: str, size: int) -> Compressor:
    """Return the compressor ``name`` for a stream of ``size`` bytes. Raises Unsupported for an unknown name."""
    kind, _, rest = name.partition(" ")
    level, *flags = rest.split(" ")
    if level.isascii() and level.isdecimal() and len(level) < 3:
        number = int(level)
        if kind in DEFLATE_COMPRESSORS and not flags and number in DEFLATE_COMPRESSORS[kind][1]:
            return DEFLATE_COMPRESSORS[kind][0](number)
        if kind == "lamella-zstd" and not flags and 1 <= number <= 19:
            return _LamellaZstd(number)
        if kind == "zstd" and 1 <= number <= 19 and _ZSTD_FLAGS.issuperset(flags):
            return _zstd(number, flags, size)
    raise Unsupported(f"unknown compressor {name[:80]!r}", hint="use a newer version of Lamella")


class Recompressor:
    """Reproduces a blob from its tar. Raises Unsupported for an unknown compressor."""

    def __init__(self, compression: str, members: Sequence[RecipeMember]) -> None:
        if compression not in ("gzip", "zstd", "none") or (compression == "none") != (not members):
            raise InvalidInput(f"invalid recipe: {len(members)} members with the compression {compression[:80]!r}")
        for name in {member.by for member in members}:
            new_compressor(name, 0)
        self._gzip = compression == "gzip"
        self._members = iter(members)
        self._member = next(self._members, None)
        self._plain = self._member is None
        self._begun: Compressor | None = None
        self._left = 0
        self._size = 0
        self._crc = 0

    def compress(self, data: Buffer) -> Buffer:
        """Compress bytes of the tar and return the output so far."""
        if self._plain:
            return data
        out: list[Buffer] = []
        rest = memoryview(data)
        while rest:
            while not self._left:
                self._next(out)
            piece = rest[: self._left]
            assert self._begun is not None  # noqa: S101  # the current member is not complete
            out.append(self._begun.compress(piece))
            if self._gzip:
                self._crc = zlib.crc32(piece, self._crc)
            self._left -= len(piece)
            rest = rest[len(piece) :]
        return b"".join(out)

    def finish(self) -> Buffer:
        """Return the rest of the blob."""
        out: list[Buffer] = []
        while self._member is not None or self._begun is not None:
            self._next(out)
        return b"".join(out)

    def _next(self, out: list[Buffer]) -> None:
        """End the current member and begin the next one."""
        if self._begun is not None:
            out.append(self._begun.flush())
            if self._gzip:
                out.append(struct.pack("<II", self._crc, self._size & 0xFFFFFFFF))
            self._begun = None
        member = self._member
        if member is not None:
            out.append(member.head)
            self._begun = new_compressor(member.by, member.size)
            self._left = self._size = member.size
            self._crc = 0
            self._member = next(self._members, None)
