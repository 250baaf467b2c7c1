# SPDX-License-Identifier: Apache-2.0
"""What the writer makes of keys, byte by byte where Windows is particular."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from tests.unit.formats.regf.hives import OTHER_SECURITY, TIME, picture, read_back, small, utf16

from lamella.errors import InvalidInput
from lamella.formats.regf import Hive, HiveKey, Layering, MemoryKey, encode_hive
from lamella.formats.regf.cells import BIN, CHECKSUM, KEY
from lamella.formats.regf.keys import DEFAULT_SECURITY, REG_BINARY, REG_SZ

NIL = 0xFFFFFFFF


def cells(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the offset, size and content of each cell; a free cell's size is positive."""
    bins = data[4096:]
    at = 0
    while at < len(bins):
        signature, offset, size, _ = BIN.unpack_from(bins, at)
        assert (signature, offset, size % 4096) == (b"hbin", at, 0)
        cell, end = at + 32, at + size
        while cell < end:
            length = struct.unpack_from("<i", bins, cell)[0]
            assert (abs(length) % 8, 8 <= abs(length) <= end - cell) == (0, True)
            yield cell, length, bins[cell + 4 : cell + abs(length)]
            cell += abs(length)
        at = end


def record(data: bytes, key: HiveKey) -> tuple[bytes | int, ...]:
    return KEY.unpack_from(data, 4096 + key.offset + 4)


def words(data: bytes, offset: int, count: int) -> tuple[int, ...]:
    return struct.unpack_from(f"<{count}I", data, 4096 + offset)


def test_the_base_block_is_as_the_format_wants_it() -> None:
    data = encode_hive(small(), file_name="System_Base")
    assert struct.unpack_from("<4sIIQIIIIIII", data) == (
        *(b"regf", 1, 1, TIME, 1, 5, 0, 1),
        *(Hive(data).root, len(data) - 4096, 1),
    )
    assert data[48:112] == utf16("System_Base").ljust(64, b"\0")
    total = 0
    for number in words(data, -4096, 127):
        total ^= number
    assert struct.unpack_from("<I", data, CHECKSUM)[0] == total
    assert data[112:CHECKSUM] == bytes(CHECKSUM - 112)
    assert data[CHECKSUM + 4 : 4096] == bytes(4096 - CHECKSUM - 4)
    assert BIN.unpack_from(data, 4096)[3] == TIME


def test_the_same_keys_give_the_same_bytes() -> None:
    assert encode_hive(small()) == encode_hive(small())
    assert encode_hive(small()) == encode_hive(read_back(small()).root_key)


def test_a_long_file_name_keeps_its_end_as_windows_does() -> None:
    hive = Hive(encode_hive(small(), file_name="\\" + "x" * 40 + "\\System_Base"))
    assert hive.file_name == "x" * 19 + "\\System_Base"


def test_every_cell_is_used_once_or_free() -> None:
    data = encode_hive(small())
    found = list(cells(data))
    tags = [content[:2] for _, length, content in found if length < 0]
    assert tags.count(b"nk") == 8
    assert tags.count(b"vk") == 9
    assert tags.count(b"sk") == 2
    assert tags.count(b"lh") == 3
    assert tags.count(b"db") == 1
    free = [length for _, length, _ in found if length > 0]
    assert sum(free) < 4096 + 4096  # each full segment leaves a page of its bin, and small cells take one of them


def test_the_root_has_its_flags_and_no_parent() -> None:
    data = encode_hive(small())
    root = Hive(data).root_key
    assert record(data, root)[:5] == (b"nk", 0x2C, TIME, 0, NIL)
    assert record(data, root.subkeys()[0])[1:5] == (0x20, TIME, 0, root.offset)
    assert record(data, Hive(data).key("services"))[1] == 0x30
    assert record(data, Hive(data).key("日本"))[1] == 0


def test_a_key_knows_its_longest_names_and_largest_data() -> None:
    root = MemoryKey("")
    root.make("日本").class_name = "klass"
    root.make("abc")
    root.put("name", REG_BINARY, bytes(20_000))
    root.put("longest", REG_BINARY, b"")
    data = encode_hive(root)
    assert record(data, Hive(data).root_key)[13:18] == (6, 0, 10, 14, 20_000)


def test_subkeys_are_sorted_by_upper_case_units_and_hashed() -> None:
    root = MemoryKey("")
    for name in ("b", "A", "_", "ä", "\U0001f4be", "\uff21", "Z"):
        root.make(name)
    data = encode_hive(root)
    hive = Hive(data)
    # "_" lies between upper and lower case; a letter beyond the first plane begins with a unit below U+FF21.
    assert [key.name for key in hive.root_key.subkeys()] == ["A", "b", "Z", "_", "ä", "\U0001f4be", "\uff21"]
    listed = words(data, int(record(data, hive.root_key)[7]) + 4, 1 + 2 * 7)
    assert listed[0] == struct.unpack("<I", b"lh\x07\x00")[0]
    hashes = dict(zip((key.name for key in hive.root_key.subkeys()), listed[2::2], strict=True))
    assert hashes["b"] == ord("B")
    assert hashes["ä"] == ord("Ä")
    assert hashes["\U0001f4be"] == 0xD83D * 37 + 0xDCBE


def test_hashes_are_of_32_bits() -> None:
    root = MemoryKey("")
    root.make("ControlSet001")
    data = encode_hive(root)
    expected = 0
    for letter in "CONTROLSET001":
        expected = (expected * 37 + ord(letter)) % (1 << 32)
    assert words(data, int(record(data, Hive(data).root_key)[7]) + 12, 1) == (expected,)


