# SPDX-License-Identifier: Apache-2.0
"""A damaged composite image is read or refused with an expected error, in bounded time."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from zlib import adler32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.formats.cim.images import GUIDS, Files, Memory

from lamella.changes.model import Put
from lamella.changes.tree import walk
from lamella.errors import Exhausted, FormatError, NotFound, Unsupported
from lamella.formats.cim.reader import CimReader
from lamella.formats.cim.structures import RegionType, place, region_header, region_offset
from lamella.formats.cim.writer import CimWriter, Metadata
from lamella.formats.ntfs import extended_attributes, reparse
from lamella.formats.ntfs.extended_attributes import ExtendedAttribute
from lamella.formats.ntfs.names import TABLE_SIZE, pack_upcase, usual_upcase
from lamella.layers.cim.image import CimLayer, OpenCim
from lamella.layers.cim.source import all_changes, changes_since
from lamella.layers.cim.tree import CimContent, CimTree

LONGEST = 2  # seconds; each input takes some milliseconds
MOST = 1 << 20  # bytes of a stream that are read; a hole may say that it has 2**48
REFUSED = (FormatError, NotFound, Unsupported, Exhausted)
LIMIT = 3000  # bytes of an input in which all structures lie; what follows is content
SPARED = 8  # of the narrower fields every so manieth, since the widest cover them
UPCASE = Memory(region_header(3, RegionType.METADATA) + pack_upcase(usual_upcase()))
"""A region of its own, so that inputs are short and what changes in them matters."""

PLACES = [(GUIDS[0], kind) for kind in RegionType] + [(GUIDS[1], kind) for kind in RegionType]
"""The regions that an input has after its filesystem file, as far as it goes."""


def put(writer: CimWriter, path: str, data: bytes | None, facts: Metadata | None = None) -> None:
    writer.put(path, facts or Metadata(), None if data is None else writer.store([data], len(data)))


def base(writer: CimWriter) -> None:
    attributes = extended_attributes.encode([ExtendedAttribute(b"A", b"1")])
    facts = Metadata(8, 1, 2, 3, 4, b"descriptor", attributes)
    put(writer, "Files", None, facts)
    put(writer, "Files/a.txt", b"text", facts)
    put(writer, "Files/big", bytes(5000), facts)
    put(writer, "Files/inside", None)
    put(writer, "Files/inside/deeper", None)
    put(writer, "Files/inside/deeper/x", b"x")
    writer.put("Files/link", Metadata(reparse=reparse.encode(reparse.symlink("..\\x"))), writer.zeros(0))
    writer.put("Files/hole", Metadata(), writer.zeros(1 << 30))
    writer.stream("Files/a.txt", "zone", writer.store([b"stream"], 6))
    writer.link("second", "Files/a.txt")


def fork(writer: CimWriter) -> None:
    put(writer, "Files/a.txt", b"other")
    put(writer, "Files/new", b"new")
    writer.delete("Files/inside")


def small() -> Files:
    """Return a base and a fork, whose upcase table lies in region 3 of the base's set."""
    files = Files()
    image = files.write("base", base)
    data = files.regions[GUIDS[0], RegionType.METADATA].data
    at = place(image.upcase_offset)[1]
    del data[at : at + TABLE_SIZE]
    raw = bytearray(files.names["base"])
    root = int.from_bytes(raw[56:64], "little") - TABLE_SIZE
    struct.pack_into("<H", raw, 48, 4)
    struct.pack_into("<Q", raw, 56, root)
    struct.pack_into("<Q", data, root, region_offset(3, 40))
    files.names["base"] = bytes(raw)
    files.regions[GUIDS[0], 3] = UPCASE
    files.write("fork", fork, "base")
    return files


