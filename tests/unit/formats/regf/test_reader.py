# SPDX-License-Identifier: Apache-2.0
"""What is read of a hive, and what is refused."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

import pytest
from tests.unit.formats.regf.hives import TIME, changed, picture, read_back, small, summed, utf16

from lamella.errors import FormatError, NotFound, Unsupported
from lamella.formats.regf import Hive, HiveKey, Layering, MemoryKey, encode_hive
from lamella.formats.regf.cells import KEY
from lamella.formats.regf.keys import REG_BINARY, REG_DWORD, REG_NONE, REG_SZ, fold

HIVE = encode_hive(small())


def read_all(key: HiveKey) -> None:
    assert isinstance(key.security + key.class_name.encode(), bytes)
    key.values()
    for one in key.subkeys():
        read_all(one)


def nk(data: bytes, path: str) -> int:
    """Return the position of a key's record."""
    return 4096 + Hive(data).key(path).offset + 4


def word(data: bytes | bytearray, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


# What is there -----------------------------------------------------------------------------------------------------


def test_a_hive_gives_back_the_keys_it_was_made_of() -> None:
    assert picture(small()) == picture(Hive(HIVE).root_key)


def test_keys_and_values_are_found_in_any_case() -> None:
    hive = Hive(HIVE)
    assert hive.key("CONTROL").name == "Control"
    assert hive.key("\\Services\\S1").value("n") == ("N", REG_DWORD, b"\1\0\0\0", False)
    assert hive.key("Control").value("GRÖSSE") is None
    assert hive.key("Control").value("grÖßE") == ("Größe", REG_BINARY, bytes(range(40)), False)
    assert hive.root_key.value("") == ("", REG_SZ, utf16("default\0"), False)


def test_names_stand_between_slashes_only_where_there_is_no_backslash() -> None:
    root = MemoryKey("")
    root.make("MIME").make("text/plain")
    hive = read_back(root)
    assert hive.key("MIME\\text/plain").name == "text/plain"
    assert hive.key("/mime/").name == "MIME"
    assert hive.key("").offset == hive.root
    with pytest.raises(NotFound, match=r"no key 'text' in '..mime'"):
        hive.key("mime/text/plain")


def test_upper_case_goes_letter_by_letter() -> None:
    assert fold("straße ÿ ǆ µ ŉ ᾳ") == "STRAßE Ÿ Ǆ µ ŉ ᾼ"
    assert fold("\U0001d4b3a") == "\ud835\udcb3A"
    assert fold("\udcff") == "\udcff"


def test_marks_mean_something_only_where_the_base_block_or_the_caller_says_so() -> None:
    root = MemoryKey("")
    root.make("gone").layering = Layering.TOMBSTONE
    root.make("kept").inherit_class = True
    root.hide("v")
    data = encode_hive(root)
    plain = changed(data, 144, bytes(4))
    assert [(key.layering, key.inherit_class) for key in Hive(data).root_key.subkeys()] == [
        (Layering.TOMBSTONE, False),
        (Layering.MERGE, True),
    ]
    assert Hive(data).root_key.values() == [("v", REG_NONE, b"", True)]
    assert Hive(plain).root_key.values() == [("v", REG_NONE, b"", False)]
    assert [key.layering for key in Hive(plain).root_key.subkeys()] == [Layering.MERGE] * 2
    assert picture(Hive(data).root_key) == picture(Hive(plain, layered=True).root_key)


def test_looking_a_key_up_reads_little_of_the_hive() -> None:
    root = MemoryKey("")
    for outer in range(60):
        for inner in range(60):
            root.make(f"k{outer}").make(f"{inner}").put("v", REG_BINARY, bytes(100))
    data = encode_hive(root)
    # Whatever is not on the way may be damaged.
    cut = bytearray(data)
    for number in range(1, 60):
        at = nk(data, f"k{number}/{number}")
        cut[at : at + 2] = b"xx"
    assert Hive(bytes(cut)).key("K0\\59").value("V") == ("v", REG_BINARY, bytes(100), False)


@pytest.mark.parametrize("kind", [b"lf", b"li"])
def test_the_lists_of_older_versions_are_read(kind: bytes) -> None:
    at = 4096 + 4 + word(HIVE, nk(HIVE, "services") + 28)
    if kind == b"lf":
        data = changed(HIVE, at, kind)
    else:
        offsets = [word(HIVE, at + 4 + 8 * number) for number in range(3)]
        data = changed(HIVE, at, b"li" + struct.pack("<H3I", 3, *offsets))
    data = changed(data, 24, struct.pack("<I", 3))
    assert [key.name for key in Hive(data).key("services").subkeys()] == ["s0", "s1", "s2"]


def test_large_data_in_one_cell_is_read_as_older_versions_and_some_writers_have_it() -> None:
    root = MemoryKey("")
    root.put("v", REG_BINARY, bytes(16344))
    data = bytearray(encode_hive(root))
    value = 4096 + 4 + word(data, 4096 + 4 + word(data, nk(bytes(data), "") + 40))
    cell = word(data, value + 8)
    size = 20_000
    free = len(data) - 4096
    data += struct.pack("<4sII8xQ4x", b"hbin", free, 20480, 0)
    data += struct.pack("<i", -(20480 - 32)) + b"db" + bytes(20480 - 32 - 6)
    struct.pack_into("<II", data, value + 4, size, free + 32)
    struct.pack_into("<I", data, 40, len(data) - 4096)
    for minor in (3, 5):
        struct.pack_into("<I", data, 24, minor)
        found = Hive(summed(data)).root_key.value("v")
        assert found is not None
        assert found.data == b"db" + bytes(size - 2)
    assert cell != free + 32


def test_a_key_that_is_a_predefined_handle_has_no_values() -> None:
    at = nk(HIVE, "services\\s0")
    flags = struct.unpack_from("<H", HIVE, at + 2)[0] | 0x40
    data = changed(changed(HIVE, at + 2, struct.pack("<H", flags)), at + 36, struct.pack("<I", 0x80000005))
    assert Hive(data).key("services\\s0").values() == []


def test_what_stands_behind_the_bins_is_ignored() -> None:
    assert picture(small()) == picture(Hive(HIVE + b"remnants").root_key)


def test_the_base_block_tells_about_the_hive() -> None:
    hive = Hive(encode_hive(small(), file_name="\\??\\C:\\Hives\\System_Base"))
    assert (
        hive.file_name,
        hive.time,
        hive.minor,
        hive.layered,
        hive.dirty,
    ) == ("\\??\\C:\\Hives\\System_Base", TIME, 5, False, False)


# What is refused ---------------------------------------------------------------------------------------------------


def test_a_dirty_hive_is_read_only_when_asked_for() -> None:
    data = changed(HIVE, 4, struct.pack("<I", 7))
    with pytest.raises(Unsupported, match=r"dirty .sequence numbers 7 and 1.") as caught:
        Hive(data)
    assert "--dirty" in (caught.value.hint or "")
    assert Hive(data, dirty=True).dirty
    assert picture(small()) == picture(Hive(data, dirty=True).root_key)


def test_a_wrong_checksum_is_an_error_unless_the_hive_may_be_dirty() -> None:
    data = HIVE[:48] + b"x" + HIVE[49:]
    with pytest.raises(FormatError, match="regf at offset 508: the checksum is"):
        Hive(data)
    assert Hive(data, dirty=True).dirty


@pytest.mark.parametrize(
    ("at", "value", "problem"),
    [
        (28, 1, "the file is a log of a hive"),
        (20, 2, r"unsupported hive version 2\.5"),
        (24, 2, r"unsupported hive version 1\.2"),
        (24, 7, r"unsupported hive version 1\.7"),
    ],
)
def test_what_lamella_does_not_read_is_called_so(at: int, value: int, problem: str) -> None:
    with pytest.raises(Unsupported, match=problem):
        Hive(changed(HIVE, at, struct.pack("<I", value)))


Damage = Callable[[], bytes]


def base(at: int, value: int) -> Damage:
    return lambda: changed(HIVE, at, struct.pack("<I", value))


def key(path: str, at: int, value: int, width: str = "<I") -> Damage:
    return lambda: changed(HIVE, nk(HIVE, path) + at, struct.pack(width, value))


def value(at: int, number: int, width: str = "<I") -> Damage:
    """Damage to the first value of the first service."""

    def damage() -> bytes:
        listed = word(HIVE, nk(HIVE, "services\\s0") + 40)
        return changed(HIVE, 4096 + 4 + word(HIVE, 4096 + 4 + listed) + at, struct.pack(width, number))

    return damage


ROOT_OFFSET = Hive(HIVE).root
SERVICES = Hive(HIVE).key("services").offset
S0 = Hive(HIVE).key("services\\s0").offset


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda: b"", "regf at offset 0: 0 bytes"),
        (lambda: HIVE[:4095], "regf at offset 0: 4095 bytes"),
        (lambda: HIVE[:-4096], "regf at offset 40: bins of"),
        (lambda: b"REGF" + HIVE[4:], "the signature is b'REGF'"),
        (base(32, 2), "regf at offset 32: the file format is 2"),
        (base(36, 0xFFFFFFFF), "nk at offset 4294967295: the offset is null"),
        (base(36, 0x00FFFFF8), "nk at offset 16777208: the offset is outside the bins"),
        (base(36, ROOT_OFFSET + 1), "the offset is inside a cell"),
        (base(36, ROOT_OFFSET + 8), "no cell starts at the offset"),
        (base(36, 0), "nk at offset 0: no cell starts at the offset"),
        (base(40, 0), "bins of 0 bytes"),
        (base(40, 4097), "hbin at offset 4096"),
        (base(4096, 0), "hbin at offset 0: the signature"),
        (base(4096 + 4, 4096), "hbin at offset 0: the stated offset is 4096"),
        (base(4096 + 8, 0), "hbin at offset 0: invalid size 0"),
        (base(4096 + 8, 4095), "hbin at offset 0: invalid size 4095"),
        (base(4096 + 8, 1 << 30), "hbin at offset 0: invalid size"),
        (base(4096 + 32, 0), "cell at offset 32: invalid size 0"),
        (base(4096 + 32, 0x80000000), "cell at offset 32: invalid size 2147483648"),
        (base(4096 + 32, 88), "nk at offset 32: the cell is free"),
        (key("", 0, 0x6B73, "<H"), "the signature is b'sk'"),
        (key("", 72, 60_000, "<H"), "a name of 60000 bytes"),
        (key("services", 72, 0, "<H"), "the name is empty"),
        (key("日本", 72, 3, "<H"), "a UTF-16 name of 3 bytes"),
        (key("", 20, 2), "2 subkeys, but 3 listed"),
        (key("", 20, 0xFFFFFFFF), "4294967295 subkeys, but 3 listed"),
        (key("", 28, 0xFFFFFFFF), "the offset is null"),
        (key("services", 28, ROOT_OFFSET), "the cell has a second owner"),
        (key("services\\s0", 36, 0x40000000), "1073741824 elements"),
        (key("services\\s0", 44, 32), "the cell has a second owner"),
        (key("Control", 74, 60_000, "<H"), "class name at offset"),
        (key("Control", 74, 3, "<H"), "a UTF-16 name of 3 bytes"),
        (value(0, 0x7878, "<H"), "the signature is b'xx'"),
        (value(2, 99, "<H"), "a name of 99 bytes"),
        (value(4, 0x80000005), "5 bytes of inline data"),
        (value(4, 4), "data at offset 0: no cell starts at the offset"),
    ],
)
def test_damage_is_named_with_its_place(damage: Damage, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        read_all(Hive(damage()).root_key)


def test_a_key_cannot_be_its_own_subkey() -> None:
    at = 4096 + 4 + word(HIVE, nk(HIVE, "services") + 28)
    with pytest.raises(FormatError, match=f"nk at offset {SERVICES}: the cell has a second owner"):
        read_all(Hive(changed(HIVE, at + 4, struct.pack("<I", SERVICES))).root_key)
    with pytest.raises(FormatError, match=f"nk at offset {ROOT_OFFSET}: the cell has a second owner"):
        read_all(Hive(changed(HIVE, at + 4, struct.pack("<I", ROOT_OFFSET))).root_key)


def test_a_subkey_is_listed_once() -> None:
    at = 4096 + 4 + word(HIVE, nk(HIVE, "services") + 28)
    with pytest.raises(FormatError, match="two elements refer to the same cell"):
        read_all(Hive(changed(HIVE, at + 12, struct.pack("<I", S0))).root_key)


def test_two_keys_cannot_share_their_values_or_subkeys() -> None:
    first, second = nk(HIVE, "services\\s0"), nk(HIVE, "services\\s1")
    data = changed(HIVE, second + 36, HIVE[first + 36 : first + 44])
    with pytest.raises(FormatError, match=r"values at offset .*: the cell has a second owner"):
        read_all(Hive(data).root_key)
    data = changed(HIVE, first + 20, HIVE[nk(HIVE, "") + 20 : nk(HIVE, "") + 32])
    with pytest.raises(FormatError, match=r"subkeys at offset .*: the cell has a second owner"):
        read_all(Hive(data).root_key)


@pytest.mark.parametrize(
    ("at", "replacement", "problem"),
    [
        (0, b"xx", "db at offset .*: the signature is b'xx'"),
        (2, struct.pack("<H", 2), "2 segments for 38400 bytes"),
        (2, struct.pack("<H", 0xFFFF), "65535 segments"),
        (4, struct.pack("<I", 0xFFFFFFFF), "the offset is null"),
    ],
)
def test_damaged_large_data_is_refused(at: int, replacement: bytes, problem: str) -> None:
    where = HIVE.index(b"db\x03\x00")
    with pytest.raises(FormatError, match=problem):
        read_all(Hive(changed(HIVE, where + at, replacement)).root_key)


def test_a_segment_is_as_long_as_it_must_be() -> None:
    segments = 4096 + 4 + word(HIVE, HIVE.index(b"db\x03\x00") + 4)
    first, second, third = struct.unpack_from("<3I", HIVE, segments)
    with pytest.raises(FormatError, match=r"db segment at offset .*: only \d+ of 16344 bytes"):
        read_all(Hive(changed(HIVE, segments, struct.pack("<3I", third, second, first))).root_key)


def nested(levels: int) -> bytes:
    """Return a hive with that many levels, written without the writer's limit."""
    key_size = (KEY.size + 1 + 11) & -8
    cells = b""
    start = 32
    unit = key_size + 16
    security = start + levels * unit
    for level in range(levels):
        at = start + level * unit
        last = level == levels - 1
        fields = (b"nk", 0x2C if not level else 0x20, 0, 0, 0, not last, 0, at + key_size, 0, 0, 0, security)
        record = KEY.pack(*fields, 0xFFFFFFFF, 0, 0, 0, 0, 0, 1, 0) + b"k"
        cells += struct.pack("<i", -key_size) + record.ljust(key_size - 4, b"\0")
        cells += struct.pack("<i2sHII", -16, b"lh", 1, at + unit, 0)
    cells += struct.pack("<i2s2xIIII", -24, b"sk", security, security, levels, 0)
    size = -(-(32 + len(cells) + 8) // 4096) * 4096
    cells += struct.pack("<i", size - 32 - len(cells))
    bins = (struct.pack("<4sII8xQ4x", b"hbin", 0, size, 0) + cells).ljust(size, b"\0")
    return summed(struct.pack("<4sIIQIIIIIII", b"regf", 1, 1, 0, 1, 5, 0, 1, 32, size, 1).ljust(4096, b"\0") + bins)


def deepest(hive: Hive) -> int:
    level, subkeys = 0, hive.root_key.subkeys()
    while subkeys:
        level, subkeys = level + 1, subkeys[0].subkeys()
    return level


def test_a_hive_has_at_most_512_levels() -> None:
    assert deepest(Hive(nested(513))) == 512
    with pytest.raises(FormatError, match="the key is deeper than 512 levels"):
        deepest(Hive(nested(514)))


def test_a_list_of_lists_cannot_name_one_list_many_times() -> None:
    root = MemoryKey("")
    for number in range(507):
        root.make(f"{number:04}")
    data = encode_hive(root)
    lists = 4096 + 4 + word(data, nk(data, "") + 28)
    assert data[lists : lists + 4] == b"ri\x02\x00"
    first = word(data, lists + 4)
    with pytest.raises(FormatError, match=r"ri at offset .*: two elements refer to the same cell"):
        Hive(changed(data, lists + 8, struct.pack("<I", first))).root_key.subkeys()
    with pytest.raises(FormatError, match="the signature is b'ri'"):
        Hive(changed(data, lists + 4, struct.pack("<I", lists - 4 - 4096))).root_key.subkeys()
    with pytest.raises(FormatError, match="507 subkeys, but 506 listed"):
        Hive(changed(data, lists + 2, struct.pack("<H", 1))).root_key.subkeys()


def test_keys_that_lead_to_one_large_list_cost_no_more_than_the_file() -> None:
    """A megabyte of keys, each with the same ten thousand values: refused at the second key."""
    root = MemoryKey("")
    many = root.make("0")
    for number in range(10_000):
        many.put(str(number), REG_DWORD, b"1234")
    for number in range(1, 8000):
        root.make(f"{number}")
    data = bytearray(encode_hive(root))
    hive = Hive(bytes(data))
    source = 4096 + hive.key("0").offset + 4
    for one in hive.root_key.subkeys():
        at = 4096 + one.offset + 4
        data[at + 36 : at + 44] = data[source + 36 : source + 44]
    start = time.process_time()
    with pytest.raises(FormatError, match="the cell has a second owner"):
        read_all(Hive(summed(data)).root_key)
    assert time.process_time() - start < 3
