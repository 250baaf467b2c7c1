# SPDX-License-Identifier: Apache-2.0
"""Hostile tars, written byte by byte, which tarfile and other writers refuse to make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

BLOCK: Final = 512


def octal(number: int, width: int) -> bytes:
    """Encode a number field: octal, or GNU base-256 for negative and large numbers."""
    if 0 <= number < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, number)
    return bytes([0x80 if number >= 0 else 0xFF]) + (number & ((1 << 8 * (width - 1)) - 1)).to_bytes(width - 1, "big")


def header(
    name: bytes,
    flag: bytes = b"0",
    *,
    size: int = 0,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    linkname: bytes = b"",
    device: tuple[int, int] = (0, 0),
    prefix: bytes = b"",
    magic: bytes = b"ustar\x0000",
) -> bytes:
    """Return one header block with a correct checksum; other fields are taken as given."""
    block = bytearray(BLOCK)
    block[0:100] = name[:100].ljust(100, b"\0")
    block[100:108] = octal(mode, 8)
    block[108:116] = octal(uid, 8)
    block[116:124] = octal(gid, 8)
    block[124:136] = octal(size, 12)
    block[136:148] = octal(mtime, 12)
    block[148:156] = b" " * 8
    block[156:157] = flag
    block[157:257] = linkname[:100].ljust(100, b"\0")
    block[257:265] = magic
    block[329:337] = octal(device[0], 8)
    block[337:345] = octal(device[1], 8)
    block[345:500] = prefix[:155].ljust(155, b"\0")
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    """Pad ``data`` with zeros to a full block."""
    return data + bytes(-len(data) % BLOCK)


def pax(records: Mapping[str, bytes], flag: bytes = b"x") -> bytes:
    """Return an extended header."""
    data = bytearray()
    for key, value in records.items():
        line = b" %b=%b\n" % (key.encode("utf-8", "surrogateescape"), value)
        total = len(line) + 1
        while total != len(line) + len(str(total)):
            total = len(line) + len(str(total))
        data += str(total).encode() + line
    return header(b"pax", flag, size=len(data)) + padded(bytes(data))


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class Tar:
    """A layer under construction; names are written as given, without checks."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def raw(self, data: bytes) -> Tar:
        """Append raw blocks."""
        self._parts.append(data)
        return self

    def add(
        self,
        name: str | bytes,
        flag: bytes,
        *,
        data: bytes = b"",
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        mtime: int = 0,
        target: str | bytes = b"",
        device: tuple[int, int] = (0, 0),
        xattrs: Mapping[str, bytes] | None = None,
        records: Mapping[str, bytes] | None = None,
    ) -> Tar:
        """Append a member; ``mtime`` is in nanoseconds. Values that do not fit the header become PAX records."""
        name = encoded(name) if isinstance(name, str) else name
        target = encoded(target) if isinstance(target, str) else target
        extended: dict[str, bytes] = {}
        if len(name) > 100:
            extended["path"] = name
        if len(target) > 100:
            extended["linkpath"] = target
        seconds, fraction = divmod(mtime, 1_000_000_000)
        if fraction:
            whole, rest = divmod(abs(mtime), 1_000_000_000)
            extended["mtime"] = f"{'-' if mtime < 0 else ''}{whole}.{rest:09d}".encode()
        for key, value in (xattrs or {}).items():
            extended["SCHILY.xattr." + key] = value
        extended |= records or {}
        if extended:
            self._parts.append(pax(extended))
        self._parts.append(
            header(
                name,
                flag,
                size=len(data),
                mode=mode,
                uid=uid,
                gid=gid,
                mtime=seconds,
                linkname=target,
                device=device,
            )
        )
        self._parts.append(padded(data))
        return self

    def file(
        self,
        name: str | bytes,
        data: bytes = b"layer",
        mode: int = 0o644,
        *,
        uid: int = 0,
        gid: int = 0,
        mtime: int = 0,
        xattrs: Mapping[str, bytes] | None = None,
    ) -> Tar:
        return self.add(name, b"0", data=data, mode=mode, uid=uid, gid=gid, mtime=mtime, xattrs=xattrs)

    def directory(
        self,
        name: str | bytes,
        mode: int = 0o755,
        *,
        uid: int = 0,
        gid: int = 0,
        mtime: int = 0,
        xattrs: Mapping[str, bytes] | None = None,
    ) -> Tar:
        return self.add(name, b"5", mode=mode, uid=uid, gid=gid, mtime=mtime, xattrs=xattrs)

    def symlink(
        self, name: str | bytes, target: str | bytes, *, uid: int = 0, gid: int = 0, mtime: int = 0, mode: int = 0o777
    ) -> Tar:
        return self.add(name, b"2", target=target, mode=mode, uid=uid, gid=gid, mtime=mtime)

    def link(self, name: str | bytes, target: str | bytes, *, mode: int = 0o644, mtime: int = 0) -> Tar:
        """Append a hard link."""
        return self.add(name, b"1", target=target, mode=mode, mtime=mtime)

    def node(
        self,
        name: str | bytes,
        flag: bytes,
        device: tuple[int, int] = (0, 0),
        mode: int = 0o644,
        *,
        uid: int = 0,
        gid: int = 0,
        xattrs: Mapping[str, bytes] | None = None,
    ) -> Tar:
        """Append a character device (``3``), a block device (``4``) or a fifo (``6``)."""
        return self.add(name, flag, device=device, mode=mode, uid=uid, gid=gid, xattrs=xattrs)

    def whiteout(self, path: str) -> Tar:
        """Append a whiteout of ``path``."""
        head, slash, name = path.rpartition("/")
        return self.file(f"{head}{slash}.wh.{name}", b"", 0)

    def opaque(self, directory: str = "") -> Tar:
        return self.file(f"{directory}/.wh..wh..opq" if directory else ".wh..wh..opq", b"", 0)

    def sparse(self, name: str, size: int, pieces: Sequence[tuple[int, bytes]], *, mode: int = 0o644) -> Tar:
        """Append a sparse file, in GNU sparse format 1.0."""
        lines = [len(pieces), *(number for offset, data in pieces for number in (offset, len(data)))]
        table = padded("".join(f"{line}\n" for line in lines).encode())
        data = table + b"".join(data for _, data in pieces)
        records = {
            "GNU.sparse.major": b"1",
            "GNU.sparse.minor": b"0",
            "GNU.sparse.name": encoded(name),
            "GNU.sparse.realsize": str(size).encode(),
        }
        return self.add("GNUSparseFile.0/x", b"0", data=data, mode=mode, records=records)

    def done(self) -> bytes:
        """Return the archive with its end marker."""
        return b"".join(self._parts) + bytes(2 * BLOCK)

    def unended(self) -> bytes:
        """Return the archive without its end marker."""
        return b"".join(self._parts)


def buffers(data: bytes | Iterable[bytes], step: int = 1 << 20) -> Callable[[], memoryview]:
    """Return a reader callback that returns the next part of ``data``, empty at the end."""
    if isinstance(data, bytes):
        view = memoryview(data)
        parts = iter([view[at : at + step] for at in range(0, len(view), step)])
    else:
        parts = map(memoryview, data)
    return lambda: next(parts, memoryview(b""))
