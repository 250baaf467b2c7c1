# SPDX-License-Identifier: Apache-2.0
"""Identifies the compressor that wrote a blob, by trying compressors on its uncompressed stream."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from msgspec import Struct

from lamella.errors import FormatError, Unsupported
from lamella.streams.recompress.compressors import (
    DEFLATE_COMPRESSORS,
    USUAL_LEVELS,
    RecipeMember,
    new_compressor,
)

if TYPE_CHECKING:
    from lamella.progress import Cancellation, Progress
    from lamella.streams.limits import Buffer

_RAW: Final = -zlib.MAX_WBITS
_STEP: Final = 256 << 10
_TRIAL: Final = (1 << 20) + 4096
"""Bytes of a tar that a compressor is tried on: one block of Lamella's writer and a little of the next."""
_SLOW_TRIAL: Final = 256 << 10
_TRIALS: Final = 100
"""Members for which all compressors are tried, which bounds the time for a blob with many members."""


def identify_compressor(
    file: BinaryIO,
    compression: str,
    tar_size: int,
    *,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> list[RecipeMember]:
    """Return the members of the blob ``file`` with the compressors that reproduce them.

    The file is seekable and was verified before. Each candidate is tried on the beginning, the remaining ones on the
    whole member. Raises Unsupported if no compressor matches.
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
    return Unsupported(f"{what} was written by an unknown compressor; tried {tried}", hint="keep the blob itself")


class _Member(Struct, frozen=True):
    """The place of a member in a gzip file, in bytes."""

    head: bytes
    start: int
    """Offset of the deflate stream in the file."""
    packed: int
    size: int


def _gzip_members(file: BinaryIO) -> Iterator[_Member]:
    """Yield the members. The caller may move the position of the file."""
    at = 0
    while True:
        file.seek(at)
        head = _gzip_head(file.read(_STEP), at)
        if head is None:
            return
        start = at + len(head)
        packed, size = _measure(file, start)
        yield _Member(head, start, packed, size)
        at = start + packed + 8


def _gzip_head(data: bytes, at: int) -> bytes | None:
    """Return the header at the start of ``data`` (RFC 1952, 2.3); None for no data."""
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


def _measure(file: BinaryIO, start: int) -> tuple[int, int]:
    """Return the compressed and uncompressed size of the deflate stream at ``start``."""
    file.seek(start)
    stream = zlib.decompressobj(_RAW)
    packed = size = 0
    while not stream.eof:
        piece = stream.unconsumed_tail or file.read(_STEP)
        size += len(_decompress(stream, piece, start))
        # At the end of the stream, unused input may be in both.
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
        if out == beginning[: len(out)] and _reproduces(file, member, name, check):
            return name
    return None


def _gzip_names() -> Iterator[str]:
    for kind, (_, levels) in DEFLATE_COMPRESSORS.items():
        yield f"{kind} {USUAL_LEVELS[kind]}"
        yield from (f"{kind} {level}" for level in levels if level != USUAL_LEVELS[kind])


def _contents(file: BinaryIO, member: _Member) -> Iterator[bytes]:
    """Yield the uncompressed data. The caller may move the position of the file between two pieces."""
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


def _reproduces(file: BinaryIO, member: _Member, name: str, check: Callable[[], object]) -> bool:
    """Whether the compressor reproduces the whole member."""
    compressor = new_compressor(name, member.size)
    end = member.start + member.packed
    at = member.start
    for piece in _contents(file, member):
        check()
        at = _match_output(file, at, end, compressor.compress(piece))
        if at < 0:
            return False
    return _match_output(file, at, end, compressor.flush()) == end


def _match_output(file: BinaryIO, at: int, end: int, out: Buffer) -> int:
    """Compare ``out`` with the file at ``at``. Return the offset after it, or -1 if they differ."""
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
            if _may_begin(start, name, tar_size) and _reproduces_zstd(file, tar_size, name, check):
                return RecipeMember(name, tar_size)
    raise _cannot("zstd", "the blob")


_ZSTD_HEAD: Final = 6
"""Bytes up to the window descriptor or the first byte of the size, in which most compressors differ."""


def _may_begin(start: bytes, name: str, size: int) -> bool:
    """Whether a frame of the compressor can begin with ``start``: a cheap first test."""
    from lamella.streams.compress import BLOCK_SIZE
    from lamella.streams.zstandard import zstd

    if name.startswith("lamella"):
        return size <= BLOCK_SIZE or start[4:] == _OUR_FRAME
    stream: Any = new_compressor(name, size)
    mode = zstd.ZstdCompressor.FLUSH_BLOCK if size > 1 else zstd.ZstdCompressor.FLUSH_FRAME
    head: bytes = stream.compress(bytes(min(size, 1)), mode)
    return head[:_ZSTD_HEAD] == start


_OUR_FRAME: Final = b"\x04\x68"
"""Checksum, no size, a window of 8 MiB."""

_ZSTD_LEVELS: Final = (3, *(level for level in range(1, 20) if level != 3))


def _reproduces_zstd(file: BinaryIO, tar_size: int, name: str, check: Callable[[], object]) -> bool:
    from lamella.streams.zstandard import zstd

    file.seek(0)
    # The same limit as for reading layers.
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
        at = _match_output(file, at, end, compressor.compress(stream.decompress(piece, 4 * _STEP)))
        if at < 0:
            return False
    return _match_output(file, at, end, compressor.flush()) == end
