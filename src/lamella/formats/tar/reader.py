# SPDX-License-Identifier: Apache-2.0
"""Reads the members of a tar stream without copying their data.

All dialects in use are read: v7, ustar, star, PAX and GNU. Where parsers differ, the rule is that of Go's archive/tar,
because containerd, umoci and skopeo read layers with it; where that rule would let two readers see different trees,
the archive is rejected. ``docs/formats/tar.md`` lists the rules.
"""

# ruff: noqa: SLF001 - TarMember and TarReader share state

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Generic, TypeVar
from zlib import adler32

from msgspec import Struct

from lamella.errors import Exhausted, FormatError, StreamConsumed
from lamella.formats.tar import fields, pax, sparse
from lamella.formats.tar.blocks import Blocks
from lamella.formats.tar.fields import (
    BLOCK,
    BLOCK_AT,
    DATA,
    HEADER,
    HEADER_ONLY,
    MAX_CACHED,
    STRUCTURE,
    FieldCache,
    parse_device,
)

F = TypeVar("F")

NO_DEVICE: Final = (0, 0)

_OVERRIDES: Final = frozenset({"uid", "gid", "mtime"})

_COMMON: Final = {b"%d" % digit: str(digit) for digit in range(7)} | {b"7": "0"}
"""Typeflags of members with a single header. A contiguous file is a regular file."""

_NO_TIME: Final = b"00000000000\0"
"""Mtime field used for a member with an mtime record."""

_NONE_COMMON: Final[dict[bytes, str]] = {}

_VENDOR: Final = frozenset("ABCDEFGHIJNOPQRTUVWYZ")
"""Typeflags that POSIX reserves for vendors, without those that have a meaning here (K, L, M, S, X)."""


class TarLimits(Struct, frozen=True):
    """Limits for one member; beyond them the reader raises Exhausted."""

    pax: int = pax.MAX_BYTES
    """Size of one PAX header in bytes."""
    records: int = 1 << 16
    """Records of one PAX header."""
    long_name: int = 1 << 16
    """Length of one GNU long name in bytes."""
    headers: int = 16
    """Extension headers before one member."""
    extents: int = sparse.MAX_EXTENTS
    """Data extents of one sparse file."""


class TarMember(Struct, Generic[F], eq=False):
    """One member as stored: names are not cleaned, and no policy is applied.

    A member is also the content of its file: its data can be read once, before the next member is requested.
    """

    name: str
    """Bytes that are not UTF-8 become surrogate escapes."""
    typeflag: str
    """``0`` to ``6``, or the letter of a vendor's type; regular files of all dialects are ``0``."""
    size: int
    """Size of the file in bytes, including holes; 0 for types without data."""
    facet: F
    linkname: str
    """Target of a link; empty for other types."""
    device: tuple[int, int]
    """Major and minor device number."""
    records: Mapping[str, bytes] | None
    """Records of the member's PAX header; None without one."""
    extents: Sequence[tuple[int, int]] | None
    """Data extents of a sparse file as (offset, length); None for a file without holes."""
    header_offset: int
    """Stream offset of the first header, including extension headers."""
    data_offset: int
    """Stream offset of the stored data."""
    stored_size: int
    """Length of the stored data in bytes."""
    _reader: TarReader[F]

    @property
    def stored(self) -> bool:
        """False: the data can be read once."""
        return False

    def chunks(self) -> Iterable[memoryview]:
        """The stored data as views into the reader's buffers; each is valid until the next is requested.

        Raises StreamConsumed if called twice or after the next member, and FormatError (while iterating) if the stream
        ends early.
        """
        reader = self._reader
        if reader._member is not self:
            raise StreamConsumed(f"the data of {self.name!r} can only be read once, before the next member")
        reader._member = None
        size = self.stored_size
        if not size:
            return ()
        blocks = reader._blocks
        buffer = blocks.buffer
        start = self.data_offset - blocks.base
        if start + size <= len(buffer):
            return (buffer[start : start + size],)
        reader._streaming = self
        return reader._stream(self, start)