@pytest.mark.parametrize(("count", "leaves"), [(506, 1), (507, 2), (1013, 3)])
def test_many_subkeys_are_in_a_list_of_lists(count: int, leaves: int) -> None:
    root = MemoryKey("")
    for number in range(count):
        root.make(f"{number:05}")
    data = encode_hive(root)
    hive = Hive(data)
    assert [key.name for key in hive.root_key.subkeys()] == [f"{number:05}" for number in range(count)]
    tags = [content[:2] for _, length, content in cells(data) if length < 0]
    assert (tags.count(b"lh"), tags.count(b"ri")) == (leaves, int(leaves > 1))
    assert hive.key("00505").name == "00505"


@pytest.mark.parametrize("size", [0, 1, 4, 5, 12, 16343, 16344, 16345, 32688, 32689, 100_000])
def test_data_of_any_size_comes_back(size: int) -> None:
    content = bytes(number * 7 % 251 for number in range(size))
    root = MemoryKey("")
    root.put("v", REG_BINARY, content)
    root.put("w", REG_BINARY, b"\1" * size)
    data = encode_hive(root)
    assert [value.data for value in Hive(data).root_key.values()] == [content, b"\1" * size]
    big = [content for _, length, content in cells(data) if length < 0 and content[:2] == b"db"]
    assert len(big) == (2 if size > 16344 else 0)


def test_small_data_stands_in_the_value() -> None:
    root = MemoryKey("")
    root.put("v", 0x12345, b"\xaa\xbb")
    data = encode_hive(root)
    at = data.index(b"vk\x01\x00")
    assert struct.unpack_from("<2sHIIIHH1s", data, at) == (b"vk", 1, 0x80000002, 0xBBAA, 0x12345, 1, 0, b"v")


def test_descriptors_are_kept_once_in_a_ring_and_counted() -> None:
    root = MemoryKey("")
    third = DEFAULT_SECURITY[:-1] + b"\1"
    for number, descriptor in enumerate([DEFAULT_SECURITY, OTHER_SECURITY, third, OTHER_SECURITY]):
        root.make(str(number)).security = descriptor
    data = encode_hive(root)
    found = {at: struct.unpack_from("<IIII", content, 4) for at, _, content in cells(data) if content[:2] == b"sk"}
    first, second, last = found
    assert found == {
        first: (second, last, 2, len(DEFAULT_SECURITY)),
        second: (last, first, 2, len(OTHER_SECURITY)),
        last: (first, second, 1, len(third)),
    }


def test_marks_of_a_delta_make_it_a_layered_hive() -> None:
    root = MemoryKey("", inherit_class=True)
    root.make("gone").layering = Layering.TOMBSTONE
    root.make("tree").layering = Layering.SUPERSEDE_TREE
    root.hide("value")
    data = encode_hive(root)
    assert (struct.unpack_from("<I", data, 24)[0], struct.unpack_from("<I", data, 144)[0]) == (6, 2)
    assert data[4096 + Hive(data).root + 4 + 13] == 0x80
    assert data[4096 + Hive(data).key("gone").offset + 4 + 13] == 1
    at = data.index(b"vk\x05\x00")
    assert struct.unpack_from("<2sHIIIH", data, at) == (b"vk", 5, 0, NIL, 0, 3)
    assert picture(root) == picture(Hive(data).root_key)


def test_bins_are_of_the_size_their_cells_need() -> None:
    root = MemoryKey("")
    for number in range(50):
        root.put(str(number), REG_BINARY, bytes(16344 if number % 2 else 3000))
    data = encode_hive(root)
    used = sum(-length for _, length, _ in cells(data) if length < 0)
    assert used < len(data) < 1.1 * used


class TestWhatAHiveCannotHold:
    """Each is refused by name, and nothing half written comes out."""

    def refused(self, root: MemoryKey) -> str:
        with pytest.raises(InvalidInput) as caught:
            encode_hive(root)
        return str(caught.value)

    def test_an_empty_name(self) -> None:
        root = MemoryKey("")
        root.make("")
        assert self.refused(root) == "a key's name has 1 to 256 letters, not 0"

    def test_a_name_that_is_too_long(self) -> None:
        root = MemoryKey("")
        root.make("\U0001f4be" * 129)
        assert self.refused(root) == "a key's name has 1 to 256 letters, not 258"
        root = MemoryKey("")
        root.put("x" * 16384, REG_SZ, b"")
        assert self.refused(root) == "the name of a value exceeds 16383 letters: 16384"

    def test_names_that_differ_in_case_alone(self) -> None:
        root = MemoryKey("")
        root.make("a")
        root.make("b").name = "A"
        assert self.refused(root) == "key '' has two subkeys 'A', which differ at most in case"

    def test_a_key_without_a_descriptor(self) -> None:
        assert self.refused(MemoryKey("", security=b"")) == "a key has no security descriptor"

    def test_numbers_beyond_their_fields(self) -> None:
        root = MemoryKey("")
        root.put("v", 1 << 32, b"")
        assert self.refused(root).startswith("a number does not fit its field")
        assert self.refused(MemoryKey("", time=-1)).startswith("a number does not fit its field")

    def test_more_than_512_levels(self) -> None:
        root = key = MemoryKey("")
        for _ in range(512):
            key = key.make("k")
        assert Hive(encode_hive(root)).root_key.name == ""
        key.make("k")
        assert self.refused(root) == "the subkeys of 'k' are deeper than 512 levels"
