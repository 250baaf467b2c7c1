# SPDX-License-Identifier: Apache-2.0
"""Build recipes: a layer blob without the contents of its files.

A recipe is 8 bytes of magic, with the version as the last byte, and one zstd frame with a checksum. The frame holds a
head and the segments of the uncompressed tar in order. Numbers are varints: little-endian groups of seven bits, the
last without the high bit. Text is UTF-8 with surrogate escapes, after its length in bytes.

==== ==================================================================================================== head a JSON
document of `RecipeHead`'s fields, after its length 0 the end; nothing follows 1 raw bytes (headers, padding, data after
the end marker): length, bytes 2 data of a file: path, size in the tar, number of extents, extents as pairs (0 for the
whole file), CRC-32 in four bytes, little-endian ====
====================================================================================================
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeAlias

from msgspec import Struct

from lamella.digests import Digest, parse_digest
from lamella.errors import FormatError, LamellaError, Unsupported
from lamella.formats.container import FramedReader, encode_varint, frame_compressor
from lamella.streams.recompress.compressors import RecipeMember

if TYPE_CHECKING:
    from lamella.streams.limits import Buffer

__all__ = ["FileSegment", "RecipeHead", "RecipeMember", "RecipeReader", "RecipeWriter", "Segment"]

MAGIC: Final = b"LAYRECP"
VERSION: Final = 1

MAX_HEAD: Final = 64 << 20
MAX_PATH: Final = 1 << 16
MAX_EXTENTS: Final = 1 << 17
MAX_RAW: Final = 1 << 20
"""Maximum size of a raw segment in bytes."""

_END, _RAW, _FILE = range(3)
_STRUCTURE: Final = "recipe"
_LEVEL: Final = 12
_WINDOW_LOG: Final = 23


class RecipeHead(Struct, frozen=True):
    """Digests, sizes in bytes and compression of the whole blob."""

    digest: Digest
    size: int
    diff_id: Digest
    tar_size: int
    compression: str
    """``gzip``, ``zstd`` or ``none``."""
    members: tuple[RecipeMember, ...]
    """Empty for an uncompressed blob."""


class FileSegment(Struct, frozen=True):
    """The data of a file in the tar."""

    path: str
    """Path in the layer: relative, clean, without ``..``."""
    size: int
    """Size in the tar in bytes."""
    crc32: int
    extents: tuple[tuple[int, int], ...] | None
    """Stored parts of the file as (offset, length); None for the whole file."""


Segment: TypeAlias = bytes | FileSegment


class RecipeWriter:
    """Writes a recipe; equal segments give equal bytes with the same version of zstd.

    Only `finish` completes the recipe.
    """

    def __init__(self, write: Callable[[bytes], object], head: RecipeHead) -> None:
        self._compressor = frame_compressor(_LEVEL, _WINDOW_LOG)
        self._write = write
        self._raw = bytearray()
        write(MAGIC + bytes([VERSION]))
        document = json.dumps(_build_document(head), separators=(",", ":"), sort_keys=True).encode("ascii")
        self._put(encode_varint(len(document)) + document)

    def raw(self, data: Buffer) -> None:
        """Write raw bytes of the tar."""
        rest = memoryview(data)
        while rest:
            room = MAX_RAW - len(self._raw)
            self._raw += rest[:room]
            rest = rest[room:]
            if len(self._raw) == MAX_RAW:
                self._flush()

    def file(self, segment: FileSegment) -> None:
        """Write a reference to the data of a file."""
        self._flush()
        path = segment.path.encode("utf-8", "surrogateescape")
        extents = segment.extents or ()
        parts = [
            bytes([_FILE]),
            encode_varint(len(path)),
            path,
            encode_varint(segment.size),
            encode_varint(len(extents)),
        ]
        for offset, length in extents:
            parts += (encode_varint(offset), encode_varint(length))
        parts.append(segment.crc32.to_bytes(4, "little"))
        self._put(b"".join(parts))

    def finish(self) -> None:
        """Write the end marker."""
        self._flush()
        self._put(bytes([_END]))
        self._write(self._compressor.flush())

    def _flush(self) -> None:
        if self._raw:
            self._put(bytes([_RAW]) + encode_varint(len(self._raw)) + self._raw)
            self._raw.clear()

    def _put(self, data: bytes) -> None:
        out = self._compressor.compress(data)
        if out:
            self._write(out)


class RecipeReader:
    """Reads a recipe: the head in the constructor, then the segments, once.

    Memory is bounded by the limits of this module. Raises FormatError for damaged or other files, Unsupported for a
    newer version.
    """

    def __init__(self, file: BinaryIO) -> None:
        magic = file.read(len(MAGIC) + 1)
        if magic[:-1] != MAGIC:
            raise FormatError(_STRUCTURE, 0, "not a recipe")
        if magic[-1] != VERSION:
            raise Unsupported(f"a recipe of version {magic[-1]}", hint="read it with a newer lamella")
        self._bytes = FramedReader(file, _STRUCTURE, _WINDOW_LOG)
        self.head: Final = _read_head(self._bytes)

    def segments(self) -> Iterator[Segment]:
        """Yield the segments of the tar, whose sizes sum up to ``head.tar_size``. Raises FormatError."""
        source = self._bytes
        left = self.head.tar_size
        while (kind := source.take(1)[0]) != _END:
            segment: Segment
            if kind == _RAW:
                segment = source.take(source.number("bytes", MAX_RAW))
                size = len(segment)
            elif kind == _FILE:
                segment = self._read_file()
                size = segment.size
            else:
                raise source.error(f"unknown segment kind {kind}")
            left -= size
            if left < 0:
                raise source.error("the segments are longer than the tar")
            yield segment
        if left:
            raise source.error(f"the segments are {left} bytes shorter than the tar")
        source.expect_end()

    def _read_file(self) -> FileSegment:
        source = self._bytes
        path = source.take(source.number("path", MAX_PATH)).decode("utf-8", "surrogateescape")
        if not path or "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
            raise source.error(f"invalid path {path[:80]!r}")
        size = source.number("size")
        count = source.number("extents", MAX_EXTENTS)
        extents = tuple((source.number("offset"), source.number("length")) for _ in range(count))
        if extents and (size != sum(length for _, length in extents) or not _is_ascending(extents)):
            raise source.error(f"the extents of {path[:80]!r} are unsorted or do not sum up to its size")
        return FileSegment(path, size, int.from_bytes(source.take(4), "little"), extents or None)


def _is_ascending(extents: Sequence[tuple[int, int]]) -> bool:
    return all(one[0] + one[1] <= other[0] for one, other in itertools.pairwise(extents))


def _build_document(head: RecipeHead) -> dict[str, Any]:
    return {
        "digest": head.digest,
        "size": head.size,
        "diff_id": head.diff_id,
        "tar_size": head.tar_size,
        "compression": head.compression,
        "members": [
            {"by": member.by, "size": member.size, "head": base64.b64encode(member.head).decode("ascii")}
            for member in head.members
        ],
    }


def _read_head(source: FramedReader) -> RecipeHead:
    try:
        document = json.loads(source.take(source.number("head", MAX_HEAD)))
        members = tuple(
            RecipeMember(
                _check_text(member["by"]),
                _check_size(member["size"]),
                base64.b64decode(_check_text(member["head"]), validate=True),
            )
            for member in document["members"]
        )
        head = RecipeHead(
            parse_digest(_check_text(document["digest"])),
            _check_size(document["size"]),
            parse_digest(_check_text(document["diff_id"])),
            _check_size(document["tar_size"]),
            _check_text(document["compression"]),
            members,
        )
    except LamellaError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise source.error(f"malformed head: {error!r}"[:300]) from error
    if members and sum(member.size for member in members) != head.tar_size:
        raise source.error("the sizes of the members do not sum up to the tar")
    return head


def _check_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _check_size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise TypeError(f"{value!r} is not a size")
    return value
