# SPDX-License-Identifier: Apache-2.0
"""Writes tar archives byte for byte like Go's archive/tar (1.10 and newer).

A member gets one ustar header if its values fit. Otherwise a PAX header with only the necessary records, sorted,
precedes it. GNU's format is never written; `TarWriter.sparse_member`, which Go has no equal of, uses PAX too.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeAlias, TypeVar
from zlib import adler32

from lamella.errors import Conflict, InvalidInput, SizeMismatch
from lamella.formats.tar import pax as extended
from lamella.formats.tar.fields import BLOCK, HEADER_ONLY, MAX_NUMBER, ZEROS
from lamella.formats.tar.sparse import MAX_EXTENTS
from lamella.times import SECOND, format_pax_time

K = TypeVar("K")

Buffer: TypeAlias = bytes | bytearray | memoryview

_NAME: Final = 100
_PREFIX: Final = 155
_OWNER_NAME: Final = 32
_SHORT: Final = 1 << 21
"""Limit (exclusive) of an octal field of 8 bytes: modes, ids, device numbers."""
_LONG: Final = 1 << 33
"""Limit (exclusive) of an octal field of 12 bytes: sizes and times."""

_NO_RECORDS: Final[Mapping[str, bytes]] = MappingProxyType({})
_NOT_ASCII: Final = bytes([0, *range(128, 256)])
_NEVER_A_DIRECTORY: Final = frozenset("0346")
_TYPES: Final = frozenset("0123456")

_EXTENSION_REST: Final = b"ustar\x0000" + bytes(BLOCK - 265)

_REMEMBERED: Final = 4096
_owners: dict[tuple[int, int, int], bytes] = {}
_rests: dict[tuple[tuple[int, int], str, str], bytes] = {}


def header(
    name: str,
    typeflag: str,
    *,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    linkname: str = "",
    device: tuple[int, int] = (0, 0),
    records: Mapping[str, bytes] = _NO_RECORDS,
    uname: str = "",
    gname: str = "",
    pax: bool = True,
) -> bytes:
    """Format the header blocks of one member, byte for byte like Go.

    ``typeflag`` is one of ``0`` to ``6``; the caller appends the slash to the name of a directory. ``mtime`` is in
    nanoseconds. With ``pax``, as containerd writes files (Go's ``Format: FormatPAX``), a fraction of a second is kept
    in a PAX record; without, as it writes whiteouts (no format given), the time is rounded to the second. ``records``
    are further PAX records, except those of the arguments of this function and of sparse maps.

    Raises InvalidInput for values that neither ustar nor PAX can hold.
    """
    # Parameters, not a value object: creating one for each of millions of members would cost more than the formatting.
    if typeflag not in _TYPES:
        raise InvalidInput(f"unknown typeflag {typeflag!r}")
    if size and typeflag in HEADER_ONLY:
        raise InvalidInput(f"{name!r} has the typeflag {typeflag!r}, which allows no data, but a size of {size} bytes")
    if name.endswith("/") and typeflag in _NEVER_A_DIRECTORY:
        raise InvalidInput(f"{name!r} ends with a slash, but has the typeflag {typeflag!r}")
    path = name.encode("utf-8", "surrogateescape")
    link = linkname.encode("utf-8", "surrogateescape") if linkname else b""
    if not pax:
        mtime = (mtime + SECOND // 2) // SECOND * SECOND
    seconds = mtime // SECOND
    owner = _owners.get((mode, uid, gid))
    rest = _rests.get((device, uname, gname))
    if (
        owner is None
        or rest is None
        or records
        or len(path) > _NAME
        or len(link) > _NAME
        or not path.isascii()
        or not link.isascii()
        or b"\0" in path
        or b"\0" in link
        or not 0 <= size < _LONG
        or not 0 <= seconds < _LONG
        or seconds * SECOND != mtime
    ):
        return _format_header(path, typeflag, mode, uid, gid, size, mtime, link, device, records, uname, gname)
    return _format_block(b"%b%b%011o\0%011o\0" % (path.ljust(_NAME, b"\0"), owner, size, seconds), typeflag, link, rest)


def _format_block(head: bytes, typeflag: str, link: bytes, rest: bytes) -> bytes:
    """Format one header block from the part before the checksum and the parts after it.

    The low half of an Adler-32 is the sum of its bytes plus one while that is under 65521, which 512 bytes of ASCII
    always are.
    """
    tail = b"%b%b%b" % (typeflag.encode(), link.ljust(_NAME, b"\0"), rest)
    return b"%b%06o\0 %b" % (head, (adler32(tail, adler32(head)) & 0xFFFF) - 1 + 8 * 0x20, tail)


def _format_header(
    path: bytes,
    typeflag: str,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    link: bytes,
    device: tuple[int, int],
    records: Mapping[str, bytes],
    uname: str,
    gname: str,
    sparse: Mapping[str, bytes] = _NO_RECORDS,
) -> bytes:
    seconds = mtime // SECOND
    if not (0 <= mode < _SHORT and 0 <= device[0] < _SHORT and 0 <= device[1] < _SHORT):
        raise InvalidInput(f"a tar header of {path!r} cannot hold mode {mode:#o} and device {device}")
    if min(uid, gid, size) < 0 or max(uid, gid, size, abs(seconds)) > MAX_NUMBER:
        raise InvalidInput(f"a tar header of {path!r} cannot hold uid {uid}, gid {gid}, size {size}, mtime {seconds}")

    needed = {**_check_records(records), **sparse} if records or sparse else {}
    prefix, suffix = b"", path
    if _exceeds(path, _NAME):
        split = None if needed else _split_path(path)
        if split is None:
            needed["path"] = path
        else:
            prefix, suffix = split
    if _exceeds(link, _NAME):
        needed["linkpath"] = link
    rest = _rests.get((device, uname, gname))
    if rest is None:
        owner, group = uname.encode("utf-8", "surrogateescape"), gname.encode("utf-8", "surrogateescape")
        if _exceeds(owner, _OWNER_NAME):
            needed["uname"] = owner
        if _exceeds(group, _OWNER_NAME):
            needed["gname"] = group
        fields = b"ustar\x0000", _fit(owner, _OWNER_NAME), _fit(group, _OWNER_NAME), *device, bytes(BLOCK - 345)
        rest = b"%b%b%b%07o\0%07o\0%b" % fields
        if "uname" not in needed and "gname" not in needed:
            _cache(_rests, (device, uname, gname), rest)
    if uid >= _SHORT:
        needed["uid"] = b"%d" % uid
        uid = 0
    if gid >= _SHORT:
        needed["gid"] = b"%d" % gid
        gid = 0
    if size >= _LONG:
        needed["size"] = b"%d" % size
        size = 0
    if mtime % SECOND or not 0 <= seconds < _LONG:
        needed["mtime"] = format_pax_time(mtime).encode()
        if not 0 <= seconds < _LONG:
            seconds = 0

    before = b""
    if needed:
        if prefix:  # with a PAX header, the path is always a record
            needed["path"] = path
            prefix, suffix = b"", path
        before = _format_extension(path, extended.format_records(needed))
    ids = _cache(_owners, (mode, uid, gid), b"%07o\0%07o\0%07o\0" % (mode, uid, gid))
    if prefix:
        rest = rest[: 345 - 257] + prefix.ljust(BLOCK - 345, b"\0")
    head = b"%b%b%011o\0%011o\0" % (_fit(suffix, _NAME), ids, size, seconds)
    return before + _format_block(head, typeflag, _fit(link, _NAME), rest)


def _check_records(records: Mapping[str, bytes]) -> dict[str, bytes]:
    for key in records:
        if key in extended.FIELDS or key.startswith(extended.SPARSE):
            raise InvalidInput(f"the PAX record {key!r} is derived from the member's own values")
    return dict(records)


def _exceeds(text: bytes, width: int) -> bool:
    return len(text) > width or not text.isascii() or b"\0" in text


def _split_path(path: bytes) -> tuple[bytes, bytes] | None:
    """Split a long path into ustar prefix and name; None if impossible."""
    if len(path) <= _NAME or not path.isascii() or b"\0" in path:
        return None
    end = len(path)
    if end > _PREFIX + 1:
        end = _PREFIX + 1
    elif path.endswith(b"/"):
        end -= 1
    at = path.rfind(b"/", 0, end)
    if at <= 0 or not 0 < len(path) - at - 1 <= _NAME:
        return None
    return path[:at], path[at + 1 :]


def _fit(text: bytes, width: int) -> bytes:
    """Reduce ``text`` to ASCII and ``width`` bytes, without a slash at the cut.

    Some readers would take a regular file for a directory there, despite the PAX record.
    """
    if not text.isascii() or b"\0" in text:
        text = text.translate(None, _NOT_ASCII)
    if len(text) <= width:
        return text.ljust(width, b"\0")
    if text[width - 1] == 0x2F:
        end = len(text[: width - 1].rstrip(b"/"))
        return text[:end] + b"\0" + text[end + 1 : width]
    return text[:width]


def _cache(known: dict[K, bytes], key: K, value: bytes) -> bytes:
    if len(known) >= _REMEMBERED:
        known.clear()
    known[key] = value
    return value


def _format_extension(path: bytes, data: bytes) -> bytes:
    """Format the PAX header of the member ``path``; its owner, mode and time are 0 and its device fields empty."""
    directory, _, base = path.rpartition(b"/")
    if path.startswith(b"/") and not directory:
        directory = b"/"
    name = posixpath.normpath(b"/".join([part for part in (directory, b"PaxHeaders.0", base) if part]))
    if name.startswith(b"//"):
        name = name[1:]
    name = name.translate(None, _NOT_ASCII)[:_NAME].rstrip(b"/")
    head = b"%b%b%011o\0%011o\0" % (name.ljust(_NAME, b"\0"), b"0000000\0" * 3, len(data), 0)
    return b"%b%b%b" % (_format_block(head, "x", b"", _EXTENSION_REST), data, ZEROS[: -len(data) % BLOCK])


class TarWriter:
    """Writes members in sequence: `member`, then its bytes by `data`; `close` at the end.

    ``write`` receives each piece of the archive; data is passed on without a copy. Padding is written together with the
    next header.
    """

    __slots__ = ("_closed", "_left", "_name", "_offset", "_padding", "_size", "_write")

    def __init__(self, write: Callable[[Buffer], object]) -> None:
        self._write = write
        self._name = ""
        self._size = self._left = self._offset = 0
        self._padding = b""
        self._closed = False

    @property
    def offset(self) -> int:
        """Length of the archive so far, in bytes; after a member's data, the offset of the next header."""
        return self._offset

    def member(
        self,
        name: str,
        typeflag: str,
        *,
        mode: int,
        uid: int,
        gid: int,
        size: int,
        mtime: int,
        linkname: str = "",
        device: tuple[int, int] = (0, 0),
        records: Mapping[str, bytes] = _NO_RECORDS,
        uname: str = "",
        gname: str = "",
        pax: bool = True,
    ) -> None:
        """Begin a member; the arguments are those of `header`.

        Raises InvalidInput, SizeMismatch if the previous member lacks data, Conflict after `close`.
        """
        if self._left or self._closed:
            self.finish_member()
        blocks = header(
            name,
            typeflag,
            mode=mode,
            uid=uid,
            gid=gid,
            size=size,
            mtime=mtime,
            linkname=linkname,
            device=device,
            records=records,
            uname=uname,
            gname=gname,
            pax=pax,
        )
        self._name = name
        self._size = self._left = size
        self._offset += len(blocks)
        self._write(self._padding + blocks)
        self._padding = b""

    def sparse_member(
        self,
        name: str,
        *,
        mode: int,
        uid: int,
        gid: int,
        size: int,
        mtime: int,
        extents: Sequence[tuple[int, int]],
        records: Mapping[str, bytes] = _NO_RECORDS,
    ) -> bool:
        """Begin a regular file with holes in the PAX format of GNU tar, version 1.0; its data are those of ``extents``.

        ``size`` includes the holes. False, and nothing is written, if the map is larger than readers accept. Raises as
        `member` does.
        """
        listed = list(extents)
        if not listed or sum(listed[-1]) < size:
            listed.append((size, 0))  # GNU tar takes the end of the last extent for the end of the file
        table = b"%d\n" % len(listed) + b"".join([b"%d\n%d\n" % extent for extent in listed])
        if len(table) > extended.MAX_BYTES - BLOCK or len(listed) > MAX_EXTENTS:
            return False
        if self._left or self._closed:
            self.finish_member()
        table += ZEROS[: -len(table) % BLOCK]
        path = name.encode("utf-8", "surrogateescape")
        directory, slash, base = path.rpartition(b"/")
        sparse = {
            f"{extended.SPARSE}major": b"1",
            f"{extended.SPARSE}minor": b"0",
            f"{extended.SPARSE}name": path,
            f"{extended.SPARSE}realsize": b"%d" % size,
        }
        stored = len(table) + sum(length for _, length in extents)
        shown = b"%b%bGNUSparseFile.0/%b" % (directory, slash, base)
        device = (0, 0)
        blocks = _format_header(shown, "0", mode, uid, gid, stored, mtime, b"", device, records, "", "", sparse)
        self._name = name
        self._size = self._left = stored
        self._offset += len(blocks)
        self._write(self._padding + blocks)
        self._padding = b""
        self.data(table)
        return True

    def data(self, buffer: Buffer) -> None:
        """Write the next bytes of the current member. Raises SizeMismatch if they exceed its size."""
        count = len(buffer)
        if count > self._left:
            raise SizeMismatch(
                f"the data of {self._name!r}", expected=self._size, actual=f"at least {self._received(count)}"
            )
        self._left -= count
        self._offset += count
        if not self._left and count:
            self._padding = ZEROS[: -self._size % BLOCK]
            self._offset += len(self._padding)
        self._write(buffer)

    def finish_member(self) -> None:
        """Check that the current member has all of its data. Raises SizeMismatch, Conflict after `close`."""
        if self._closed:
            raise Conflict("the tar archive is closed")
        if self._left:
            raise SizeMismatch(f"the data of {self._name!r}", expected=self._size, actual=self._received(0))

    def close(self) -> None:
        """End the archive with two zero blocks. Raises SizeMismatch, Conflict if called twice."""
        self.finish_member()
        self._write(self._padding + ZEROS + ZEROS)
        self._offset += 2 * BLOCK
        self._closed = True

    def _received(self, count: int) -> int:
        return self._size - self._left + count
