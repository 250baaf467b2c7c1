# SPDX-License-Identifier: Apache-2.0
"""What is written into a CIM is what is read from it, and a fork shows its parent with its own changes on top."""

from __future__ import annotations

import struct
import zlib
from functools import partial
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.formats.cim.images import GUIDS, Files, Memory, content, listed

from lamella.errors import Conflict, FormatError, InvalidInput, NotFound, SizeMismatch, Unsupported
from lamella.formats.cim import structures as on_disk
from lamella.formats.cim.reader import CimReader
from lamella.formats.cim.structures import FileRecord, RegionType, Stream, StreamType, place
from lamella.formats.cim.writer import CimWriter, Metadata
from lamella.formats.ntfs.names import TABLE_SIZE, usual_upcase

FILE = Metadata(flags=8, creation_time=1, write_time=2, change_time=3, access_time=4)


def put(writer: CimWriter, path: str, data: bytes | None, metadata: Metadata = FILE) -> None:
    writer.put(path, metadata, None if data is None else writer.store([data], len(data)))


def several(writer: CimWriter, *paths: str) -> None:
    for path in paths:
        put(writer, path, b"")


def simple(writer: CimWriter) -> None:
    put(writer, "Windows", None)
    put(writer, "Windows/a.txt", b"hello")
    put(writer, "Windows/Big.bin", bytes(range(256)) * 64)
    put(writer, "Windows/empty", b"")
    put(writer, "none", None)


