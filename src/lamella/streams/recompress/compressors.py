# SPDX-License-Identifier: Apache-2.0
"""Compressors that can be repeated: found by what they make of a tar, named, and run again to the byte.

=================  ===================================================================================
name               who writes so
=================  ===================================================================================
``zlib N``         zlib at level N, one stream: Python, many others
``pigz N``         pigz with more than one thread, its blocks of 128 KiB
``lamella N``      our own writer
``zlib-ng N``      zlib-ng at level N, one stream
``isal N``         ISA-L at level N, one stream: igzip
``go N``           the standard library of Go up to 1.26: containerd, Docker, crane. By our own code, which is slow
``lamella-zstd N`` our own writer
``zstd N ...``     the zstd library, with what follows: ``checksum``, ``sized``, ``worker`` (as zstd(1) has it)
=================  ===================================================================================

The bytes of a library depend on its version, and those of isal and zlib-ng on the processor too.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol

from msgspec import Struct

from lamella.errors import FormatError, InvalidInput, Unsupported

if TYPE_CHECKING:
    from lamella.progress import Cancellation, Progress
    from lamella.streams.limits import Buffer

_RAW: Final = -zlib.MAX_WBITS
_STEP: Final = 256 << 10
_TRIAL: Final = (1 << 20) + 4096
"""Bytes of a tar that a compressor is tried on: a block of our own writer's, and a little of the next."""
_SLOW_TRIAL: Final = 256 << 10
_TRIALS: Final = 100
"""Members whose compressor is looked for among all: a blob of many more by nobody known must not take for ever."""


class RecipeMember(Struct, frozen=True):
    """One compressed piece of a blob, such as a member of a gzip file."""

    by: str
    """The name of the compressor that gives its bytes again."""
    size: int
    """Uncompressed bytes."""
    head: bytes = b""
    """The bytes before the compressed ones."""


class Compressor(Protocol):
    """One compressed stream; the calls are those of `zlib.compressobj`'s result."""

    def compress(self, data: Buffer, /) -> Buffer:
        """Take bytes, and give what comes out so far."""
        ...

    def flush(self) -> Buffer:
        """The rest of the stream."""
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
    """Hands a stream over in blocks of one size, with the end of the block before; the last is kept until `flush`."""

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
    """Blocks that are primed with the bytes before them and end at a byte, by whatever takes the least room there."""

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
        # Both flushes end the block and add an empty one, stored (000) and fixed (010): they tell where it begins.
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


_DEFLATE: Final[dict[str, tuple[Callable[[int], Compressor], Sequence[int]]]] = {
    "lamella": (_Lamella, range(1, 10)),
    "zlib": (_zlib, range(10)),
    "pigz": (_Pigz, range(1, 10)),
    "zlib-ng": (_zlib_ng, range(1, 10)),
    "isal": (_isal, range(4)),
    "go": (_go, (1, *range(4, 10))),
}
_USUAL: Final = {"zlib": 6, "lamella": 5, "pigz": 6, "zlib-ng": 6, "isal": 2, "go": 6}
_ZSTD_FLAGS: Final = frozenset({"checksum", "sized", "worker"})


def new_compressor(name: str, size: int) -> Compressor:
    """The compressor called ``name``, for a stream of ``size`` bytes. Raises Unsupported for an unknown one."""
    kind, _, rest = name.partition(" ")
    level, *flags = rest.split(" ")
    if level.isascii() and level.isdecimal() and len(level) < 3:
        number = int(level)
        if kind in _DEFLATE and not flags and number in _DEFLATE[kind][1]:
            return _DEFLATE[kind][0](number)
        if kind == "lamella-zstd" and not flags and 1 <= number <= 19:
            return _LamellaZstd(number)
        if kind == "zstd" and 1 <= number <= 19 and _ZSTD_FLAGS.issuperset(flags):
            return _zstd(number, flags, size)
    raise Unsupported(f"the compressor {name[:80]!r} is not known here", hint="use a newer lamella")


class Recompressor:
    """Makes a blob of its tar again. Raises Unsupported for a compressor that is not known."""

    def __init__(self, compression: str, members: Sequence[RecipeMember]) -> None:
        if compression not in ("gzip", "zstd", "none") or (compression == "none") != (not members):
            raise InvalidInput(f"a recipe of {len(members)} members compressed with {compression[:80]!r}")
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
        """Take bytes of the tar, and give what comes out so far."""
        if self._plain:
            return data
        out: list[Buffer] = []
        rest = memoryview(data)
        while rest:
            while not self._left:
                self._next(out)
            piece = rest[: self._left]
            assert self._begun is not None  # noqa: S101  # something is left of the member that is under way
            out.append(self._begun.compress(piece))
            if self._gzip:
                self._crc = zlib.crc32(piece, self._crc)
            self._left -= len(piece)
            rest = rest[len(piece) :]
        return b"".join(out)

    def finish(self) -> Buffer:
        """The rest of the blob."""
        out: list[Buffer] = []
        while self._member is not None or self._begun is not None:
            self._next(out)
        return b"".join(out)

    def _next(self, out: list[Buffer]) -> None:
        """End the member under way and begin the one after it."""
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


