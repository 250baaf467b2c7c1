# SPDX-License-Identifier: Apache-2.0
"""Win32 backup streams, the form of files in BackupRead and BackupWrite (WIN32_STREAM_ID).

A file is a sequence of streams: security descriptor, data, alternate streams and so on, each with a header. Bodies are
streamed, not kept in memory.
"""

# ruff: noqa: SLF001 - BackupStream and BackupReader share state

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from msgspec import Struct, field

from lamella.errors import FormatError, InvalidInput, SizeMismatch, StreamConsumed
from lamella.formats.ntfs import names

Buffer: TypeAlias = bytes | bytearray | memoryview

STRUCTURE: Final = "WIN32_STREAM_ID"
BODY: Final = "backup stream"

DATA: Final = 1
EA_DATA: Final = 2
SECURITY_DATA: Final = 3
ALTERNATE_DATA: Final = 4
LINK: Final = 5
PROPERTY_DATA: Final = 6
OBJECT_ID: Final = 7
REPARSE_DATA: Final = 8
SPARSE_BLOCK: Final = 9
TXFS_DATA: Final = 10

IDS: Final = range(1, 11)

MODIFIED_WHEN_READ: Final = 1
CONTAINS_SECURITY: Final = 2
CONTAINS_PROPERTIES: Final = 4
SPARSE_ATTRIBUTE: Final = 8

MAX_NAME: Final = 0x10000
"""Maximum size of a stream's name in bytes."""

SMALL: Final = 0x20000
"""Maximum size in bytes of a security descriptor, extended attributes or a reparse point in `survey`.

The limit of NTFS is 64 KiB; the list of extended attributes is larger here because its entries are padded.
"""

_HEADER: Final = struct.Struct("<IIqI")
_OFFSET: Final = struct.Struct("<q")
_STEP: Final = 1 << 20
_MAX: Final = (1 << 63) - 1

_DATA_SUFFIX: Final = ":$DATA"

_WHOLE: Final = {
    SECURITY_DATA: "security descriptor",
    EA_DATA: "list of extended attributes",
    REPARSE_DATA: "reparse point",
}
"""Streams that are read into memory."""


class BackupStream(Struct, eq=False):
    """The header of one stream; its body can be read once, before the next stream is requested."""

    id: int
    size: int
    """Size of the body in bytes; of a sparse block, without the offset before it."""
    attributes: int = 0
    name: str = ""
    """``:name:$DATA`` of an alternate stream, empty for others."""
    offset: int = 0
    """Offset of a sparse block in the file."""
    body_at: int = 0
    """Offset of the body in the sequence of streams."""
    _reader: BackupReader | None = None

    def chunks(self) -> Iterable[bytes]:
        """The body in pieces. Raises StreamConsumed, and FormatError (while iterating) if the input ends early."""
        reader = self._reader
        if reader is None or reader._current is not self:
            raise StreamConsumed("the body of a backup stream can only be read once, before the next stream")
        reader._current = None
        reader._streaming = self
        return reader._read_body(self)

    def read(self, limit: int = SMALL) -> bytes:
        """The whole body. Raises FormatError beyond ``limit`` bytes."""
        if self.size > limit:
            raise FormatError(BODY, self.body_at, f"{self.size} bytes exceed the {limit} of a stream with id {self.id}")
        return b"".join(self.chunks())


