# SPDX-License-Identifier: Apache-2.0
"""Times, attributes, names, reparse points and extended attributes of NTFS."""

from __future__ import annotations

import pytest

from lamella.errors import FormatError, InvalidInput
from lamella.formats.ntfs import extended_attributes, names, reparse
from lamella.formats.ntfs.basic_information import (
    FILETIME_ZERO,
    UNIX_EPOCH,
    name_attributes,
    ns_from_ticks,
    ticks_from_ns,
    unwrap_time,
    wrap_time,
)
from lamella.formats.ntfs.extended_attributes import ExtendedAttribute
from lamella.formats.ntfs.reparse import MountPoint, Symlink, Unknown

SYMLINK = bytes.fromhex("0c0000a0200000000000 08000a000800 01000000 2e002e005c0078000000 2e002e005c0078000000")
JUNCTION = bytes.fromhex("030000a0240000000000 100012000800 5c003f003f005c0043003a005c0078000000 43003a005c0078000000")
CHAIN = bytes.fromhex(
    "1000000000030300464f4f0062617200 2400000000160500244b45524e454c2e50555247452e4553424341434845000102030405"
    "0000000000050000454d505459000000"
)
ATTRIBUTES = [
    ExtendedAttribute(b"FOO", b"bar"),
    ExtendedAttribute(b"$KERNEL.PURGE.ESBCACHE", b"\1\2\3\4\5"),
    ExtendedAttribute(b"EMPTY", b""),
]


class TestFiletime:
    def test_a_known_time(self) -> None:
        assert ticks_from_ns(1683356889_123456700) == 133278304891234567
        assert ns_from_ticks(133278304891234567) == 1683356889_123456700

    def test_what_is_under_a_tick_is_cut_off_towards_1970(self) -> None:
        ticks = [ticks_from_ns(ns) - UNIX_EPOCH for ns in (-199, -100, -99, 99, 100, 199)]
        assert ticks == [-1, -1, 0, 0, 1, 1]

    def test_the_oldest_time_does_not_wrap(self) -> None:
        assert ns_from_ticks(0) == FILETIME_ZERO == -11644473600 * 10**9

    def test_the_overflow_of_64_bits_can_be_made_and_taken_back(self) -> None:
        assert wrap_time(FILETIME_ZERO) == 6802270473_709551616
        assert unwrap_time(6802270473_709551616) == FILETIME_ZERO
        assert unwrap_time(6802270473_709551600) == 6802270473_709551600
        assert wrap_time(1683356889_123456700) == 1683356889_123456700


def test_attributes_have_words() -> None:
    assert name_attributes(0x2416) == [
        "hidden",
        "system",
        "directory",
        "reparse point",
        "not content indexed",
    ]
    assert name_attributes(0x40020040) == ["0x40", "no scrub data", "0x40000000"]
    assert name_attributes(0) == []


class TestNames:
    def test_names_are_compared_in_upper_case_of_one_unit(self) -> None:
        assert names.folded("aé") == "AÉ"
        assert names.folded("ßıﬁ") == "ßıﬁ"
        assert names.folded("\U00010428") == "\U00010428"

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a:b", "a\x1f", "a\udc80", "a" * 256])
    def test_impossible_names_have_a_reason(self, name: str) -> None:
        assert names.illegal(name) is not None
        assert not names.plain(name)

    @pytest.mark.parametrize("name", ["nul", "COM1.txt", "a.", "b "])
    def test_awkward_names_are_possible(self, name: str) -> None:
        assert names.illegal(name) is None
        assert names.awkward(name) is not None
        assert not names.plain(name)

    @pytest.mark.parametrize("name", ["a", "…", "nullable", "a.con", " a", "é" * 255])
    def test_plain_names_have_neither(self, name: str) -> None:
        assert names.illegal(name) is None
        assert names.awkward(name) is None
        assert names.plain(name)

    def test_streams_may_have_what_files_may_not(self) -> None:
        assert names.illegal_stream('a*?"<>|\1.') is None
        assert all(names.illegal_stream(name) for name in ("", "a:b", "a/b", "a\\b", "\0", "\udc80", "a" * 256))