def framed(parts: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def parts_of(files: Files, name: str, count: int) -> list[bytes]:
    """Return the files of an image, ``count`` of them regions."""
    return [files.names[name], *(bytes(files.regions[key].data) for key in PLACES[:count])]


def taken(data: bytes) -> CimReader:
    """Open the image that the files in ``data`` are."""
    parts: list[bytes] = []
    at = 0
    while at + 4 <= len(data) and len(parts) <= len(PLACES):
        (length,) = struct.unpack_from("<I", data, at)
        parts.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    files = Files({(GUIDS[0], 3): UPCASE})
    files.regions |= {key: Memory(part) for key, part in zip(PLACES, parts[1:], strict=False)}
    return CimReader(parts[0] if parts else b"", files.region)


SMALL = small()
SEEDS = framed(parts_of(SMALL, "base", 3)), framed(parts_of(SMALL, "fork", 6))


def seeds() -> Iterator[bytes]:
    yield from SEEDS


def everything(image: CimReader) -> list[str]:
    """Read all there is, but of each stream no more than `MOST` bytes."""
    found = []
    with CimTree(cast("OpenCim", Opened(image))) as tree:
        for change in walk(tree):
            content = getattr(change, "content", None)
            data = b""
            if isinstance(content, CimContent):
                data = b"".join(image.read(content.stream, size=MOST))
                assert len(data) <= min(MOST, content.size)
            path = change.entry.path if isinstance(change, Put) else change.path
            found.append(f"{type(change).__name__} {path} {len(data)} {adler32(data)}")
    return found


class Opened:
    """An image that is open for reading, in memory."""

    def __init__(self, reader: CimReader) -> None:
        self.reader = reader
        self.layer = CimLayer(Path("x.cim"))

    def close(self) -> None:
        """There is nothing to be closed."""


BELOW = cast("OpenCim", Opened(taken(SEEDS[0])))


def fuzz_cim(data: bytes) -> None:
    """One input as an image, as a tree and as changes of its own and against a good parent."""
    start = time.process_time()
    said = ""
    for read in (everything, _all, _since):
        try:
            read(taken(data))
        except REFUSED as problem:
            said = str(problem)
        assert "\n" not in said
        assert len(said) < 1000
    assert time.process_time() - start < LONGEST


def _all(image: CimReader) -> None:
    for _ in all_changes(cast("OpenCim", Opened(image))):
        pass


def _since(image: CimReader) -> None:
    if image.filesystem.sets[:1] == BELOW.reader.filesystem.sets:
        for _ in changes_since(cast("OpenCim", Opened(image)), BELOW):
            pass


def test_the_seeds_are_good() -> None:
    base_lines, fork_lines = everything(taken(SEEDS[0])), everything(taken(SEEDS[1]))
    assert len(base_lines) > 10
    assert any("Files/new" in line for line in fork_lines)
    assert not any("deeper" in line for line in fork_lines)


def test_each_byte_and_each_field_made_zero_all_ones_or_off_by_one_gives_files_or_an_error() -> None:
    """Where nothing is refused, what changed is a name, a time, content or a field that no reader looks at."""
    start = time.process_time()
    refused = tried = 0
    for seed in SEEDS:
        for width in (1, 2, 4, 8):
            most = (1 << 8 * width) - 1
            for at in range(0, min(len(seed), LIMIT) - width + 1, width):
                value = int.from_bytes(seed[at : at + width], "little")
                for other in {0, most, (value + 1) & most, (value - 1) & most} - {value}:
                    tried += 1
                    if width == 8 or not (at // 8) % SPARED:
                        refused += outcome(seed[:at] + other.to_bytes(width, "little") + seed[at + width :])
    assert refused > 200
    assert tried > 10_000
    assert time.process_time() - start < 60


def outcome(data: bytes) -> bool:
    """Whether an image is refused, by an error that says structure and offset or which file is missing."""
    try:
        everything(taken(data))
    except FormatError as problem:
        return problem.structure.startswith(("CIM ", "FILE_FULL_EA", "REPARSE")) and problem.offset is not None
    except (NotFound, Unsupported, Exhausted):
        return True
    return False


def test_a_region_that_is_cut_anywhere_is_refused_or_lacks_nothing_that_is_read() -> None:
    for name, count in (("base", 3), ("fork", 6)):
        parts = parts_of(SMALL, name, count)
        whole = everything(taken(framed(parts)))
        for number, part in enumerate(parts):
            for length in range(0, len(part), 64):
                cut = [*parts[:number], part[:length], *parts[number + 1 :]]
                try:
                    found = everything(taken(framed(cut)))
                except REFUSED:
                    continue
                # Only a region of a fork may be longer than what is of use in it.
                assert name == "fork"
                assert found == whole


def test_counts_of_billions_are_refused_at_once() -> None:
    image = taken(SEEDS[0])
    root = image.record(image.root)
    metadata = bytearray(SMALL.regions[PLACES[0]].data)
    where = place(SMALL.read("base").filesystem.root)[1]
    spots = [(place(root.data.offset)[1], "CIM link table"), (place(root.data.offset)[1] + 4, "CIM link table")]
    spots += [(where + 16, "CIM file system object")]
    for at, structure in spots:
        for count in (1_000_000_000, 0xFFFFFFFF):
            broken = bytearray(metadata)
            struct.pack_into("<I", broken, at, count)
            parts = [SMALL.names["base"], bytes(broken), *parts_of(SMALL, "base", 3)[2:]]
            start = time.process_time()
            with pytest.raises(FormatError, match=structure):
                everything(taken(framed(parts)))
            assert time.process_time() - start < 5


class Huge(Memory):
    """A region of a terabyte, all zeros beyond what is in it, as a file with a hole is."""

    @property
    def size(self) -> int:
        return 1 << 40

    def read(self, offset: int, length: int) -> bytes:
        assert length < 1 << 27, "nobody should read so much at once"
        return super().read(offset, length).ljust(length, b"\0")


def test_counts_of_billions_are_refused_even_where_the_file_is_long_enough() -> None:
    at = place(taken(SEEDS[0]).record(1).data.offset)[1]
    root = place(SMALL.read("base").filesystem.root)[1]
    for spot, values in ((at, (0x7FFFFFFF, 100_000_000)), (root + 16, (1_000_000_000,))):
        files = Files(dict(SMALL.regions), dict(SMALL.names))
        huge = Huge(bytes(SMALL.regions[PLACES[0]].data))
        struct.pack_into(f"<{len(values)}I", huge.data, spot, *values)
        record = place(taken(SEEDS[0]).table(0)[0])[1]
        struct.pack_into("<Q", huge.data, record + 48, (1 << 48) - 1 | 1 << 48)
        files.regions[PLACES[0]] = huge
        start = time.process_time()
        with pytest.raises(FormatError):
            everything(files.read("base"))
        assert time.process_time() - start < 5


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(SEEDS)))
    offsets = st.integers(5, len(data) // 8).map(lambda number: struct.pack("<Q", number * 8))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(data), LIMIT) - 1))
        piece = draw(st.one_of(st.binary(min_size=1, max_size=8), offsets))
        data[at : at + len(piece)] = piece
    return bytes(data)


@settings(max_examples=200, deadline=None)
@given(damaged())
def test_images_that_are_damaged(data: bytes) -> None:
    fuzz_cim(data)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_image(data: bytes) -> None:
    fuzz_cim(data)
    fuzz_cim(SEEDS[0][:76] + data)
