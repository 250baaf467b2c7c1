# SPDX-License-Identifier: Apache-2.0
"""Reads EROFS images. Images are untrusted: each offset and length is checked against the size of the image."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

from msgspec import Struct

from lamella.errors import FormatError, Unsupported
from lamella.formats.erofs.structures import (
    CHUNK_BITS,
    CHUNK_INDEXES,
    COMPACT,
    DIRENT,
    EXTENDED,
    HOLE,
    MAX_NAME,
    PREFIX,
    SLOT,
    START,
    XATTR,
    XATTRS,
    Layout,
    Superblock,
)

_STEP: Final = 1 << 20
_MOST_TARGET: Final = 4096
"""Maximum length of a link target in bytes, as in the kernel."""
_WORD: Final = struct.Struct("<I")
_INDEX: Final = struct.Struct("<HHI")


class Inode(Struct, frozen=True):
    """An inode. ``mode`` includes the file type; ``mtime`` is in nanoseconds since the epoch."""

    node: int
    mode: int
    uid: int
    gid: int
    mtime: int
    links: int
    size: int
    layout: int
    union: int
    """Address of the first block, device number, or chunk format."""
    end: int
    """Offset of the inode's end in the image."""
    xattrs: int
    """Length in bytes of the extended attributes that start there."""