class TarReader(Generic[F]):
    """The members of a tar stream, in order, one at a time.

    ``next_buffer`` returns the next part of the uncompressed stream, an empty view at its end. Each part except the
    last is a multiple of 512 bytes long, and must stay valid until the next call. The data after the end marker is read
    and ignored, so that a digest covers the entire stream.

    ``facet`` creates the caller's metadata from (permission bits, uid, gid, mtime in nanoseconds); members whose
    headers agree in these share one object. ``mode_bits`` masks the mode. With ``header_facets``, the caller applies
    the records of owner and time itself; the facet of a member with an mtime record then has time 0.

    Raises FormatError, with the stream offset of the header, and Exhausted.
    """

    __slots__ = (
        "_blocks",
        "_common",
        "_facet",
        "_facets",
        "_facets_kept",
        "_globals",
        "_header_facets",
        "_known",
        "_limits",
        "_member",
        "_started",
        "_streaming",
    )

    def __init__(
        self,
        next_buffer: Callable[[], memoryview],
        *,
        facet: Callable[[int, int, int, int], F],
        limits: TarLimits | None = None,
        mode_bits: int = 0o7777,
        header_facets: bool = False,
    ) -> None:
        self._blocks = Blocks(next_buffer)
        self._known = FieldCache(mode_bits)
        self._facet = facet
        self._header_facets = header_facets
        self._limits = limits or TarLimits()
        self._started = False
        self._member: TarMember[F] | None = None  # whose data can still be requested
        self._streaming: TarMember[F] | None = None  # whose data is being read across buffers
        self._common = _COMMON
        self._globals: dict[str, bytes] = {}
        self._facets: dict[bytes, dict[bytes, F]] = {}
        self._facets_kept = 0

    def __iter__(self) -> Iterator[TarMember[F]]:
        if self._started:
            raise StreamConsumed("a tar stream can only be read once")
        self._started = True
        return self._members()

    # -- the common path: one header block per member, names bound once ------------------------------------------------

    def _members(self) -> Iterator[TarMember[F]]:
        block_at = BLOCK_AT
        split = HEADER.unpack
        blocks, known, facets = self._blocks, self._known, self._facets
        sums, sizes = known.sums, known.sizes
        common = self._common
        buffer = blocks.buffer
        base = position = end = offset = 0
        while True:
            if position >= end:
                self._member = self._streaming = None
                if not blocks.seek(base + position, offset):
                    return
                buffer, base, position = blocks.buffer, blocks.base, blocks.position
                end = len(buffer) & -BLOCK
            offset = base + position
            block: bytes = block_at(buffer, position)[0]
            name, owner, size_field, mtime_field, stated, flag, prefix = split(block)
            # 512 ASCII bytes cannot reach the modulus of the Adler-32: its low half is their sum plus one
            if not (block.isascii() and adler32(block) & 0xFFFF == sums.get(stated)) and not known.valid(block, offset):
                self._member = self._streaming = None
                blocks.position = position + BLOCK
                blocks.finish(offset)
                return
            kind = common.get(flag)
            if kind is None or prefix != b"\0":
                unusual = None
                if flag == b"x" and prefix == b"\0" and common is _COMMON:
                    unusual = self._read_common_pax(size_field, position + BLOCK, offset)
                if unusual is not None:
                    position = unusual.data_offset - base
                else:
                    self._member = self._streaming = None
                    blocks.position = position + BLOCK
                    unusual = self._read_extended(block, offset)
                    if unusual is None:
                        return
                    common = self._common
                    buffer, base, position = blocks.buffer, blocks.base, blocks.position
                    end = len(buffer) & -BLOCK
                member = unusual
                stored = member.stored_size
            else:
                position += BLOCK
                size = sizes.get(size_field)
                if size is None:
                    size = known.size(size_field, offset)
                linkname, device, stored = "", NO_DEVICE, size
                if kind != "0":
                    size = stored = 0
                    if kind == "1" or kind == "2":
                        linkname = block[157:257].partition(b"\0")[0].decode("utf-8", "surrogateescape")
                    elif kind == "3" or kind == "4":
                        device = parse_device(block, offset)
                by_mtime = facets.get(owner)
                facet = None if by_mtime is None else by_mtime.get(mtime_field)
                if facet is None:
                    facet = self._find_facet(owner, mtime_field, offset)
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

    def _stream(self, member: TarMember[F], start: int) -> Iterator[memoryview]:
        """Yield data that crosses the end of the buffer, from position ``start`` in it."""
        blocks = self._blocks
        left = member.stored_size
        while left:
            if self._streaming is not member:
                raise StreamConsumed(f"the data of {member.name!r} must be read before the next member")
            if start == len(blocks.buffer):
                if not blocks.refill():
                    raise FormatError(DATA, member.header_offset, f"truncated: the stream ends {left} bytes early")
                start = 0
            part = blocks.buffer[start : start + left]
            start += len(part)
            left -= len(part)
            yield part

    def _find_facet(self, owner: bytes, mtime: bytes, offset: int) -> F:
        by_mtime = self._facets.get(owner)
        facet = None if by_mtime is None else by_mtime.get(mtime)
        if facet is not None:
            return facet
        mode, uid, gid = self._known.owner(owner, offset)
        facet = self._facet(mode, uid, gid, self._known.mtime(mtime, offset))
        if self._facets_kept >= MAX_CACHED:
            self._facets.clear()
            self._facets_kept = 0
        self._facets.setdefault(owner, {})[mtime] = facet
        self._facets_kept += 1
        return facet

    def _read_common_pax(self, size_field: bytes, start: int, first: int) -> TarMember[F] | None:
        """Read the member after a PAX header with records at ``start`` in the buffer; the header is at offset
        ``first``.

        The fast path for most members with records. None if the member needs `_read_extended`, or leaves the buffer.
        """
        blocks, known = self._blocks, self._known
        buffer = blocks.buffer
        length = known.sizes.get(size_field)
        if length is None or length > self._limits.pax:
            return None
        at = start + ((length + 511) & -BLOCK)
        if at + BLOCK > len(buffer):
            return None
        block: bytes = BLOCK_AT(buffer, at)[0]
        name, owner, size_field, mtime_field, stated, flag, prefix = HEADER.unpack(block)
        kind = _COMMON.get(flag)
        if kind is None or prefix != b"\0" or kind == "3" or kind == "4":
            return None
        if not block.isascii() or adler32(block) & 0xFFFF != known.sums.get(stated):
            return None
        records = pax.parse(bytes(buffer[start : start + length]), first, self._limits.records)
        if not pax.is_header_size(records):
            return None
        offset = blocks.base + at
        digits = size_field[:11]
        if digits.isdigit() and not size_field[11]:  # the usual form; sizes rarely repeat, so skip the cache
            try:
                size = int(digits, 8)
            except ValueError:
                size = known.size(size_field, offset)
        else:
            size = known.size(size_field, offset)
        linkname = ""
        if kind != "0":
            size = 0
            if kind == "1" or kind == "2":
                linkname = fields.text(records.get("linkpath") or block[fields.LINKNAME])
        if self._header_facets:
            facet = self._find_facet(owner, _NO_TIME if records.get("mtime") else mtime_field, offset)
        else:
            facet = self._make_facet(records, owner, mtime_field, first, offset)
        return TarMember(
            (records.get("path") or name.partition(b"\0")[0]).decode("utf-8", "surrogateescape"),
            kind,
            size,
            facet,
            linkname,
            NO_DEVICE,
            records or None,
            None,
            first,
            offset + BLOCK,
            size,
            self,
        )

    # -- the rest: extension headers, prefixes, sparse files, vendors' types -------------------------------------------

    def _read_extended(self, block: bytes, offset: int) -> TarMember[F] | None:
        """Read the member that begins with the header ``block``, with all extensions;

        None at the end of the archive.
        """
        first = offset
        records: dict[str, bytes] | None = None
        long_name = long_link = ""
        extensions = 0
        while True:
            flag = block[156:157]
            if flag == b"g":
                if extensions:
                    raise FormatError(pax.GLOBAL, offset, "between a member and its extension headers")
                self._apply_globals(self._read_records(block, offset, pax.GLOBAL), offset)
            elif flag == b"x" or flag == b"X":
                records = self._read_records(block, offset, pax.STRUCTURE)
            elif flag == b"L":
                long_name = self._read_long_name(block, offset)
            elif flag == b"K":
                long_link = self._read_long_name(block, offset)
            else:
                return self._build_member(block, offset, first, records, long_name, long_link)
            if flag != b"g":
                extensions += 1
                if extensions > self._limits.headers:
                    raise Exhausted(
                        f"{STRUCTURE} at offset {first}: more than {self._limits.headers} extension headers "
                        "before one member"
                    )
            here = self._blocks.offset
            following = self._blocks.next_or_end(offset)
            if following is not None and self._known.valid(following, here):
                block, offset = following, here
                if not extensions:
                    first = here
                continue
            if extensions:
                raise FormatError(STRUCTURE, first, "truncated: an extension header has no member after it")
            if following is not None:
                self._blocks.finish(here)
            return None

    def _read_extension(self, block: bytes, offset: int, structure: str, limit: int) -> bytes:
        size = self._known.size(block[124:136], offset)
        if size > limit:
            raise Exhausted(f"{structure} at offset {offset}: {size} bytes exceed the limit of {limit}")
        return self._blocks.data(size, offset)

    def _read_records(self, block: bytes, offset: int, structure: str) -> dict[str, bytes]:
        data = self._read_extension(block, offset, structure, self._limits.pax)
        return pax.parse(data, offset, self._limits.records)

    def _read_long_name(self, block: bytes, offset: int) -> str:
        return fields.text(self._read_extension(block, offset, "GNU long name", self._limits.long_name))

    def _apply_globals(self, records: Mapping[str, bytes], offset: int) -> None:
        pax.check_global(records, offset)
        for key in _OVERRIDES & records.keys():
            self._globals[key] = records[key]
        pax.overrides(self._globals, offset)
        self._common = _NONE_COMMON if any(self._globals.values()) else _COMMON

    def _build_member(
        self,
        block: bytes,
        offset: int,
        first: int,
        records: dict[str, bytes] | None,
        long_name: str,
        long_link: str,
    ) -> TarMember[F]:
        name_field, owner, size_field, mtime_field, _, flag, prefix = HEADER.unpack(block)
        size = stored = self._known.size(size_field, offset)
        path = linkpath = realsize = None
        if records:
            path, linkpath, realsize = records.get("path"), records.get("linkpath"), records.get("SCHILY.realsize")
            stated = records.get("size")
            if stated:
                size = stored = pax.decimal(stated, "size", first)
        name = long_name
        if not name:
            name = path.decode("utf-8", "surrogateescape") if path else fields.text(name_field)
            if prefix != b"\0" and not path:
                directory = fields.ustar_prefix(block)
                if directory:
                    name = f"{directory}/{name}"

        kind = _COMMON.get(flag) or self._normalize_type(flag, name, block, offset)
        if kind in HEADER_ONLY:
            size = stored = 0
        extents: sparse.Extents | None = None
        if flag == b"S":
            extents, size = self._read_old_sparse(block, offset, stored)
        elif records and pax.is_sparse(records):
            if kind != "0":
                raise FormatError(sparse.STRUCTURE, first, f"a member of type {kind!r} cannot be sparse")
            name, extents, size, stored = self._read_pax_sparse(records, offset, first, name, size, stored)
        if realsize and pax.decimal(realsize, "SCHILY.realsize", first) != size:
            raise FormatError(pax.STRUCTURE, first, "SCHILY.realsize differs from the size")

        linkname, device = "", NO_DEVICE
        if kind == "1" or kind == "2":
            linkname = long_link or fields.text(linkpath or block[fields.LINKNAME])
        elif kind == "3" or kind == "4":
            device = parse_device(block, offset)
        return TarMember(
            name,
            kind,
            size,
            self._make_facet(records, owner, mtime_field, first, offset),
            linkname,
            device,
            records or None,
            extents,
            first,
            self._blocks.offset,
            stored,
            self,
        )

    def _normalize_type(self, flag: bytes, name: str, block: bytes, offset: int) -> str:
        """Normalize a typeflag outside `_COMMON`."""
        if flag == b"\0":
            return "5" if name.endswith("/") else "0"
        if flag == b"S":
            if block[fields.MAGIC] != fields.GNU_MAGIC:
                raise FormatError(STRUCTURE, offset, "a sparse file outside the GNU format")
            return "0"
        if flag == b"M":
            raise FormatError(STRUCTURE, offset, "continuation of a multi-volume archive")
        letter = flag.decode("latin-1")
        if letter not in _VENDOR:
            raise FormatError(STRUCTURE, offset, f"unknown typeflag {flag!r}")
        return letter

    def _make_facet(self, records: dict[str, bytes] | None, owner: bytes, mtime: bytes, first: int, offset: int) -> F:
        """Make the facet from records and header; records win unless empty."""
        if self._header_facets:
            if records and records.get("mtime"):
                return self._find_facet(owner, _NO_TIME, offset)
            records = self._globals
        elif self._globals:
            records = self._globals | (records or {})
        if records and (records.get("mtime") or records.get("uid") or records.get("gid")):
            uid, gid, time = pax.overrides(records, first)
            mode, header_uid, header_gid = self._known.owner(owner, offset)
            return self._facet(
                mode,
                header_uid if uid is None else uid,
                header_gid if gid is None else gid,
                self._known.mtime(mtime, offset) if time is None else time,
            )
        return self._find_facet(owner, mtime, offset)

    def _read_old_sparse(self, block: bytes, offset: int, stored: int) -> tuple[sparse.Extents | None, int]:
        try:
            size = fields.parse_count(block[fields.GNU_REAL_SIZE])
        except ValueError as error:
            raise FormatError(sparse.STRUCTURE, offset, f"malformed size: {error}") from None
        extents, more = sparse.old_extents(block[fields.GNU_SPARSE], offset)
        limit = self._limits.extents
        blocks = 0
        while more:
            further, more = sparse.old_extents(sparse.extension_table(self._blocks.next(offset)), offset)
            extents += further
            blocks += 1
            if len(extents) > limit or blocks > limit // 21 + 1:
                raise sparse.too_many(offset, limit)
        return sparse.check(extents, size, stored, offset), size

    def _read_pax_sparse(
        self, records: Mapping[str, bytes], offset: int, first: int, name: str, size: int, stored: int
    ) -> tuple[str, sparse.Extents | None, int, int]:
        stated = sparse.SparseRecords(records, first)
        if stated.name:
            name = stated.name.decode("utf-8", "surrogateescape")
        if stated.size is not None:
            size = stated.size
        if stated.map_in_data:
            blocks = self._blocks.take(-(-stored // BLOCK), offset)
            extents, length = sparse.read_map(blocks, offset, self._limits.extents)
            stored -= length
        else:
            extents = stated.extents(self._limits.extents)
        return name, sparse.check(extents, size, stored, first), size, stored