class TestReparsePoints:
    def test_known_buffers(self) -> None:
        assert reparse.encode(reparse.symlink("..\\x")) == SYMLINK
        assert reparse.encode(reparse.mount_point("C:\\x")) == JUNCTION
        assert reparse.decode(SYMLINK) == Symlink("..\\x", "..\\x", reparse.RELATIVE)
        assert reparse.decode(JUNCTION) == MountPoint("C:\\x", "\\??\\C:\\x")

    @pytest.mark.parametrize(
        ("target", "substitute", "flags"),
        [
            ("\\\\?\\X", "\\??\\X", 0),
            ("\\\\server\\share\\a", "\\??\\UNC\\server\\share\\a", 0),
            ("z:rest", "\\??\\z:rest", 0),
            ("\\rooted", "\\rooted", 1),
            ("a", "a", 1),
            ("é:x", "é:x", 1),
            ("", "", 1),
        ],
    )
    def test_what_windows_follows_depends_on_how_the_target_is_written(
        self, target: str, substitute: str, flags: int
    ) -> None:
        assert reparse.symlink(target) == Symlink(target, substitute, flags)
        assert reparse.mount_point(target) == MountPoint(target, substitute)
        assert reparse.target(reparse.symlink(target)) == target

    @pytest.mark.parametrize("target", ["\\\\?\\Volume{1}\\", "\\\\server\\share", "C:\\x", "a\\b"])
    def test_a_target_can_be_told_without_its_print_name(self, target: str) -> None:
        made = reparse.mount_point(target)
        assert reparse.target(MountPoint("", made.substitute_name)) == target

    def test_names_may_lie_in_any_order(self) -> None:
        body = "print".encode("utf-16-le") + "other".encode("utf-16-le")
        data = bytes.fromhex("030000a0 1c00 0000 0a00 0a00 0000 0a00") + body
        assert reparse.decode(data) == MountPoint("print", "other")

    def test_other_tags_are_kept_as_they_are(self) -> None:
        assert reparse.decode(bytes.fromhex("180000800300 0000") + b"abc") == Unknown(0x80000018, b"abc")
        own = Unknown(0x00000123, bytes(16) + b"data")
        assert reparse.encode(own)[4:6] == b"\4\0"
        assert reparse.decode(reparse.encode(own)) == own
        with pytest.raises(InvalidInput, match="GUID"):
            reparse.encode(Unknown(0x123, b"short"))

    @pytest.mark.parametrize("data", [SYMLINK, JUNCTION])
    def test_a_buffer_cut_anywhere_is_refused(self, data: bytes) -> None:
        for cut in range(len(data)):
            with pytest.raises(FormatError):
                reparse.decode(data[:cut])

    @pytest.mark.parametrize("at", [4, 8, 10, 12, 14])
    def test_a_field_that_leads_outside_is_refused(self, at: int) -> None:
        for value in (b"\xff\xff", b"\x21\0"):
            with pytest.raises(FormatError):
                reparse.decode(SYMLINK[:at] + value + SYMLINK[at + 2 :])

    def test_targets_have_a_longest_length(self) -> None:
        fits = (reparse.MAX_SIZE - 20 - 4) // 4
        assert len(reparse.encode(reparse.symlink("a" * fits))) == reparse.MAX_SIZE
        for length in (fits + 1, 8000, 40000):
            with pytest.raises(InvalidInput):
                reparse.encode(reparse.symlink("a" * length))
        with pytest.raises(FormatError, match="exceed the"):
            reparse.decode(bytes(reparse.MAX_SIZE + 1))


class TestExtendedAttributes:
    def test_a_known_chain(self) -> None:
        assert extended_attributes.encode(ATTRIBUTES) == CHAIN
        assert extended_attributes.decode(CHAIN) == ATTRIBUTES
        assert extended_attributes.encode([]) == b""
        assert extended_attributes.decode(b"") == []

    def test_the_last_entry_may_lack_its_padding(self) -> None:
        assert extended_attributes.decode(CHAIN[:-2]) == ATTRIBUTES

    def test_a_chain_cut_anywhere_is_refused(self) -> None:
        for cut in range(1, len(CHAIN) - 2):
            with pytest.raises(FormatError):
                extended_attributes.decode(CHAIN[:cut])

    @pytest.mark.parametrize(
        "data",
        [
            CHAIN + bytes(4),
            b"\x0c" + CHAIN[1:],
            b"\x11" + CHAIN[1:],
            b"\xfc\xff\xff\xff" + CHAIN[4:],
            CHAIN[:11] + b"x" + CHAIN[12:],
            CHAIN[:8] + b"\0" + CHAIN[9:],
            bytes(12),
        ],
    )
    def test_a_malformed_chain_is_refused(self, data: bytes) -> None:
        with pytest.raises(FormatError):
            extended_attributes.decode(data)

    @pytest.mark.parametrize(("name", "value"), [(b"", b""), (b"a\0", b""), (b"a" * 256, b""), (b"a", bytes(65536))])
    def test_what_does_not_fit_is_refused(self, name: bytes, value: bytes) -> None:
        with pytest.raises(InvalidInput):
            extended_attributes.encode([ExtendedAttribute(name, value)])

    def test_the_longest_that_fits(self) -> None:
        longest = [ExtendedAttribute(b"a" * 255, bytes(65535), extended_attributes.NEEDED)]
        assert extended_attributes.decode(extended_attributes.encode(longest)) == longest
