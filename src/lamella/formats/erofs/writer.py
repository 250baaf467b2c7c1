# SPDX-License-Identifier: Apache-2.0
"""Writes EROFS images: contents as they arrive, then metadata. Equal files in equal order give equal bytes.

Blocks have 4,096 bytes. All inodes are extended, and the partial last block of a content follows the inode if it fits
into its block. Nothing is compressed and no attributes are shared.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct, field

from lamella.errors import Exhausted
from lamella.formats.erofs.structures import (
    CHUNK_BITS,
    CHUNKED,
    DIRENT,
    EXTENDED,
    HOLE,
    SLOT,
    XATTRS,
    Layout,
    Superblock,
    encode_device,
    pack_xattrs,
)

BITS: Final = 12
BLOCK: Final = 1 << BITS

_MOST_CHUNKS: Final = 16
"""Log2 of the maximum number of chunks in one file; larger files get larger chunks."""
_TYPES: Final = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
Buffer = bytes | bytearray | memoryview


class Placed(Struct, frozen=True):
    """Location of a written content."""

    size: int
    block: int = HOLE
    """Address of the first full block."""
    tail: tuple[int, int] | None = None
    """Offset and length in the spill file of the data after the inode."""
    chunks: tuple[int, Sequence[int]] | None = None
    """Content with holes: log2 of blocks per chunk, and the address of each chunk."""


class NewInode(Struct, eq=False):
    """An inode to write. ``mode`` includes the file type, ``mtime`` is in nanoseconds since the epoch."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    content: Placed | None = None
    """Of a regular file."""
    target: bytes = b""
    """Of a symbolic link."""
    device: tuple[int, int] = (0, 0)
    children: dict[bytes, NewInode] = field(default_factory=dict)
    """Of a directory. An inode under several names is a hard link; directories have a single name."""


class _File(Struct, eq=False):
    """An inode with its position in the image."""

    inode: NewInode
    parent: _File | None
    body: bytes
    """Packed attributes."""
    at: int = 0
    """Offset of the inode from the first metadata block."""
    links: int = 0
    size: int = 0
    union: int = HOLE
    layout: Layout = Layout.INLINE
    tail: bytes | tuple[int, int] = b""
    """Data after the attributes, or its location in the spill file."""
    names: dict[bytes, _File] = field(default_factory=dict)
    """Of a directory, including ``.`` and ``..``."""