class BackupReader:
    """The streams of one file, in order.

    ``read`` returns at most the requested number of bytes, b"" at the end. With ``skip``, unread bodies are skipped by
    calling it with their size; it must raise or return the number of skipped bytes. ``at`` is the offset of the first
    header.

    Raises FormatError for unknown ids, malformed headers and truncated input.
    """

    __slots__ = ("_current", "_left", "_read", "_skip", "_started", "_streaming", "position")

    def __init__(self, read: Callable[[int], bytes], *, skip: Callable[[int], int] | None = None, at: int = 0) -> None:
        self._read = read
        self._skip = skip
        self.position = at
        """Offset in the input."""
        self._left = 0
        self._started = False
        self._current: BackupStream | None = None  # whose body can still be requested
        self._streaming: BackupStream | None = None  # whose body is being read

    def __iter__(self) -> Iterator[BackupStream]:
        if self._started:
            raise StreamConsumed("backup streams can only be read once")
        self._started = True
        return self._streams()

    def _streams(self) -> Iterator[BackupStream]:
        while True:
            at = self.position
            header = self._take(_HEADER.size, at, empty=True)
            if not header:
                return
            id_, attributes, size, name_size = _HEADER.unpack(header)
            if id_ not in IDS:
                raise FormatError(STRUCTURE, at, f"unknown stream id {id_}")
            if size < 0:
                raise FormatError(STRUCTURE, at, f"negative size {size}")
            if name_size % 2 or name_size > MAX_NAME:
                raise FormatError(STRUCTURE, at, f"malformed size {name_size} of the name")
            name = self._take(name_size, at).decode("utf-16-le", "surrogatepass") if name_size else ""
            offset = 0
            if id_ == SPARSE_BLOCK:
                if size < _OFFSET.size:
                    raise FormatError(STRUCTURE, at, f"a sparse block of {size} bytes has no offset")
                (offset,) = _OFFSET.unpack(self._take(_OFFSET.size, at))
                size -= _OFFSET.size
                if not 0 <= offset <= _MAX - size:
                    raise FormatError(STRUCTURE, at, f"a sparse block of {size} bytes at the invalid offset {offset}")
            self._left = size
            self._current = stream = BackupStream(id_, size, attributes, name, offset, self.position, self)
            yield stream
            self._current = self._streaming = None
            self._skip_body()

    def _take(self, count: int, at: int, *, empty: bool = False) -> bytes:
        data = self._read(count)
        while 0 < len(data) < count:
            more = self._read(count - len(data))
            if not more:
                break
            data += more
        self.position += len(data)
        if len(data) != count and not (empty and not data):
            raise FormatError(STRUCTURE, at, f"truncated: {len(data)} of {count} bytes")
        return data

    def _read_body(self, stream: BackupStream) -> Iterator[bytes]:
        while self._left:
            if self._streaming is not stream:
                raise StreamConsumed("the body of a backup stream must be read before the next stream")
            part = self._read(min(self._left, _STEP))
            if not part:
                raise self._truncated()
            self._left -= len(part)
            self.position += len(part)
            yield part

    def _skip_body(self) -> None:
        if self._left and self._skip is not None:
            passed = self._skip(self._left)
            self.position += passed
            self._left -= passed
            if self._left:
                raise self._truncated()
        while self._left:
            part = self._read(min(self._left, _STEP))
            if not part:
                raise self._truncated()
            self._left -= len(part)
            self.position += len(part)

    def _truncated(self) -> FormatError:
        return FormatError(BODY, self.position, f"truncated: {self._left} bytes missing")


class BackupWriter:
    """Writes streams in sequence: `stream`, then its body by `data`; `finish` at the end."""

    __slots__ = ("_left", "_size", "_write")

    def __init__(self, write: Callable[[Buffer], object]) -> None:
        self._write = write
        self._left = self._size = 0

    def stream(self, id_: int, size: int, *, attributes: int = 0, name: str = "", offset: int = 0) -> None:
        """Begin a stream; the arguments are the fields of `BackupStream`.

        Raises InvalidInput, and SizeMismatch if the body of the previous stream is incomplete.
        """
        self.finish()
        block = b""
        if id_ not in IDS or size < 0 or not 0 <= attributes <= 0xFFFFFFFF:
            raise InvalidInput(f"invalid backup stream: id {id_}, size {size}, attributes {attributes}")
        if id_ == SPARSE_BLOCK:
            if not 0 <= offset <= _MAX - size - _OFFSET.size:
                raise InvalidInput(f"a sparse block of {size} bytes at the invalid offset {offset}")
            block = _OFFSET.pack(offset)
        elif offset:
            raise InvalidInput("only a sparse block has an offset")
        if size > _MAX - len(block):
            raise InvalidInput(f"a backup stream of {size} bytes is too long")
        try:
            encoded = name.encode("utf-16-le", "surrogatepass")
        except UnicodeEncodeError as error:
            raise InvalidInput(f"malformed name of a stream {name[:80]!r}: {error.reason}") from None
        if len(encoded) > MAX_NAME:
            raise InvalidInput(f"the name of a stream has {len(encoded)} bytes, more than {MAX_NAME}")
        self._write(_HEADER.pack(id_, attributes, size + len(block), len(encoded)) + encoded + block)
        self._left = self._size = size

    def data(self, buffer: Buffer) -> None:
        """Write the next bytes of the current stream. Raises SizeMismatch if they exceed its size."""
        count = len(buffer)
        if count > self._left:
            raise SizeMismatch(
                "the body of a backup stream", expected=self._size, actual=f"at least {self._size - self._left + count}"
            )
        self._left -= count
        self._write(buffer)

    def small(self, id_: int, body: bytes) -> None:
        """Write a whole stream without attributes and name."""
        self.stream(id_, len(body))
        self.data(body)

    def finish(self) -> None:
        """Check that the body of the current stream is complete. Raises SizeMismatch."""
        if self._left:
            raise SizeMismatch("the body of a backup stream", expected=self._size, actual=self._size - self._left)


