# SPDX-License-Identifier: Apache-2.0
"""The regions of a CIM that is written, and deduplicated file contents in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from isal.isal_zlib import crc32

from lamella.errors import InvalidInput, SizeMismatch
from lamella.formats.cim.structures import (
    ALIGNMENT,
    HEADER,
    MAX_LENGTH,
    REGION,
    RegionType,
    Stream,
    StreamType,
    place,
    region_header,
    region_offset,
)

if TYPE_CHECKING:
    from hashlib import _Hash

Buffer: TypeAlias = bytes | bytearray | memoryview

SMALL: Final = 4096
"""Size in bytes below which files go to the region of small files. The limit of Windows is not known."""
LARGE: Final = 1 << 14
"""Size in bytes from which contents are compared by size before their digest is computed."""

_START: Final = HEADER.size + REGION.size
_ZEROS: Final = bytes(max(ALIGNMENT.values()))
_STEP: Final = 1 << 20
ROOM: Final = 1 << 20
"""Size of a region's buffer in bytes."""


class Output(Protocol):
    """A region file that is written."""

    def swap(self, buffer: memoryview, filled: int) -> memoryview:
        """Append the first ``filled`` bytes of ``buffer``, which the caller must not use any more.

        Returns the next buffer of `ROOM` bytes, with any content.
        """
        ...

    def truncate(self, size: int) -> object:
        """Truncate to ``size`` bytes."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Read appended bytes."""
        ...


class Region:
    """An append-only region; call `flush` before the file is used elsewhere."""

    __slots__ = ("_base", "_buffer", "_digest", "_filled", "_mask", "_output", "size")

    def __init__(self, kind: RegionType, number: int, output: Output) -> None:
        self._base = region_offset(number, 0)
        self._mask = ALIGNMENT[kind] - 1
        self._output = output
        self._digest = hashlib.sha256() if kind is RegionType.METADATA else None
        """Of metadata, which is never truncated."""
        self._buffer = memoryview(bytearray(ROOM))
        self._filled = 0
        self.size = 0
        self.append(region_header(kind, kind))

    def align(self) -> int:
        """Pad to the alignment of objects, and return the region offset."""
        gap = -self.size & self._mask
        if gap:
            self.append(_ZEROS[:gap])
        return self._base | self.size

    def append(self, data: Buffer) -> None:
        """Append bytes to the current object."""
        size = len(data)
        self.size += size
        start = self._filled
        stop = start + size
        if stop <= ROOM:
            self._buffer[start:stop] = data
            self._filled = stop
            return
        with memoryview(data) as view:
            done = 0
            while done < size:
                start = self._filled
                step = min(size - done, ROOM - start)
                self._buffer[start : start + step] = view[done : done + step]
                self._filled = start + step
                done += step
                if self._filled == ROOM:
                    self.flush()

    def put(self, data: Buffer) -> int:
        """Append an object, and return its region offset."""
        at = self.size
        gap = -at & self._mask
        start = self._filled + gap
        stop = start + len(data)
        if stop > ROOM:
            offset = self.align()
            self.append(data)
            return offset
        buffer = self._buffer
        if gap:
            buffer[self._filled : start] = _ZEROS[:gap]
        buffer[start:stop] = data
        self._filled = stop
        at += gap
        self.size = at + len(data)
        return self._base | at

    def flush(self) -> None:
        """Write the buffer to the output."""
        if self._filled:
            if self._digest is not None:
                self._digest.update(self._buffer[: self._filled])
            filled, self._filled = self._filled, 0
            self._buffer = self._output.swap(self._buffer, filled)

    def truncate(self, size: int) -> None:
        """Truncate to ``size`` bytes."""
        handed_over = self.size - self._filled
        self.size = size
        self._filled = max(0, size - handed_over)
        if size < handed_over:
            self._output.truncate(size)

    def read(self, at: int, length: int) -> bytes:
        """Read ``length`` bytes at ``at``."""
        handed_over = self.size - self._filled
        if at >= handed_over:
            return bytes(self._buffer[at - handed_over : at - handed_over + length])
        if at + length > handed_over:
            self.flush()
        return self._output.read(at, length)

    def objects(self) -> Iterator[bytes]:
        """Yield all objects so far, in pieces."""
        for at in range(_START, self.size, _STEP):
            yield self.read(at, min(_STEP, self.size - at))

    def state(self) -> _Hash:
        """SHA-256 of the metadata region so far."""
        assert self._digest is not None  # noqa: S101  # only called on the metadata region
        self.flush()
        return self._digest.copy()