# Finding ---------------------------------------------------------------------------------------------------------


def identify_compressor(
    file: BinaryIO,
    compression: str,
    tar_size: int,
    *,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> list[RecipeMember]:
    """What gives the bytes of the blob ``file`` again, which was read before and is seekable.

    Candidates are tried on the beginning, and what is left of them on all. Raises Unsupported where there is none.
    """
    if compression == "none":
        return []
    check = _nothing if cancel is None else cancel.check
    if progress is not None:
        progress.start("compress", tar_size)
    try:
        if compression == "zstd":
            return [_identify_zstd(file, tar_size, check)]
        found: list[RecipeMember] = []
        last: str | None = None
        failed = 0
        for at, member in enumerate(_gzip_members(file)):
            last = _identify_gzip(file, member, last, check, exhaustive=failed < _TRIALS)
            if last is None:
                raise _cannot("gzip", f"member {at + 1} of the blob" if at else "the blob")
            failed += bool(found) and found[-1].by != last
            found.append(RecipeMember(last, member.size, member.head))
            if progress is not None:
                progress.advance(member.size)
        return found
    finally:
        if progress is not None:
            progress.finish()


def _nothing() -> None:
    pass


def _cannot(compression: str, what: str) -> Unsupported:
    tried = {
        "gzip": "zlib, pigz, zlib-ng, isa-l, Go's standard library (levels 1 and 4 to 9, up to Go 1.26) and lamella",
        "zstd": "one frame of the zstd library (levels 1 to 19) and lamella",
    }[compression]
    return Unsupported(
        f"{what} was written by a compressor that cannot be repeated; tried were {tried}", hint="keep the blob itself"
    )


class _Member(Struct, frozen=True):
    """Where a member of a gzip file is, in bytes."""

    head: bytes
    start: int
    """Of the deflate stream in the blob."""
    packed: int
    size: int


def _gzip_members(file: BinaryIO) -> Iterator[_Member]:
    """The members; the caller may move the file's position meanwhile. The blob was checked before."""
    at = 0
    while True:
        file.seek(at)
        head = _gzip_head(file.read(_STEP), at)
        if head is None:
            return
        start = at + len(head)
        packed, size = _inflated(file, start)
        yield _Member(head, start, packed, size)
        at = start + packed + 8


def _gzip_head(data: bytes, at: int) -> bytes | None:
    """The header that ``data`` begins with (RFC 1952, 2.3); None where there is none."""
    if not data:
        return None
    end = 10
    if len(data) > end:
        flags = data[3]
        if flags & 4:
            end += 2 + int.from_bytes(data[10:12], "little")
        for text in (8, 16):
            if flags & text:
                end = data.find(b"\0", end) + 1
                if not end:
                    raise FormatError("gzip header", at, f"longer than {_STEP} bytes")
        if flags & 2:
            end += 2
    if end >= len(data):
        raise FormatError("gzip header", at, "truncated, or too long")
    return data[:end]


def _inflated(file: BinaryIO, start: int) -> tuple[int, int]:
    """Bytes of the deflate stream at ``start``, and of what it holds."""
    file.seek(start)
    stream = zlib.decompressobj(_RAW)
    packed = size = 0
    while not stream.eof:
        piece = stream.unconsumed_tail or file.read(_STEP)
        size += len(_decompress(stream, piece, start))
        # At the end, what is not used may stand in both.
        packed += len(piece) - len(stream.unused_data or stream.unconsumed_tail)
    return packed, size


def _decompress(stream: zlib._Decompress, piece: bytes, start: int) -> bytes:
    try:
        data = stream.decompress(piece, 4 * _STEP)
    except zlib.error as error:
        raise FormatError("gzip stream", start, f"not valid: {error}") from error
    if not piece and not data and not stream.eof:
        raise FormatError("gzip stream", start, "truncated")
    return data


def _identify_gzip(
    file: BinaryIO, member: _Member, last: str | None, check: Callable[[], object], *, exhaustive: bool
) -> str | None:
    trial = b"".join(_first(_contents(file, member), _TRIAL))
    whole = len(trial) == member.size
    file.seek(member.start)
    beginning = file.read(min(member.packed, len(trial) + 4096))
    names = [] if last is None else [last]
    if exhaustive or last is None:
        names += [name for name in _gzip_names() if name != last]
    for name in names:
        check()
        compressor = new_compressor(name, member.size)
        piece = trial
        if name.startswith("go") and len(trial) > _SLOW_TRIAL:
            piece = trial[:_SLOW_TRIAL]
        out = compressor.compress(piece)
        if whole and len(piece) == len(trial):
            if b"".join((out, compressor.flush())) == beginning and len(beginning) == member.packed:
                return name
            continue
        out = memoryview(out)[: len(beginning)]
        if out == beginning[: len(out)] and _repeats(file, member, name, check):
            return name
    return None


def _gzip_names() -> Iterator[str]:
    for kind, (_, levels) in _DEFLATE.items():
        yield f"{kind} {_USUAL[kind]}"
        yield from (f"{kind} {level}" for level in levels if level != _USUAL[kind])


def _contents(file: BinaryIO, member: _Member) -> Iterator[bytes]:
    """What the member holds; the file's position may be moved between two pieces."""
    stream = zlib.decompressobj(_RAW)
    at = member.start
    while not stream.eof:
        piece = stream.unconsumed_tail
        if not piece:
            file.seek(at)
            piece = file.read(_STEP)
            at += len(piece)
        yield _decompress(stream, piece, member.start)


def _first(pieces: Iterator[bytes], most: int) -> Iterator[bytes]:
    for piece in pieces:
        yield piece[:most]
        most -= len(piece)
        if most <= 0:
            return


def _repeats(file: BinaryIO, member: _Member, name: str, check: Callable[[], object]) -> bool:
    """Whether the compressor gives all bytes of the member."""
    compressor = new_compressor(name, member.size)
    end = member.start + member.packed
    at = member.start
    for piece in _contents(file, member):
        check()
        at = _agreed(file, at, end, compressor.compress(piece))
        if at < 0:
            return False
    return _agreed(file, at, end, compressor.flush()) == end


def _agreed(file: BinaryIO, at: int, end: int, out: Buffer) -> int:
    """Where ``out`` ends in the file, in which it is to stand at ``at``; -1 where it does not."""
    if at + len(out) > end:
        return -1
    if out:
        file.seek(at)
        if file.read(len(out)) != out:
            return -1
    return at + len(out)


def _identify_zstd(file: BinaryIO, tar_size: int, check: Callable[[], object]) -> RecipeMember:
    file.seek(0)
    head = file.read(5)
    if head[:4] == b"\x28\xb5\x2f\xfd":
        flags = " checksum" if head[4] & 4 else ""
        if head[4] & 0xE0:
            flags += " sized"
        names = [f"lamella-zstd {level}" for level in _ZSTD_LEVELS]
        names += [f"zstd {level}{flags}{worker}" for worker in ("", " worker") for level in _ZSTD_LEVELS]
        file.seek(0)
        start = file.read(_ZSTD_HEAD)
        for name in names:
            check()
            if _may_begin(start, name, tar_size) and _repeats_zstd(file, tar_size, name, check):
                return RecipeMember(name, tar_size)
    raise _cannot("zstd", "the blob")


_ZSTD_HEAD: Final = 6
"""Bytes that show the window or the first byte of the size, which most of the others differ in."""


def _may_begin(start: bytes, name: str, size: int) -> bool:
    """Whether a frame of the compressor begins so: a cheap way to rule most of them out."""
    from lamella.streams.compress import BLOCK_SIZE
    from lamella.streams.zstandard import zstd

    if name.startswith("lamella"):
        return size <= BLOCK_SIZE or start[4:] == _OUR_FRAME
    stream: Any = new_compressor(name, size)
    mode = zstd.ZstdCompressor.FLUSH_BLOCK if size > 1 else zstd.ZstdCompressor.FLUSH_FRAME
    head: bytes = stream.compress(bytes(min(size, 1)), mode)
    return head[:_ZSTD_HEAD] == start


_OUR_FRAME: Final = b"\x04\x68"
"""A checksum, no size, a window of 8 MiB."""

_ZSTD_LEVELS: Final = (3, *(level for level in range(1, 20) if level != 3))


def _repeats_zstd(file: BinaryIO, tar_size: int, name: str, check: Callable[[], object]) -> bool:
    from lamella.streams.zstandard import zstd

    file.seek(0)
    # No decoder here takes a larger window than one that reads layers does.
    stream: Any = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 27})
    compressor = new_compressor(name, tar_size)
    end = file.seek(0, 2)
    fed = at = 0
    while not stream.eof:
        check()
        piece = b""
        if stream.needs_input:
            file.seek(fed)
            piece = file.read(_STEP)
            fed += len(piece)
        at = _agreed(file, at, end, compressor.compress(stream.decompress(piece, 4 * _STEP)))
        if at < 0:
            return False
    return _agreed(file, at, end, compressor.flush()) == end