def data_streams(size: int, extents: Sequence[tuple[int, int]] | None) -> Iterator[BackupStream]:
    """Yield the stream headers for a file's content; the caller writes the data of one extent after each.

    ``extents`` are ascending (offset, length), None for a file without holes. As in BackupRead, a sparse file has an
    empty data stream with the sparse attribute, a block for each extent, and an empty block at its end; a single extent
    that covers the file is written as a file without holes.
    """
    if extents is None or list(extents) == [(0, size)]:
        yield BackupStream(DATA, size)
        return
    yield BackupStream(DATA, 0, SPARSE_ATTRIBUTE)
    if size:
        for offset, length in extents:
            yield BackupStream(SPARSE_BLOCK, length, offset=offset)
        yield BackupStream(SPARSE_BLOCK, 0, offset=size)


def stream_name(name: str) -> str:
    """The name in the header of the alternate stream ``name``."""
    return f":{name}{_DATA_SUFFIX}"


class Surveyed(Struct):
    """The streams of one file; contents stay in the input, referenced by offset."""

    security_descriptor: bytes | None = None
    extended_attributes: bytes | None = None
    reparse: bytes | None = None
    size: int = 0
    """Size of the file in bytes, including holes."""
    has_data: bool = False
    """Whether there is a data stream; empty files may lack it."""
    sparse: bool = False
    pieces: list[tuple[int, int, int]] = field(default_factory=list)
    """Content: offset in the file, length, offset in the input."""
    alternates: list[tuple[str, int, int]] = field(default_factory=list)
    """Alternate streams: name without colons and type, length, offset in the input."""
    ignored: list[int] = field(default_factory=list)
    """Ids of streams that layers do not store: links, properties, object ids, transactions."""


def survey(reader: BackupReader) -> Surveyed:
    """Read the headers and small streams of one file, and skip its content.

    Raises FormatError also for duplicate streams, sparse blocks that go backwards or lack an end, and alternate streams
    that are not plain data.
    """
    found = Surveyed()
    whole: dict[int, bytes] = {}
    streams: set[str] = set()
    blocks_end: int | None = None  # end of the last sparse block, until the empty block
    for stream in reader:
        at = stream.body_at
        if blocks_end is not None and stream.id != SPARSE_BLOCK and found.pieces:
            raise FormatError(BODY, at, "the previous sparse blocks have no end")
        if stream.id in _WHOLE:
            if stream.id in whole:
                raise FormatError(BODY, at, f"a second {_WHOLE[stream.id]}")
            whole[stream.id] = stream.read()
        elif stream.id == DATA:
            if found.has_data:
                raise FormatError(BODY, at, "a second data stream")
            found.has_data = True
            found.sparse = bool(stream.attributes & SPARSE_ATTRIBUTE)
            found.size = stream.size
            if stream.size:
                found.pieces.append((0, stream.size, at))
            elif found.sparse:
                blocks_end = 0
        elif stream.id == SPARSE_BLOCK:
            blocks_end = _record_block(found, stream, blocks_end)
        elif stream.id == ALTERNATE_DATA:
            name = _parse_alternate(stream)
            key = names.folded(name)
            if key in streams:
                raise FormatError(BODY, at, f"a second alternate stream {name[:80]!r}")
            streams.add(key)
            found.alternates.append((name, stream.size, at))
        else:
            found.ignored.append(stream.id)
    if blocks_end is not None and found.pieces:
        raise FormatError(BODY, reader.position, "the sparse blocks have no end")
    found.security_descriptor = whole.get(SECURITY_DATA)
    found.extended_attributes = whole.get(EA_DATA)
    found.reparse = whole.get(REPARSE_DATA)
    return found


def _record_block(found: Surveyed, stream: BackupStream, blocks_end: int | None) -> int | None:
    """Record a sparse block, and return its end; None for the empty block after the last."""
    at = stream.body_at
    if blocks_end is None:
        raise FormatError(BODY, at, "a sparse block outside a sparse file, or after the last one")
    if stream.offset < blocks_end:
        raise FormatError(BODY, at, f"a sparse block at {stream.offset}, before {blocks_end}")
    if not stream.size:
        found.size = stream.offset
        return None
    found.pieces.append((stream.offset, stream.size, at))
    return stream.offset + stream.size


def _parse_alternate(stream: BackupStream) -> str:
    if stream.attributes & SPARSE_ATTRIBUTE:
        raise FormatError(BODY, stream.body_at, f"the alternate stream {stream.name[:80]!r} is sparse")
    name = stream.name
    if not name.startswith(":") or not name.endswith(_DATA_SUFFIX) or len(name) <= 1 + len(_DATA_SUFFIX):
        raise FormatError(BODY, stream.body_at, f"malformed name {name[:80]!r} of an alternate data stream")
    return name[1 : -len(_DATA_SUFFIX)]