class ErofsWriter:
    """Writes one image by ``write(offset, bytes)``; ``spill`` and ``unspill`` store partial blocks until `finish`."""

    def __init__(
        self,
        write: Callable[[int, Buffer], None],
        spill: Callable[[int, Buffer], None],
        unspill: Callable[[int, int], bytes],
    ) -> None:
        self._write = write
        self._spill = spill
        self._unspill = unspill
        self._next = 1
        """First free block."""
        self._spilled = 0
        self._chunked = False

    def place(
        self, size: int, chunks: Iterable[Buffer], extents: Sequence[tuple[int, int]] | None, xattrs: int = 0
    ) -> Placed:
        """Write a content of ``size`` bytes; ``extents`` and ``chunks`` are those of `lamella.changes.model.Content`.

        ``xattrs`` is the packed size of the file's attributes in bytes.
        """
        if extents is not None:
            return self._place_chunks(size, chunks, extents)
        whole = size - size % BLOCK
        if size - whole > BLOCK - EXTENDED.size - xattrs:
            whole = size  # the rest does not fit after the inode
        first, tail = self._next, self._spilled
        at, end = 0, first * BLOCK
        for chunk in chunks:
            view = memoryview(chunk)
            head = view[: max(0, whole - at)]
            if head:
                self._write(end + at, head)
            rest = view[len(head) :]
            if rest:
                self._spill(self._spilled, rest)
                self._spilled += len(rest)
            at += len(view)
        self._allocate(-(-whole // BLOCK))
        return Placed(size, first if whole else HOLE, (tail, self._spilled - tail) if self._spilled > tail else None)

    def _allocate(self, blocks: int) -> int:
        first = self._next
        self._next += blocks
        if self._next >= HOLE:
            raise Exhausted("an EROFS image holds 16 TiB at most")
        return first

    def _place_chunks(self, size: int, chunks: Iterable[Buffer], extents: Sequence[tuple[int, int]]) -> Placed:
        bits = 0
        while size > BLOCK << bits + _MOST_CHUNKS:
            bits += 1
        if bits > CHUNK_BITS:
            raise Exhausted(f"a file of {size} bytes is too large for an EROFS image")
        self._chunked = True
        chunk = BLOCK << bits
        addresses = [HOLE] * -(-size // chunk)
        data = iter(chunks)
        view = memoryview(b"")
        for offset, left in extents:
            while left:
                if not view:
                    view = memoryview(next(data))
                    continue
                number, within = divmod(offset, chunk)
                part = view[: min(left, chunk - within)]
                if addresses[number] == HOLE:
                    addresses[number] = self._allocate(-(-min(chunk, size - number * chunk) // BLOCK))
                self._write(addresses[number] * BLOCK + within, part)
                offset, left, view = offset + len(part), left - len(part), view[len(part) :]
        return Placed(size, chunks=(bits, addresses))

    def finish(self, root: NewInode) -> int:
        """Write the metadata, and return the size of the image in bytes.

        Raises InvalidInput for attributes and devices that an image cannot hold.
        """
        files = _arrange(root)
        for file in files:
            if file.names:
                self._place_directory(file)
            elif file.layout is Layout.PLAIN and file.inode.target:
                file.union = self._allocate(1)
                self._write(file.union * BLOCK, file.inode.target.ljust(BLOCK, b"\0"))
        first = self._next
        end = 0
        for file in files:
            raw = self._pack_inode(file)
            self._write(first * BLOCK + file.at, raw)
            end = file.at + len(raw)
        if end % BLOCK:
            self._write(first * BLOCK + end, bytes(-end % BLOCK))
        blocks = first + -(-end // BLOCK)
        features = CHUNKED if self._chunked else 0
        head = Superblock(BITS, files[0].at // SLOT, len(files), blocks, first, incompatible=features)
        self._write(0, head.pack())
        return blocks * BLOCK

    def _place_directory(self, file: _File) -> None:
        """Write the full blocks of a directory, once all files have node numbers."""
        blocks = _pack_directory(file)
        file.size = BLOCK * (len(blocks) - 1) + len(blocks[-1])
        if file.layout is Layout.INLINE:
            file.tail = blocks.pop()
        if blocks:
            file.union = self._allocate(len(blocks))
            for number, block in enumerate(blocks):
                self._write((file.union + number) * BLOCK, block.ljust(BLOCK, b"\0"))

    def _pack_inode(self, file: _File) -> bytes:
        inode, body, tail = file.inode, file.body, file.tail
        seconds, nanoseconds = divmod(inode.mtime, 1_000_000_000)
        slots = (len(body) - XATTRS.size) // 4 + 1 if body else 0
        raw = EXTENDED.pack(
            1 | file.layout << 1, slots, inode.mode, 0, file.size, file.union, 0, inode.uid, inode.gid,
            seconds & 0xFFFFFFFFFFFFFFFF, nanoseconds, file.links,
        )  # fmt: skip
        return raw + body + (self._unspill(*tail) if isinstance(tail, tuple) else tail)


def restate_inode(inode: bytes, mode: int, uid: int, gid: int, mtime: int) -> bytes:
    """Replace the metadata in the packed inode of a directory; ``mode`` gives the permission bits."""
    fields = list(EXTENDED.unpack(inode))
    seconds, nanoseconds = divmod(mtime, 1_000_000_000)
    fields[2], fields[7:11] = fields[2] & ~0o7777 | mode, (uid, gid, seconds & 0xFFFFFFFFFFFFFFFF, nanoseconds)
    return EXTENDED.pack(*fields)


def _arrange(root: NewInode) -> list[_File]:
    """List all inodes in walk order, with their positions; the first slot stays free.

    Node number 0 is unused because directory listings take it for a deleted file.
    """
    order: list[_File] = []
    known: dict[int, _File] = {}
    first = _File(root, None, pack_xattrs(root.xattrs))
    first.names = {b".": first, b"..": first}
    todo = [first]
    at = SLOT
    while todo:
        file = todo.pop()
        order.append(file)
        if not stat.S_ISDIR(file.inode.mode):
            at = _lay_out(file, at)
            continue
        file.links += 2
        below: list[_File] = []
        for name, inode in sorted(file.inode.children.items()):
            child = known.get(id(inode))
            if child is None:
                child = known[id(inode)] = _File(inode, file, pack_xattrs(inode.xattrs))
                below.append(child)
            file.names[name] = child
            if stat.S_ISDIR(inode.mode):
                file.links += 1
                child.names = {b".": child, b"..": file}
            else:
                child.links += 1
        file.names = dict(sorted(file.names.items()))
        at = _lay_out(file, at)
        todo.extend(reversed(below))
    return order


def _lay_out(file: _File, at: int) -> int:
    """Choose the layout of a file, and the position of its inode at or after ``at``; return the next free position."""
    inode = file.inode
    head = EXTENDED.size + len(file.body)
    kind = stat.S_IFMT(inode.mode)
    content = inode.content
    tail = 0
    if file.names:
        tail = _measure_last_block(file)
    elif kind == stat.S_IFLNK:
        file.size = tail = len(inode.target)
        file.tail = inode.target
    elif content is not None:
        file.size, file.union = content.size, content.block
        if content.chunks is not None:
            bits, addresses = content.chunks
            file.layout, file.union = Layout.CHUNKED, bits
            file.tail = struct.pack(f"<{len(addresses)}I", *addresses)
            tail = len(file.tail)
        elif content.tail is not None:
            file.tail, tail = content.tail, content.tail[1]
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        file.union = encode_device(*inode.device)
    if file.layout is Layout.INLINE and (not tail or head + tail > BLOCK):
        assert not isinstance(file.tail, tuple)  # noqa: S101  # `place` knows the size of the attributes
        file.layout, file.tail, tail = Layout.PLAIN, b"", 0
    at += -at % SLOT
    # An inode, and inline data together with it, must not cross a block boundary.
    if at % BLOCK + (head + tail if file.layout is Layout.INLINE else EXTENDED.size) > BLOCK:
        at += -at % BLOCK
    file.at = at
    return at + head + tail


def _measure_last_block(directory: _File) -> int:
    used = 0
    for name in directory.names:
        need = DIRENT.size + len(name)
        used = need if used + need > BLOCK else used + need
    return used


def _pack_directory(directory: _File) -> list[bytes]:
    """Pack the blocks of a directory; all are full except the last."""
    blocks: list[bytes] = []
    held: list[tuple[bytes, _File]] = []
    used = 0
    for name, child in directory.names.items():
        need = DIRENT.size + len(name)
        if used + need > BLOCK:
            blocks.append(_pack_entries(held).ljust(BLOCK, b"\0"))
            held, used = [], 0
        held.append((name, child))
        used += need
    blocks.append(_pack_entries(held))
    return blocks


def _pack_entries(entries: list[tuple[bytes, _File]]) -> bytes:
    at = DIRENT.size * len(entries)
    head = bytearray()
    for name, file in entries:
        head += DIRENT.pack(file.at // SLOT, at, _TYPES[stat.S_IFMT(file.inode.mode)])
        at += len(name)
    return bytes(head) + b"".join(name for name, _ in entries)