def _bits_reversed(data: bytes) -> bytes:
    """The polynomial as CRC-32 takes it, the lowest bit of a byte first."""
    bits = "".join(f"{byte:08b}" for byte in data).lstrip("0")
    padded = bits.ljust(-(-len(bits) // 8) * 8, "0")
    return bytes(int(padded[at : at + 8][::-1], 2) for at in range(0, len(padded), 8))


class TestAnImage:
    def test_gives_back_names_and_content(self) -> None:
        image = Files().write("a", simple)
        found = listed(image)
        assert set(found) == {"Windows", "Windows/a.txt", "Windows/Big.bin", "Windows/empty", "none"}
        assert content(image, found["Windows/a.txt"]) == b"hello"
        assert bytes(range(256)) * 64 == content(image, found["Windows/Big.bin"])
        assert content(image, found["Windows/empty"]) == b""
        assert listed(image, file=found["none"]) == {}

    def test_gives_back_what_is_attached_to_a_file(self) -> None:
        metadata = Metadata(0x17, 10, 20, 30, 40, b"descriptor", b"attributes", b"\x0c\0\0\xa0point")

        def fill(writer: CimWriter) -> None:
            put(writer, "d", None, metadata)
            put(writer, "d/f", b"x", metadata)
            writer.stream("d/f", "Zone", writer.store([b"stream"], 6))
            writer.stream("d/f", "big", writer.store([bytes(9000)], 9000))
            writer.stream("d", "of a directory", writer.zeros(7))

        image = Files().write("a", fill)
        for path in ("d", "d/f"):
            record = image.record(listed(image)[path])
            assert (
                record.flags,
                record.creation_time,
                record.write_time,
                record.change_time,
                record.access_time,
            ) == (0x17, 10, 20, 30, 40)
            assert image.security(record) == b"descriptor"
            assert image.extended_attributes(record) == b"attributes"
            assert image.reparse(record) == b"\x0c\0\0\xa0point"
            assert record.reparse_tag == 0xA000000C
        file = image.record(listed(image)["d/f"])
        streams = {name: b"".join(image.read(each)) for name, each in image.streams(file)}
        assert {"Zone": b"stream", "big": bytes(9000)} == streams
        directory = image.record(listed(image)["d"])
        assert [("of a directory", bytes(7))] == [(n, b"".join(image.read(s))) for n, s in image.streams(directory)]

    def test_keeps_equal_contents_and_descriptors_once(self) -> None:
        def fill(writer: CimWriter) -> None:
            for name in "abc":
                put(writer, name, b"same" * 5000, Metadata(security=b"sd"))
                put(writer, name + "2", b"small", Metadata(security=b"sd"))

        image = Files().write("a", fill)
        records = [image.record(file) for file in listed(image).values()]
        assert len({record.data.offset for record in records}) == 2
        assert len({record.security for record in records}) == 1

    def test_has_streams_with_names_that_no_file_has(self) -> None:
        def fill(writer: CimWriter) -> None:
            put(writer, "f", b"")
            for name in (".", ".."):
                writer.stream("f", name, writer.store([b"x"], 1))

        image = Files().write("a", fill)
        assert [name for name, _ in image.streams(image.record(listed(image)["f"]))] == [".", ".."]

    def test_keeps_equal_large_contents_once_in_whatever_pieces_they_come(self) -> None:
        same, other = b"a" * 200_000, b"b" * 200_000
        order = [("a", same), ("b", other), ("c", same), ("d", other), ("e", same + b"x"), ("f", same)]

        def fill(writer: CimWriter) -> None:
            for number, (name, data) in enumerate(order):
                step = 200_001 if number % 2 else 70_000
                pieces = [data[at : at + step] for at in range(0, len(data), step)]
                writer.put(name, FILE, writer.store(pieces, len(data)))

        files = Files()
        image = files.write("a", fill)
        found = listed(image)
        assert dict(order) == {name: content(image, file) for name, file in found.items()}
        assert len({image.record(file).data.offset for file in found.values()}) == 3
        assert files.regions[GUIDS[0], RegionType.DATA].size < 700_000

    def test_keeps_equal_small_contents_once_where_others_have_the_same_checksum(self) -> None:
        # CRC-32 of equal lengths is linear: what a difference does to it is the same wherever it is added.
        difference = (0x104C11DB7).to_bytes(5, "big")
        one = bytes(range(200))
        other = bytes(a ^ b for a, b in zip(one, _bits_reversed(difference).ljust(200, b"\0"), strict=True))
        assert one != other
        assert zlib.crc32(one) == zlib.crc32(other)
        order = [("a", one), ("b", other), ("c", one), ("d", other), ("e", other)]

        def fill(writer: CimWriter) -> None:
            for number, (name, data) in enumerate(order):
                pieces = [data] if number % 2 else [data[:70], data[70:]]
                writer.put(name, FILE, writer.store(pieces, len(data)))

        image = Files().write("a", fill)
        found = listed(image)
        assert dict(order) == {name: content(image, file) for name, file in found.items()}
        assert len({image.record(file).data.offset for file in found.values()}) == 2

    def test_remembers_directories_that_it_has_left(self) -> None:
        def fill(writer: CimWriter) -> None:
            for number in range(700):
                put(writer, f"d{number}", None)
                put(writer, f"d{number}/É{number}", b"")
            for number in range(0, 700, 50):
                put(writer, f"d{number}/b", b"")
                writer.link(f"d{number}/c", f"D{number}/é{number}")
                writer.delete(f"d{number + 1}/é{number + 1}")

        found = listed(Files().write("a", fill))
        assert len(found) == 1400 + 14 * 2 - 14
        assert found["d50/c"] == found["d50/É50"]
        assert "d51/É51" not in found

    def test_puts_big_files_on_pages_and_small_ones_close_together(self) -> None:
        def fill(writer: CimWriter) -> None:
            for number in range(4):
                put(writer, f"b{number}", bytes([number]) * 5000)
                put(writer, f"s{number}", bytes([number]) * 10)

        image = Files().write("a", fill)
        for name, file in listed(image).items():
            region, byte = place(image.record(file).data.offset)
            assert (RegionType.DATA if name[0] == "b" else RegionType.SMALL_DATA) == region
            assert byte % (4096 if name[0] == "b" else 8) == 0

    def test_has_the_same_bytes_for_the_same_calls(self) -> None:
        one, two = Files(), Files()
        one.write("a", simple)
        two.write("a", simple)
        assert one.names == two.names
        assert {key: region.data for key, region in one.regions.items()} == {
            key: region.data for key, region in two.regions.items()
        }

    def test_names_two_entries_for_one_hard_linked_file(self) -> None:
        def fill(writer: CimWriter) -> None:
            put(writer, "d", None)
            put(writer, "a", b"linked")
            writer.link("d/b", "A")
            put(writer, "a", b"new")

        image = Files().write("a", fill)
        found = listed(image)
        assert content(image, found["d/b"]) == b"linked"
        assert content(image, found["a"]) == b"new"

    def test_is_sorted_by_upper_case_names(self) -> None:
        names = ["b", "A", "ä", "Z", "_", "a1", "À", "😀", "\uffee"]

        def fill(writer: CimWriter) -> None:
            for name in names:
                put(writer, name, b"")

        image = Files().write("a", fill)
        stored = [name for name, _ in image.links(image.record(image.root))]
        fold = usual_upcase().fold
        assert sorted(names, key=fold) == stored

    def test_of_more_files_than_a_table_has_is_read_back(self) -> None:
        def fill(writer: CimWriter) -> None:
            for number in range(2500):
                put(writer, f"f{number}", b"%d" % number)

        image = Files().write("a", fill)
        assert [image.table(number)[1] for number in range(image.table_count)] == [1024, 1024, 453]
        assert all(b"%s" % name[1:].encode() == content(image, file) for name, file in listed(image).items())


class TestAFork:
    def test_shows_its_parent_with_its_own_changes(self) -> None:
        files = Files()
        files.write("base", simple)

        def change(writer: CimWriter) -> None:
            put(writer, "WINDOWS/A.TXT", b"changed")
            put(writer, "windows/new", b"new")
            writer.delete("none")
            put(writer, "Windows", None, Metadata(flags=2))

        image = files.write("child", change, "base")
        found = listed(image)
        assert {"Windows", "Windows/A.TXT", "Windows/Big.bin", "Windows/empty", "Windows/new"} == set(found)
        assert content(image, found["Windows/A.TXT"]) == b"changed"
        assert image.record(found["Windows"]).flags == 2
        assert content(files.read("base"), listed(files.read("base"))["Windows/a.txt"]) == b"hello"

    def test_leaves_the_parent_s_data_where_it_is(self) -> None:
        files = Files()
        base = files.write("base", simple)
        image = files.write("child", lambda writer: put(writer, "one", b"1"), "base")
        offset = base.record(listed(base)["Windows/Big.bin"]).data.offset
        assert offset == image.record(listed(image)["Windows/Big.bin"]).data.offset
        own = files.regions[GUIDS[1], RegionType.DATA]
        assert own.size == len(on_disk.region_header(1, RegionType.DATA))

    def test_keeps_the_tables_in_which_nothing_changed(self) -> None:
        files = Files()
        base = files.write("base", lambda writer: several(writer, *(f"f{n}" for n in range(3000))))
        image = files.write("child", lambda writer: put(writer, "new", b""), "base")
        same = [base.table(number) == image.table(number) for number in range(3)]
        assert same == [False, True, False]

    def test_of_a_fork_is_read_back(self) -> None:
        files = Files()
        files.write("0", simple)
        for number in range(1, 5):
            fill = partial(put, path=f"Windows/{number}", data=b"%d" % number)
            files.write(str(number), fill, str(number - 1))
        image = files.read("4")
        assert [content(image, listed(image)[f"Windows/{n}"]) for n in range(1, 5)] == [b"1", b"2", b"3", b"4"]
        assert len(image.filesystem.parents) == 4

    def test_says_which_region_of_its_parent_is_missing(self) -> None:
        files = Files()
        files.write("base", simple)
        files.write("child", lambda writer: put(writer, "one", b"1"), "base")
        del files.regions[GUIDS[0], RegionType.METADATA]
        with pytest.raises(NotFound, match=f"region_{GUIDS[0]}_0"):
            listed(files.read("child"))

    def test_cannot_have_the_guid_of_its_parent(self) -> None:
        files = Files()
        files.write("base", simple)
        writer = CimWriter(lambda _: Memory(), parent=files.read("base"))
        with pytest.raises(Conflict, match="parent"):
            writer.file(writer.write_tables(), GUIDS[0])


class TestAWriter:
    def writer(self) -> CimWriter:
        writer = CimWriter(lambda _: Memory())
        simple(writer)
        return writer

    def test_refuses_a_file_in_a_directory_that_is_not_there(self) -> None:
        with pytest.raises(NotFound):
            put(self.writer(), "no/file", b"")

    def test_refuses_a_file_in_a_file(self) -> None:
        with pytest.raises(InvalidInput, match="directory"):
            put(self.writer(), "windows/a.txt/x", b"")

    @pytest.mark.parametrize("name", ["..", ".", "a\\b", "a\0", "x" * 256, "😀" * 128])
    def test_refuses_a_name_that_no_image_has(self, name: str) -> None:
        with pytest.raises(InvalidInput):
            put(self.writer(), name, b"")

    def test_takes_the_longest_name(self) -> None:
        image = Files().write("a", lambda writer: put(writer, "x" * 255, b"x"))
        assert list(listed(image)) == ["x" * 255]

    def test_refuses_content_of_another_size(self) -> None:
        for size in (4, 6):
            with pytest.raises(SizeMismatch):
                self.writer().store([b"hello"], size)

    def test_refuses_to_link_or_delete_what_is_not_there(self) -> None:
        writer = self.writer()
        with pytest.raises(NotFound):
            writer.link("x", "y")
        with pytest.raises(NotFound):
            writer.delete("y")
        with pytest.raises(NotFound):
            writer.stream("y", "s", Stream())

    def test_refuses_a_hard_link_to_a_directory(self) -> None:
        with pytest.raises(InvalidInput, match="directory"):
            self.writer().link("x", "Windows")


class TestAReader:
    def broken(self, region: int, at: int, raw: bytes) -> CimReader:
        files = Files()
        files.write("a", simple)
        files.regions[GUIDS[0], region].data[at : at + len(raw)] = raw
        return files.read("a")

    def test_refuses_another_major_version(self) -> None:
        files = Files()
        files.write("a", simple)
        raw = bytearray(files.names["a"])
        raw[16:20] = struct.pack("<I", 4)
        files.names["a"] = bytes(raw)
        with pytest.raises(Unsupported, match=r"version 4\.0"):
            files.read("a")

    def test_reads_version_3(self) -> None:
        files = Files()
        files.write("a", simple)
        raw = bytearray(files.names["a"])
        raw[16:24] = struct.pack("<II", 3, 0)
        files.names["a"] = bytes(raw)
        assert len(listed(files.read("a"))) == 5

    @pytest.mark.parametrize("size", [88, 96, 120])
    def test_reads_records_that_are_shorter_or_longer(self, size: int) -> None:
        record = FileRecord(5, 0, 0, 1, 2, 3, 4, Stream(1 << 40, 77, StreamType.DATA), 8, 0, 0, 9, 7, 0)
        raw = record.pack().ljust(size, b"\xff")[:size]
        read = on_disk.parse_record(raw)
        assert (record.data, record.streams, record.write_time) == (read.data, read.streams, read.write_time)
        assert (0 if size == 88 else 7) == read.parent

    def test_reads_a_pe_image_whose_sections_lie_apart(self) -> None:
        files = Files()
        files.write("a", lambda writer: put(writer, "x.dll", b"a" * 100))
        region = files.regions[GUIDS[0], RegionType.METADATA]
        data = files.regions[GUIDS[0], RegionType.DATA]
        start = region.size
        at = data.size
        data.data += bytes(range(100)) + bytes(50) + bytes(range(100, 150))
        region.data += on_disk.IMAGE.pack(on_disk.region_offset(1, at), 150, 0, 1, 0) + on_disk.MAPPING.pack(100, 50)
        image = files.read("a")
        stream = Stream(on_disk.region_offset(0, start), 150, StreamType.IMAGE)
        assert bytes(range(150)) == b"".join(image.read(stream))
        assert bytes(range(90, 110)) == b"".join(image.read(stream, 90, 20))

    @pytest.mark.parametrize(
        ("length", "mappings", "problem"),
        [
            (150, [(100, 50), (60, 0)], "the mappings are not sorted"),
            (149, [(100, 50)], "the mappings end at 149, before the end of the stream at 150"),
            (1 << 48, [(100, 0xFFFFFFFF)], "the mapping at 100 points beyond any region"),
            (150, [(100, 0xFFFFFFFF)], "bytes exceed the"),
        ],
    )
    def test_refuses_a_pe_image_whose_mappings_lead_nowhere(
        self, length: int, mappings: list[tuple[int, int]], problem: str
    ) -> None:
        files = Files()
        files.write("a", lambda writer: put(writer, "x.dll", b"a" * 8192))
        region = files.regions[GUIDS[0], RegionType.METADATA]
        start = region.size
        region.data += on_disk.IMAGE.pack(on_disk.region_offset(1, 4096), length, 0, len(mappings), 0)
        region.data += b"".join(on_disk.MAPPING.pack(*each) for each in mappings)
        size = max(150, min(length, on_disk.MAX_LENGTH))
        stream = Stream(on_disk.region_offset(0, start), size, StreamType.IMAGE)
        image = files.read("a")
        with pytest.raises(FormatError, match=problem):
            for _ in image.read(stream, max(0, size - 10)):
                pass

    def swapped(self, one: str, other: str) -> tuple[CimReader, FileRecord]:
        """An image whose root has two names of one length in the places of each other."""
        image = Files().write("a", lambda writer: several(writer, one, other))
        root = image.record(image.root)
        memory = image._find_region(0, "test")
        assert isinstance(memory, Memory)
        names = sorted((one, other), key=lambda name: name.encode("utf-16-be"))
        start = place(root.data.offset)[1]
        places = struct.unpack_from("<2I", memory.data, start + 16)
        for at, name in zip(places, reversed(names), strict=True):
            raw = name.encode("utf-16-le")
            memory.data[start + at : start + at + 2 + len(raw)] = struct.pack("<H", len(raw) // 2) + raw
        return image, root

    def test_refuses_names_out_of_order(self) -> None:
        image, root = self.swapped("aa", "ab")
        with pytest.raises(FormatError, match="the names are not sorted: 'aa' follows 'ab'") as problem:
            image.links(root)
        second = place(root.data.offset)[1] + 12
        assert (problem.value.structure, problem.value.offset) == ("CIM link table", second)

    def test_takes_names_beyond_the_basic_plane_in_either_order(self) -> None:
        # As UTF-16 units the emoji comes first, as code points the other does.
        one, other = "😀", "\uffee\uffee"
        image = Files().write("a", lambda writer: several(writer, one, other))
        assert [one, other] == [name for name, _ in image.links(image.record(image.root))]
        image, root = self.swapped(one, other)
        assert [other, one] == [name for name, _ in image.links(root)]

    def test_reads_streams_in_the_counted_form_too(self) -> None:
        files = Files()

        def fill(writer: CimWriter) -> None:
            put(writer, "f", b"")
            writer.stream("f", "s", writer.store([b"12345"], 5))

        image = files.write("a", fill)
        record = image.record(listed(image)["f"])
        region = files.regions[GUIDS[0], RegionType.METADATA]
        byte = place(record.streams)[1]
        (length,) = struct.unpack_from("<I", region.data, byte)
        record.streams = region.size
        region.data += struct.pack("<I", length) + region.data[byte : byte + length]
        assert [(n, b"".join(image.read(s))) for n, s in files.read("a").streams(record)] == [("s", b"12345")]

    def test_refuses_names_that_differ_in_case_alone(self) -> None:
        image = Files().write("a", lambda writer: several(writer, "aa", "ab"))
        root = image.record(image.root)
        region, byte = place(root.data.offset)
        memory = image._find_region(region, "test")
        assert isinstance(memory, Memory)
        at = bytes(memory.data).index("ab".encode("utf-16-le"), byte)
        memory.data[at : at + 4] = "AA".encode("utf-16-le")
        with pytest.raises(FormatError, match="case"):
            image.links(root)

    def test_refuses_a_count_beyond_its_table(self) -> None:
        image = Files().write("a", simple)
        root = image.record(image.root)
        for count in (1_000_000_000, 0xFFFFFFFF, 3):
            memory = image._find_region(0, "test")
            assert isinstance(memory, Memory)
            struct.pack_into("<I", memory.data, place(root.data.offset)[1] + 4, count)
            with pytest.raises(FormatError, match="CIM link table"):
                image.links(root)

    def test_names_the_structure_and_the_offset(self) -> None:
        image = Files().write("a", simple)
        record = FileRecord(security=on_disk.region_offset(0, 1 << 30))
        with pytest.raises(FormatError) as problem:
            image.security(record)
        assert (problem.value.structure, problem.value.offset) == ("CIM security descriptor", 1 << 30)

    def test_refuses_a_region_of_another_kind(self) -> None:
        with pytest.raises(FormatError, match="kind"):
            self.broken(0, 12, b"\2").record(1)


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\\\0."), min_size=1, max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("file"), NAMES, NAMES, st.binary(max_size=40)),
        st.tuples(st.just("dir"), NAMES, st.just(""), st.just(b"")),
        st.tuples(st.just("delete"), NAMES, st.one_of(NAMES, st.just("")), st.just(b"")),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(layers=st.lists(STEPS, min_size=1, max_size=3))
def test_any_stack_of_forks_agrees_with_a_plain_dictionary(layers: list[list[tuple[str, str, str, bytes]]]) -> None:
    fold = usual_upcase().fold
    files = Files()
    model: dict[str, tuple[str, dict[str, tuple[str, bytes]] | bytes]] = {}
    for number, steps in enumerate(layers):

        def fill(writer: CimWriter, steps: list[tuple[str, str, str, bytes]] = steps) -> None:
            for what, one, two, data in steps:
                key = fold(one)
                there = model.get(key)
                if what == "file":
                    if there is None or isinstance(there[1], bytes):
                        put(writer, one, None)
                        there = model[key] = (one, {})
                    put(writer, f"{one}/{two}", data)
                    inside = there[1]
                    assert isinstance(inside, dict)
                    inside[fold(two)] = (two, data)
                elif what == "dir":
                    put(writer, one, None)
                    if there is None or isinstance(there[1], bytes):
                        model[key] = (one, {})
                elif there is not None and not two:
                    writer.delete(one)
                    del model[key]
                elif there is not None and isinstance(there[1], dict) and fold(two) in there[1]:
                    writer.delete(f"{one}/{two}")
                    del there[1][fold(two)]

        image = files.write(str(number), fill, str(number - 1) if number else None)
        expected: dict[str, bytes | None] = {}
        for name, inside in model.values():
            expected[name] = None
            assert isinstance(inside, dict)
            expected |= {f"{name}/{child}": data for child, data in inside.values()}
        actual = {
            path: None if image.record(file).is_directory else content(image, file)
            for path, file in listed(image).items()
        }
        assert expected == actual


def test_every_field_of_a_small_image_broken_gives_an_error_or_the_same_tree() -> None:
    """Each aligned four bytes of the metadata set to nothing, all ones and one more or less."""
    files = Files()

    def fill(writer: CimWriter) -> None:
        simple(writer)
        writer.stream("Windows/a.txt", "s", writer.store([b"x"], 1))
        put(writer, "meta", b"1", Metadata(security=b"sd", extended_attributes=b"ea", reparse=b"\x0c\0\0\xa0"))

    files.write("a", fill)
    region = files.regions[GUIDS[0], RegionType.METADATA]
    upcase = place(files.read("a").upcase_offset)[1]
    places = [at for at in range(0, region.size - 3, 4) if not upcase <= at < upcase + TABLE_SIZE]
    refused = 0
    for at in places:
        (value,) = struct.unpack_from("<I", region.data, at)
        for wrong in {0, 0xFFFFFFFF, (value + 1) & 0xFFFFFFFF, (value - 1) & 0xFFFFFFFF} - {value}:
            struct.pack_into("<I", region.data, at, wrong)
            try:
                everything(files.read("a"))
            except (FormatError, NotFound, Unsupported):
                refused += 1
        struct.pack_into("<I", region.data, at, value)
    everything(files.read("a"))
    assert refused > 200


def everything(image: CimReader) -> int:
    """Read all there is, in bounded time whatever the links say; the number of files."""
    seen: set[int] = set()
    todo = [image.root]
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        record = image.record(file)
        image.security(record)
        image.reparse(record)
        image.extended_attributes(record)
        for _, stream in image.streams(record):
            sum(map(len, image.read(stream, size=1 << 20)))
        if record.is_directory:
            todo += [child for _, child in image.links(record)]
        else:
            sum(map(len, image.read(record.data, size=1 << 20)))
    return len(seen)


def test_a_file_that_is_cut_anywhere_gives_an_error() -> None:
    files = Files()
    files.write("a", simple)
    whole = files.names["a"]
    for length in range(len(whole)):
        with pytest.raises(FormatError):
            CimReader(whole[:length], files.region)
    region = files.regions[GUIDS[0], RegionType.METADATA]
    data = bytes(region.data)
    for length in range(0, len(data), 64):
        region.data[:] = data[:length]
        with pytest.raises(FormatError):
            everything(files.read("a"))


def test_upper_case_leaves_alone_what_ntfs_does() -> None:
    fold = usual_upcase().fold
    assert fold("äéσж\u0131\u017f") == "ÄÉΣЖ\u0131\u017f"
    assert fold("ssß") == "SSß"
    assert len(usual_upcase().table) == 65536


def test_a_guid_is_written_in_the_form_of_windows() -> None:
    guid = UUID("00112233-4455-6677-8899-aabbccddeeff")
    raw = on_disk.RegionSet(guid, 3).pack()
    assert bytes.fromhex("33221100554477668899aabbccddeeff0300") == raw[:18]
