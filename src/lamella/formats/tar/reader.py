# SPDX-License-Identifier: Apache-2.0
"""Reads a stream of tar blocks as members, without copying their data.

Every dialect in use is read: v7, ustar, star, PAX and GNU. Where parsers differ the rule is that of Go's archive/tar,
because containerd, umoci and skopeo read layers with it; where following it would leave two readers with two
pictures of one archive, the archive is refused. ``docs/formats/tar.md`` lists the rules.
"""

# ruff: noqa: SLF001 - a member and its reader are one mechanism in two classes

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar
from zlib import adler32

from lamella.errors import Exhausted, FormatError, InvalidInput, StreamConsumed
from lamella.formats.tar import fields, pax, sparse
from lamella.formats.tar.fields import BLOCK, BLOCK_AT, HEADER, HEADER_ONLY, ZEROS
from lamella.times import SECOND, parse_pax_time

F = TypeVar("F")
V = TypeVar("V")

STRUCTURE: Final = "tar header"
NO_DEVICE: Final = (0, 0)

_MAX_TIME: Final = fields.MAX_NUMBER * SECOND
_OVERRIDES: Final = ("uid", "gid", "mtime")

_REMEMBERED: Final = 8192
"""Field values kept parsed, by field; all are forgotten when there are more."""

_COMMON: Final = {b"%d" % digit: str(digit) for digit in range(7)} | {b"7": "0"}
"""Typeflags whose members need nothing but their one header. A contiguous file is a regular file."""

_NONE_COMMON: Final[dict[bytes, str]] = {}

_VENDOR: Final = frozenset("ABCDEFGHIJNOPQRTUVWYZ")
"""Typeflags that POSIX leaves to vendors, less those with a meaning here (K, L, M, S, X)."""

_REFUSED_GLOBALLY: Final = ("SCHILY.xattr.", "LIBARCHIVE.xattr.", "GNU.sparse.", "GNU.volume.", "MSWINDOWS.")


@dataclass(slots=True, frozen=True)
class TarLimits:
    """What one member may cost before it is refused with Exhausted."""

    pax: int = pax.MAX_BYTES
    """Bytes of one PAX header."""
    records: int = 1 << 16
    """Records of one PAX header."""
    long_name: int = 1 << 16
    """Bytes of one GNU long name."""
    headers: int = 16
    """Extension headers before one member."""
    extents: int = 1 << 17
    """Pieces of data in one sparse file."""


@dataclass(slots=True, eq=False)
class TarMember(Generic[F]):
    """One member as the archive has it: names are not cleaned, and no policy is applied.

    A member is also the content of its file: its data can be read once, until the next member is asked for.
    """

    name: str
    """Bytes that are not UTF-8 are kept as surrogate escapes."""
    typeflag: str
    """``0`` to ``6``, or the letter of a vendor's type; regular files of every dialect are ``0``."""
    size: int
    """Bytes of the file, holes included; 0 for types that have no data."""
    facet: F
    linkname: str
    """Where a link points; empty for other types."""
    device: tuple[int, int]
    """Major and minor number of a device."""
    records: Mapping[str, bytes] | None
    """The records of the PAX header that stands before this member; None where there are none."""
    extents: Sequence[tuple[int, int]] | None
    """Where a sparse file has data, as (offset, length); None where it has no holes."""
    header_offset: int
    """Of its first header, extensions included, in the stream."""
    data_offset: int
    """Of the stored data, in the stream."""
    stored_size: int
    """Bytes of data in the stream."""
    _reader: TarReader[F]

    def chunks(self) -> Iterable[memoryview]:
        """The stored data as views into the reader's buffers; each may be used until the next is asked for.

        Raises StreamConsumed when asked for twice or after the next member, and FormatError (while iterating) where
        the stream ends too early.
        """
        reader = self._reader
        if reader._member is not self:
            raise StreamConsumed(f"the data of {self.name!r} can be read once, before the next member is asked for")
        reader._member = None
        size = self.stored_size
        if not size:
            return ()
        buffer = reader._buffer
        start = self.data_offset - reader._base
        if start + size <= len(buffer):
            return (buffer[start : start + size],)
        reader._streaming = self
        return reader._stream(self, start)