class ErofsReader:
    """Reads an image of ``size`` bytes; ``read(offset, length)`` returns fewer bytes only at the end of the image."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        """Raises FormatError, Unsupported (unknown features)."""
        self._read = read
        self.size = size
        head = read(START, (1 << 16) - START)
        self.superblock = Superblock.parse(head)
        self.block = 1 << self.superblock.block_bits
        self._metadata = self.superblock.metadata * self.block

    def _read_at(self, structure: str, offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > self.size:
            raise FormatError(structure, offset, f"{length} bytes exceed the image's {self.size}")
        raw = self._read(offset, length)
        if len(raw) != length:
            raise FormatError(structure, offset, f"only {len(raw)} of {length} bytes left")
        return raw

    def raw(self, node: int) -> tuple[int, bytes]:
        """Offset and bytes of an extended inode. Raises FormatError, also for a compact inode."""
        at = self._metadata + node * SLOT
        raw = self._read_at("EROFS inode", at, EXTENDED.size)
        if not raw[0] & 1:
            raise FormatError("EROFS inode", at, "not an extended inode")
        return at, raw

    def inode(self, node: int) -> Inode:
        """Read an inode. Raises FormatError."""
        at = self._metadata + node * SLOT
        raw = self._read_at("EROFS inode", at, COMPACT.size)
        form = raw[0] | raw[1] << 8
        extended, layout = form & 1, form >> 1 & 7
        if layout > Layout.CHUNKED:
            raise FormatError("EROFS inode", at, f"unknown data layout {layout}")
        sb = self.superblock
        if extended:
            raw = self._read_at("EROFS inode", at, EXTENDED.size)
            _, slots, mode, _, size, union, _, uid, gid, seconds, nanoseconds, links = EXTENDED.unpack(raw)
            if nanoseconds >= 1_000_000_000:
                raise FormatError("EROFS inode", at + 40, f"{nanoseconds} nanoseconds")
            if seconds >> 63:
                seconds -= 1 << 64
        else:
            _, slots, mode, links, size, _, union, _, uid, gid, _ = COMPACT.unpack(raw)
            seconds, nanoseconds = sb.build_time, sb.build_nanoseconds
        xattrs = XATTRS.size + (slots - 1) * 4 if slots else 0
        mtime = seconds * 1_000_000_000 + nanoseconds
        return Inode(node, mode, uid, gid, mtime, links, size, layout, union, at + len(raw), xattrs)

    def names(self, directory: Inode) -> Iterator[tuple[bytes, int]]:
        """Yield the names and node numbers of a directory, without ``.`` and ``..``.

        Raises FormatError, also if names are not in byte order.
        """
        if directory.layout not in (Layout.PLAIN, Layout.INLINE):
            raise Unsupported("this EROFS image has compressed directories")
        last = b""
        for _, length, offset in self.extents(directory):
            for start in range(0, length, self.block):
                held = min(self.block, length - start)
                block = self._read_at("EROFS directory", offset + start, held)
                for name, node in _parse_block(block, offset + start):
                    if name <= last:
                        problem = f"{name[:40]!r} is not sorted after {last[:40]!r}"
                        raise FormatError("EROFS directory", offset + start, problem)
                    last = name
                    if name not in (b".", b".."):
                        yield name, node

    def target(self, link: Inode) -> bytes:
        """Target of a symbolic link. Raises FormatError."""
        if link.size > _MOST_TARGET:
            raise FormatError("EROFS inode", link.end, f"a link target of {link.size} bytes")
        return b"".join(self.read(link))

    def xattrs(self, inode: Inode) -> dict[str, bytes]:
        """Extended attributes of a file, by full names. Raises FormatError, Unsupported."""
        if not inode.xattrs:
            return {}
        raw = self._read_at("EROFS attributes", inode.end, inode.xattrs)
        _, shared = XATTRS.unpack_from(raw)
        at = XATTRS.size + 4 * shared
        if at > len(raw):
            raise FormatError("EROFS attributes", inode.end + 4, f"{shared} shared attributes in {len(raw)} bytes")
        found: dict[str, bytes] = {}
        for number in range(shared):
            (slot,) = _WORD.unpack_from(raw, XATTRS.size + 4 * number)
            place = self.superblock.shared * self.block + slot * 4
            head = self._read_at("EROFS shared attribute", place, XATTR.size)
            length, _, value = XATTR.unpack(head)
            self._parse_xattr(
                found, self._read_at("EROFS shared attribute", place, XATTR.size + length + value), 0, place
            )
        while at + XATTR.size <= len(raw):
            if not any(raw[at : at + XATTR.size]):  # padding at the end
                break
            at = self._parse_xattr(found, raw, at, inode.end)
        return found

    def _parse_xattr(self, found: dict[str, bytes], raw: bytes, at: int, base: int) -> int:
        length, number, size = XATTR.unpack_from(raw, at)
        end: int = at + XATTR.size + length + size
        if end > len(raw):
            raise FormatError("EROFS attribute", base + at, f"{end - at} bytes, but only {len(raw) - at} left")
        if number & 0x80:
            raise Unsupported("this EROFS image uses custom prefixes of extended attributes")
        prefix = PREFIX.get(number)
        if prefix is None:
            raise FormatError("EROFS attribute", base + at + 1, f"unknown prefix {number}")
        name = raw[at + XATTR.size : at + XATTR.size + length]
        if b"\0" in name:
            raise FormatError("EROFS attribute", base + at + XATTR.size, "NUL in a name")
        found[prefix + name.decode("utf-8", "surrogateescape")] = raw[end - size : end]
        return end + -end % 4

    def extents(self, inode: Inode) -> list[tuple[int, int, int]]:
        """Data extents of a file: position in the file, length, offset in the image; ascending. The gaps are zeros.

        Raises FormatError, Unsupported (a compressed file).
        """
        size, layout = inode.size, inode.layout
        if layout in (Layout.COMPRESSED, Layout.COMPRESSED_FULL):
            raise Unsupported(
                "this file is compressed in its EROFS image, and Lamella reads only uncompressed files",
                hint="mount the image, or make it without -z",
            )
        if layout == Layout.CHUNKED:
            return self._find_chunks(inode)
        if not size:
            return []
        found: list[tuple[int, int, int]] = []
        whole = size
        if layout == Layout.INLINE:
            whole = size - size % self.block
            if size > whole:
                tail = inode.end + inode.xattrs
                if tail % self.block + size - whole > self.block:
                    raise FormatError("EROFS inode", inode.end, "the inline data crosses a block boundary")
                found.append((whole, size - whole, self._check_range(tail, size - whole)))
        if whole:
            if inode.union == HOLE:
                raise FormatError("EROFS inode", inode.end, "no block address for its content")
            found.insert(0, (0, whole, self._check_range(inode.union * self.block, whole)))
        return found

    def _check_range(self, offset: int, length: int) -> int:
        if offset + length > self.size:
            raise FormatError("EROFS content", offset, f"{length} bytes exceed the image's {self.size}")
        return offset

    def _find_chunks(self, inode: Inode) -> list[tuple[int, int, int]]:
        chunk = 1 << self.superblock.block_bits + (inode.union & CHUNK_BITS)
        entry = _INDEX if inode.union & CHUNK_INDEXES else _WORD
        count = -(-inode.size // chunk)
        at = inode.end + inode.xattrs
        at += -at % entry.size
        if at + count * entry.size > self.size:
            raise FormatError("EROFS chunks", at, f"{count} chunks exceed the image's {self.size} bytes")
        found: list[tuple[int, int, int]] = []
        position = 0
        for step in range(0, count, 1 << 14):
            held = min(count - step, 1 << 14)
            raw = self._read_at("EROFS chunks", at + step * entry.size, held * entry.size)
            for fields in entry.iter_unpack(raw):
                address = fields[-1]
                length = min(chunk, inode.size - position)
                if address != HOLE:
                    if len(fields) > 1 and fields[1] & self._device_mask():
                        raise Unsupported("this EROFS image stores content on another device")
                    offset = self._check_range(address * self.block, length)
                    if found and sum(found[-1][:2]) == position and found[-1][2] + found[-1][1] == offset:
                        first, before, begin = found[-1]
                        found[-1] = (first, before + length, begin)
                    else:
                        found.append((position, length, offset))
                position += length
        return found

    def _device_mask(self) -> int:
        devices = self.superblock.devices
        return (1 << devices.bit_length()) - 1 if devices else 0

    def read(self, inode: Inode) -> Iterator[bytes]:
        """Yield the bytes of `extents`, without holes. Raises like `extents`."""
        for _, length, offset in self.extents(inode):
            while length:
                step = min(length, _STEP)
                yield self._read_at("EROFS content", offset, step)
                offset += step
                length -= step


def _parse_block(block: bytes, offset: int) -> Iterator[tuple[bytes, int]]:
    """Parse the directory block at ``offset`` in the image."""
    if len(block) < DIRENT.size:
        raise FormatError("EROFS directory", offset, f"a block of {len(block)} bytes")
    first = DIRENT.unpack_from(block)[1]
    if first < DIRENT.size or first % DIRENT.size or first > len(block):
        raise FormatError("EROFS directory", offset + 8, f"the first name starts at {first}")
    count = first // DIRENT.size
    starts = [DIRENT.unpack_from(block, number * DIRENT.size) for number in range(count)]
    for number, (node, start, _) in enumerate(starts):
        end = starts[number + 1][1] if number + 1 < count else len(block)
        if not first <= start < end <= len(block):
            raise FormatError("EROFS directory", offset + number * DIRENT.size, f"a name from {start} to {end}")
        name = block[start:end]
        if number + 1 == count:
            name = name.partition(b"\0")[0]
        if not name or len(name) > MAX_NAME or b"/" in name or b"\0" in name:
            raise FormatError("EROFS directory", offset + start, f"invalid name {name[:40]!r}")
        yield name, node