class Contents:
    """File contents in the two data regions, deduplicated. Each takes about 100 bytes of memory."""

    __slots__ = ("_data", "_derived", "_digests", "_empty", "_firsts", "_sizes", "_small")

    def __init__(self, small: Region, data: Region, nothing: int) -> None:
        """``nothing`` is the region offset of empty streams."""
        self._small, self._data = small, data
        self._empty = Stream(nothing)
        self._firsts: dict[int, int] = {}
        """CRC-32 and size of a small content -> region offset of the first one."""
        self._sizes: dict[int, int] = {}
        """Size of a large content -> region offset of the one not yet hashed; 0 if all are hashed."""
        self._digests: dict[bytes, int] = {}
        """SHA-256 of contents that the other two tables cannot distinguish -> region offset."""
        self._derived: list[bytes] = []
        """Digests of derived contents, in order."""

    def store(self, chunks: Iterable[Buffer], size: int, *, derived: bool = False) -> Stream:
        """Store the content of a file or stream, unless it is already stored.

        ``derived`` marks contents that do not follow from the ``contents`` passed to `add_to`. Raises SizeMismatch if
        ``chunks`` have more or less than ``size`` bytes, InvalidInput beyond 2**48 - 1.
        """
        if size >= LARGE or derived:
            return self._store_large(chunks, size, derived)
        data: Buffer
        if type(chunks) is tuple and len(chunks) == 1 and len(chunks[0]) == size:
            data = chunks[0]
        else:
            data = _join(chunks, size)
        if not size:
            return self._empty
        key = crc32(data) << 14 | size
        offset = self._firsts.get(key)
        region = self._small if size < SMALL else self._data
        if offset is None:
            offset = self._firsts[key] = region.put(data)
        elif region.read(place(offset)[1], size) != bytes(data):
            digest = hashlib.sha256(data).digest()
            other = self._digests.get(digest)
            offset = self._digests[digest] = region.put(data) if other is None else other
        return Stream(offset, size)

    def _store_large(self, chunks: Iterable[Buffer], size: int, derived: bool) -> Stream:
        _check_length(size)
        if size < LARGE:
            data = _join(chunks, size)
            self._derived.append(hashlib.sha256(data).digest())
            return self.store((data,), size)
        known = self._sizes.get(size)
        if known is None:
            offset = self._sizes[size] = self._write(chunks, size, None)
        else:
            offset = self._deduplicate(chunks, size, known)
        if derived:
            self._derived.append(self._hash_stored(offset, size))
        return Stream(offset, size)

    def _deduplicate(self, chunks: Iterable[Buffer], size: int, other: int) -> int:
        """Store a content whose size is already known; truncate the region again if it is a duplicate."""
        if other:
            self._sizes[size] = 0
            self._digests.setdefault(self._hash_stored(other, size), other)
        before = self._data.size
        state = hashlib.sha256()
        offset = self._write(chunks, size, state)
        digest = state.digest()
        found = self._digests.setdefault(digest, offset)
        if found != offset:
            self._data.truncate(before)
        return found

    def _write(self, chunks: Iterable[Buffer], size: int, state: _Hash | None) -> int:
        region = self._data
        offset = region.align()
        done = 0
        for chunk in chunks:
            done += len(chunk)
            if done > size:
                raise _mismatch(size, "more")
            if state is not None:
                state.update(chunk)
            region.append(chunk)
        if done != size:
            raise _mismatch(size, done)
        return offset

    def _hash_stored(self, offset: int, size: int) -> bytes:
        """Compute the digest of a stored large content."""
        state, end = hashlib.sha256(), place(offset)[1] + size
        for at in range(end - size, end, _STEP):
            state.update(self._data.read(at, min(_STEP, end - at)))
        return state.digest()

    def zeros(self, size: int) -> Stream:
        """A sparse stream of zeros. Raises InvalidInput beyond 2**48 - 1."""
        _check_length(size)
        return Stream(0, size, StreamType.DATA, sparse=True) if size else self._empty

    def add_to(self, state: _Hash, contents: bytes | None) -> None:
        """Update ``state`` with all contents, or with ``contents``, if given, as their digest."""
        state.update(b"".join(self._derived))
        if contents is not None:
            state.update(contents)
            return
        for region in (self._small, self._data):
            for piece in region.objects():
                state.update(piece)


def _check_length(size: int) -> None:
    if size > MAX_LENGTH:
        raise InvalidInput(f"a stream of {size} bytes exceeds the limit of {MAX_LENGTH}")


def _join(chunks: Iterable[Buffer], size: int) -> bytes:
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > size:
            raise _mismatch(size, "more")
    if len(data) != size:
        raise _mismatch(size, len(data))
    return bytes(data)


def _mismatch(size: int, actual: int | str) -> SizeMismatch:
    return SizeMismatch("content of a file in a CIM", expected=size, actual=actual)