class TarReader(Generic[F]):
    """The members of a tar stream, in order, one at a time.

    ``next_buffer`` gives the next part of the uncompressed stream, an empty view at its end. Each part but the last
    is a multiple of 512 bytes, and has to stay as it is only until the next call. After the end marker whatever
    follows is read and left alone, so that a digest taken on the way covers the entire stream.

    ``facet`` makes the caller's metadata of (permission bits, uid, gid, mtime in nanoseconds). Members whose headers
    agree in these share one object.

    Raises FormatError, with the offset of the header in the stream, and Exhausted.
    """

    __slots__ = (
        "_base",
        "_buffer",
        "_common",
        "_facet",
        "_facets",
        "_facets_kept",
        "_globals",
        "_limits",
        "_member",
        "_mtimes",
        "_next_buffer",
        "_owners",
        "_position",
        "_sizes",
        "_started",
        "_streaming",
        "_sums",
    )

    def __init__(
        self,
        next_buffer: Callable[[], memoryview],
        *,
        facet: Callable[[int, int, int, int], F],
        limits: TarLimits = TarLimits(),
    ) -> None:
        self._next_buffer = next_buffer
        self._facet = facet
        self._limits = limits
        self._started = False
        self._buffer = memoryview(b"")
        self._base = 0  # offset of the buffer in the stream
        self._position = 0  # in the buffer; kept up to date outside the common path only
        self._member: TarMember[F] | None = None  # whose data may still be asked for
        self._streaming: TarMember[F] | None = None  # whose data is being read across buffers
        self._common = _COMMON
        self._globals: dict[str, bytes] = {}
        self._sums: dict[bytes, int] = {}
        self._sizes: dict[bytes, int] = {}
        self._owners: dict[bytes, tuple[int, int, int]] = {}
        self._mtimes: dict[bytes, int] = {}
        self._facets: dict[bytes, dict[bytes, F]] = {}
        self._facets_kept = 0

    def __iter__(self) -> Iterator[TarMember[F]]:
        if self._started:
            raise StreamConsumed("a tar stream can be read once")
        self._started = True
        return self._members()

    # -- the common path: one header block a member, names bound once -------------------------------------------------

    def _members(self) -> Iterator[TarMember[F]]:
        block_at = BLOCK_AT
        split = HEADER.unpack
        sums, sizes, facets = self._sums, self._sizes, self._facets
        common = self._common
        buffer = self._buffer
        base = position = end = offset = 0
        while True:
            if position >= end:
                if not self._seek(base + position, offset):
                    return
                buffer, base, position = self._buffer, self._base, self._position
                end = len(buffer) & -BLOCK
            offset = base + position
            block: bytes = block_at(buffer, position)[0]
            name, owner, size_field, mtime_field, stated, flag, prefix = split(block)
            # 512 ASCII bytes cannot reach the modulus of the Adler-32, so that its low half is their sum plus one
            if not (block.isascii() and adler32(block) & 0xFFFF == sums.get(stated)) and not self._valid(block, offset):
                self._position = position + BLOCK
                self._end(offset)
                return
            kind = common.get(flag)
            if kind is None or prefix != b"\0":
                self._position = position + BLOCK
                unusual = self._unusual(block, offset)
                if unusual is None:
                    return
                member = unusual
                common = self._common
                buffer, base, position = self._buffer, self._base, self._position
                end = len(buffer) & -BLOCK
                offset = member.header_offset
                stored = member.stored_size
            else:
                position += BLOCK
                size = sizes.get(size_field)
                if size is None:
                    size = self._size(size_field, offset)
                linkname, device, stored = "", NO_DEVICE, size
                if kind != "0":
                    size = stored = 0
                    if kind == "1" or kind == "2":
                        linkname = block[157:257].partition(b"\0")[0].decode("utf-8", "surrogateescape")
                    elif kind == "3" or kind == "4":
                        device = self._device(block, offset)
                by_mtime = facets.get(owner)
                facet = None if by_mtime is None else by_mtime.get(mtime_field)
                if facet is None:
                    facet = self._shared_facet(owner, mtime_field, offset)
                member = TarMember(
                    name.partition(b"\0")[0].decode("utf-8", "surrogateescape"),
                    kind,
                    size,
                    facet,
                    linkname,
                    device,
                    None,
                    None,
                    offset,
                    offset + BLOCK,
                    stored,
                    self,
                )
            self._member = member
            yield member
            if stored:
                position += (stored + 511) & -BLOCK

    # -- the stream ---------------------------------------------------------------------------------------------------

    def _refill(self) -> bool:
        """Go on to the next buffer; False at the end of the stream."""
        self._base += len(self._buffer)
        self._buffer = self._next_buffer()
        self._position = 0
        return len(self._buffer) > 0

    def _seek(self, target: int, header: int) -> bool:
        """Stand at the block at offset ``target``; False where the stream ends right there.

        ``header`` is the offset that an error names.
        """
        self._member = self._streaming = None
        while True:
            left = self._base + len(self._buffer) - target
            if left >= BLOCK:
                self._position = target - self._base
                return True
            if left > 0:
                raise FormatError(STRUCTURE, target, f"truncated: {left} of {BLOCK} bytes")
            if not self._refill():
                if left == 0:
                    return False
                raise FormatError("tar data", header, f"truncated: the stream ends {-left} bytes early")

    def _next_block(self, header: int) -> bytes:
        """The next block, which must be there."""
        at = self._base + self._position
        if not self._seek(at, header):
            raise FormatError(STRUCTURE, header, "truncated: the stream ends inside the member's headers")
        block: bytes = BLOCK_AT(self._buffer, self._position)[0]
        self._position += BLOCK
        return block

    def _blocks(self, count: int, header: int) -> Iterator[bytes]:
        for _ in range(count):
            yield self._next_block(header)

    def _data(self, size: int, header: int) -> bytes:
        """The data of an extension header, its padding passed."""
        stop = self._position + size
        if stop <= len(self._buffer):
            data = bytes(self._buffer[self._position : stop])
            self._position = (stop + 511) & -BLOCK
            return data
        parts = []
        left = size
        while left:
            if self._position >= len(self._buffer) and not self._refill():
                raise FormatError("tar data", header, f"truncated: the stream ends {left} bytes early")
            part = bytes(self._buffer[self._position : self._position + left])
            self._position += len(part)
            left -= len(part)
            parts.append(part)
        self._position += -size & (BLOCK - 1)
        return b"".join(parts)

    def _end(self, offset: int) -> None:
        """Take the second zero block, and all that follows it."""
        if self._seek(self._base + self._position, offset):
            if BLOCK_AT(self._buffer, self._position)[0] != ZEROS:
                raise FormatError(STRUCTURE, offset, "a single zero block stands before further data")
            while self._refill():
                pass

    def _stream(self, member: TarMember[F], start: int) -> Iterator[memoryview]:
        """Data that goes over the end of the buffer, from ``start`` in it."""
        left = member.stored_size
        while left:
            if self._streaming is not member:
                raise StreamConsumed(f"the data of {member.name!r} was to be read before the next member was asked for")
            if start == len(self._buffer):
                if not self._refill():
                    raise FormatError(
                        "tar data", member.header_offset, f"truncated: the stream ends {left} bytes early"
                    )
                start = 0
            part = self._buffer[start : start + left]
            start += len(part)
            left -= len(part)
            yield part

    # -- fields that are remembered -----------------------------------------------------------------------------------

    def _valid(self, block: bytes, offset: int) -> bool:
        """Check the sum in full; False for a zero block. Raises FormatError."""
        field = block[fields.CHECKSUM]
        if block.isascii() and adler32(block) & 0xFFFF == self._sums.get(field):
            return True
        if block == ZEROS:
            return False
        try:
            stated = fields.parse_octal(field)
        except ValueError:
            raise FormatError(STRUCTURE, offset, f"malformed checksum {field!r}") from None
        if not fields.checksum_holds(block, stated):
            raise FormatError(STRUCTURE, offset, "the checksum does not match")
        _remember(self._sums, field, stated - 8 * 0x20 + sum(field) + 1)
        return True

    def _size(self, field: bytes, offset: int) -> int:
        size = self._sizes.get(field)
        if size is None:
            size = self._count(field, "size", offset)
            _remember(self._sizes, field, size)
        return size

    def _owner(self, field: bytes, offset: int) -> tuple[int, int, int]:
        """Permission bits, uid and gid."""
        owner = self._owners.get(field)
        if owner is None:
            owner = (
                self._count(field[:8], "mode", offset) & 0o7777,
                self._count(field[8:16], "uid", offset),
                self._count(field[16:], "gid", offset),
            )
            _remember(self._owners, field, owner)
        return owner

    def _mtime(self, field: bytes, offset: int) -> int:
        mtime = self._mtimes.get(field)
        if mtime is None:
            try:
                mtime = fields.parse_number(field) * SECOND
            except ValueError as error:
                raise FormatError(STRUCTURE, offset, f"malformed mtime {field!r}: {error}") from None
            _remember(self._mtimes, field, mtime)
        return mtime

    def _count(self, field: bytes, what: str, offset: int) -> int:
        try:
            return fields.parse_count(field)
        except ValueError as error:
            raise FormatError(STRUCTURE, offset, f"malformed {what} {field!r}: {error}") from None

    def _device(self, block: bytes, offset: int) -> tuple[int, int]:
        if not block[fields.MAGIC].startswith((fields.USTAR_MAGIC, fields.GNU_MAGIC)):
            return NO_DEVICE
        return (
            self._count(block[fields.DEVMAJOR], "device major number", offset),
            self._count(block[fields.DEVMINOR], "device minor number", offset),
        )

    def _shared_facet(self, owner: bytes, mtime: bytes, offset: int) -> F:
        by_mtime = self._facets.get(owner)
        facet = None if by_mtime is None else by_mtime.get(mtime)
        if facet is not None:
            return facet
        mode, uid, gid = self._owner(owner, offset)
        facet = self._facet(mode, uid, gid, self._mtime(mtime, offset))
        if self._facets_kept >= _REMEMBERED:
            self._facets.clear()
            self._facets_kept = 0
        self._facets.setdefault(owner, {})[mtime] = facet
        self._facets_kept += 1
        return facet

    # -- all that is not common: extension headers, prefixes, sparse files, vendors' types -----------------------------

    def _unusual(self, block: bytes, offset: int) -> TarMember[F] | None:
        """The member that begins with the header ``block``, whatever it needs; None at the end of the archive."""
        first = offset
        records: dict[str, bytes] | None = None
        long_name = long_link = ""
        extensions = 0
        while True:
            flag = block[156:157]
            if flag == b"g":
                if extensions:
                    raise FormatError("PAX global header", offset, "stands between a member and its extension headers")
                self._take_globals(self._records(block, offset, "PAX global header"), offset)
            elif flag == b"x" or flag == b"X":
                records = self._records(block, offset, pax.STRUCTURE)
            elif flag == b"L":
                long_name = self._long_name(block, offset)
            elif flag == b"K":
                long_link = self._long_name(block, offset)
            else:
                return self._build(block, offset, first, records, long_name, long_link)
            if flag != b"g":
                extensions += 1
                if extensions > self._limits.headers:
                    raise Exhausted(
                        f"{STRUCTURE} at offset {first}: more than {self._limits.headers} extension headers "
                        "before one member"
                    )
            here = self._base + self._position
            if self._position + BLOCK <= len(self._buffer) or self._seek(here, offset):
                block = BLOCK_AT(self._buffer, self._position)[0]
                self._position += BLOCK
                if self._valid(block, here):
                    if not extensions:
                        first = here
                    offset = here
                    continue
                self._end(here)
            if extensions:
                raise FormatError(STRUCTURE, first, "truncated: an extension header has no member after it")
            return None

    def _extension(self, block: bytes, offset: int, structure: str, limit: int) -> bytes:
        size = self._size(block[124:136], offset)
        if size > limit:
            raise Exhausted(f"{structure} at offset {offset}: {size} bytes are over the limit of {limit}")
        return self._data(size, offset)

    def _records(self, block: bytes, offset: int, structure: str) -> dict[str, bytes]:
        data = self._extension(block, offset, structure, self._limits.pax)
        return pax.parse(data, offset, self._limits.records)

    def _long_name(self, block: bytes, offset: int) -> str:
        return fields.text(self._extension(block, offset, "GNU long name", self._limits.long_name))

    def _take_globals(self, records: Mapping[str, bytes], offset: int) -> None:
        for key, value in records.items():
            if key in ("path", "linkpath", "size") or key.startswith(_REFUSED_GLOBALLY):
                raise FormatError("PAX global header", offset, f"{key!r} cannot apply to every member alike")
            if key in _OVERRIDES:
                if value:
                    self._globals[key] = value
                else:
                    self._globals.pop(key, None)
        _overrides(self._globals, offset)
        self._common = _NONE_COMMON if self._globals else _COMMON

    def _build(
        self,
        block: bytes,
        offset: int,
        first: int,
        records: dict[str, bytes] | None,
        long_name: str,
        long_link: str,
    ) -> TarMember[F]:
        name_field, owner, size_field, mtime_field, _, flag, prefix = HEADER.unpack(block)
        size = stored = self._size(size_field, offset)
        path = linkpath = realsize = None
        if records:
            path, linkpath, realsize = records.get("path"), records.get("linkpath"), records.get("SCHILY.realsize")
            stated = records.get("size")
            if stated:
                size = stored = _decimal(stated, "size", first)
        name = long_name
        if not name:
            name = path.decode("utf-8", "surrogateescape") if path else fields.text(name_field)
            if prefix != b"\0" and not path:
                directory = self._prefix(block)
                if directory:
                    name = f"{directory}/{name}"

        kind = _COMMON.get(flag) or self._kind(flag, name, block, offset)
        if kind in HEADER_ONLY:
            size = stored = 0
        extents: sparse.Extents | None = None
        if flag == b"S":
            extents, size = self._old_sparse(block, offset, stored)
        elif records and pax.is_sparse(records):
            if kind != "0":
                raise FormatError(sparse.STRUCTURE, first, f"a member of type {kind!r} cannot be sparse")
            name, extents, size, stored = self._pax_sparse(records, offset, first, name, size, stored)
        if realsize and _decimal(realsize, "SCHILY.realsize", first) != size:
            raise FormatError(pax.STRUCTURE, first, "SCHILY.realsize differs from the size")

        linkname, device = "", NO_DEVICE
        if kind == "1" or kind == "2":
            linkname = long_link or fields.text(linkpath or block[fields.LINKNAME])
        elif kind == "3" or kind == "4":
            device = self._device(block, offset)
        return TarMember(
            name,
            kind,
            size,
            self._member_facet(records, owner, mtime_field, first, offset),
            linkname,
            device,
            records or None,
            extents,
            first,
            self._base + self._position,
            stored,
            self,
        )

    def _kind(self, flag: bytes, name: str, block: bytes, offset: int) -> str:
        """The typeflag, normalised."""
        kind = _COMMON.get(flag)
        if kind is not None:
            return kind
        if flag == b"\0":
            return "5" if name.endswith("/") else "0"
        if flag == b"S":
            if block[fields.MAGIC] != fields.GNU_MAGIC:
                raise FormatError(STRUCTURE, offset, "a sparse file outside the GNU format")
            return "0"
        if flag == b"M":
            raise FormatError(STRUCTURE, offset, "the rest of a file from another volume; multi-volume is not read")
        letter = flag.decode("latin-1")
        if letter not in _VENDOR:
            raise FormatError(STRUCTURE, offset, f"unknown typeflag {flag!r}")
        return letter

    def _prefix(self, block: bytes) -> str:
        """What stands before the name where the field at byte 345 is not empty."""
        magic = block[fields.MAGIC]
        if magic.startswith(fields.USTAR_MAGIC):
            star = block[fields.STAR_TRAILER] == fields.STAR_MARK
            return fields.text(block[fields.STAR_PREFIX if star else fields.PREFIX])
        if magic == fields.GNU_MAGIC:
            # GNU has its atime there. Go before 1.8 wrote a prefix into GNU headers all the same, and layers of that
            # time are about; as Go does, take what cannot be times and is ASCII for a name.
            try:
                fields.parse_number(block[fields.GNU_ATIME])
                if block[fields.GNU_CTIME][0]:
                    fields.parse_number(block[fields.GNU_CTIME])
            except ValueError:
                prefix = block[fields.PREFIX].partition(b"\0")[0]
                if prefix.isascii():
                    return prefix.decode("ascii")
        return ""

    def _member_facet(
        self, records: Mapping[str, bytes] | None, owner: bytes, mtime: bytes, first: int, offset: int
    ) -> F:
        """The facet, where records win over the header; an empty record leaves the value to the header."""
        if self._globals:
            records = (
                self._globals | {key: records[key] for key in _OVERRIDES if key in records}
                if records
                else self._globals
            )
        if records and (records.get("mtime") or records.get("uid") or records.get("gid")):
            uid, gid, time = _overrides(records, first)
            mode, header_uid, header_gid = self._owner(owner, offset)
            return self._facet(
                mode,
                header_uid if uid is None else uid,
                header_gid if gid is None else gid,
                self._mtime(mtime, offset) if time is None else time,
            )
        return self._shared_facet(owner, mtime, offset)

    def _old_sparse(self, block: bytes, offset: int, stored: int) -> tuple[sparse.Extents | None, int]:
        try:
            size = fields.parse_count(block[fields.GNU_REAL_SIZE])
        except ValueError as error:
            raise FormatError(sparse.STRUCTURE, offset, f"malformed size: {error}") from None
        extents, more = sparse.old_extents(block[fields.GNU_SPARSE], offset)
        budget = self._limits.extents
        while more:
            budget -= 21
            if budget < 0:
                raise sparse.too_many(offset, self._limits.extents)
            further, more = sparse.old_extents(sparse.extension_table(self._next_block(offset)), offset)
            extents += further
        return sparse.checked(extents, size, stored, offset), size

    def _pax_sparse(
        self, records: Mapping[str, bytes], offset: int, first: int, name: str, size: int, stored: int
    ) -> tuple[str, sparse.Extents | None, int, int]:
        stated = sparse.SparseRecords(records, first)
        if stated.name:
            name = stated.name.decode("utf-8", "surrogateescape")
        if stated.size is not None:
            size = stated.size
        if stated.map_in_data:
            blocks = self._blocks(-(-stored // BLOCK), offset)
            extents, length = sparse.read_map(blocks, offset, self._limits.extents)
            stored -= length
        else:
            extents = stated.extents(self._limits.extents)
        return name, sparse.checked(extents, size, stored, first), size, stored


def _remember(known: dict[bytes, V], field: bytes, value: V) -> None:
    if len(known) >= _REMEMBERED:
        known.clear()
    known[field] = value


def _decimal(digits: bytes, what: str, offset: int) -> int:
    try:
        return fields.parse_decimal(digits)
    except ValueError as error:
        raise FormatError(pax.STRUCTURE, offset, f"malformed {what} {digits[:40]!r}: {error}") from None


def _overrides(records: Mapping[str, bytes], offset: int) -> tuple[int | None, int | None, int | None]:
    """Uid, gid and mtime in nanoseconds from PAX records, None where a record is empty or not there."""
    uid, gid, mtime = records.get("uid"), records.get("gid"), records.get("mtime")
    time = None
    if mtime:
        try:
            time = parse_pax_time(mtime.decode("latin-1"))
        except InvalidInput as error:
            raise FormatError(pax.STRUCTURE, offset, str(error)) from None
        if not -_MAX_TIME <= time <= _MAX_TIME:
            raise FormatError(pax.STRUCTURE, offset, "mtime beyond 64 bits")
    return _decimal(uid, "uid", offset) if uid else None, _decimal(gid, "gid", offset) if gid else None, time
