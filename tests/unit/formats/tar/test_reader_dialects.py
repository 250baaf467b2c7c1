# SPDX-License-Identifier: Apache-2.0
"""All dialects of tar give the same kind of member."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import pytest
from tests.unit.formats.tar.archives import (
    END,
    GNU,
    V7,
    base256,
    block,
    file,
    long_name,
    only,
    pax,
    read,
    with_checksum,
)

from lamella.errors import Exhausted, FormatError
from lamella.formats.tar import TarLimits

DIRECTORY = b"0040755\0"


class TestUstar:
    def test_a_member_has_all_that_its_header_says(self) -> None:
        archive = block(b"etc/passwd", mode=0o4640, uid=7, gid=8, size=5, mtime=9) + b"hello".ljust(512, b"\0") + END
        one = only(archive)
        assert one.name == "etc/passwd"
        assert one.member.typeflag == "0"
        assert one.member.size == 5
        assert one.member.stored_size == 5
        assert one.member.facet == (0o4640, 7, 8, 9_000_000_000)
        assert one.member.linkname == ""
        assert one.member.device == (0, 0)
        assert one.member.records is None
        assert one.member.extents is None
        assert one.member.header_offset == 0
        assert one.member.data_offset == 512
        assert one.data == b"hello"

    def test_the_prefix_stands_before_the_name(self) -> None:
        assert only(block(b"name", prefix=b"some/directory") + END).name == "some/directory/name"

    def test_a_prefix_and_a_name_that_fill_their_fields_have_no_nul(self) -> None:
        assert only(block(b"n" * 100, prefix=b"p" * 155) + END).name == "p" * 155 + "/" + "n" * 100

    def test_a_name_ends_at_its_first_nul(self) -> None:
        assert only(block(b"name\0rest") + END).name == "name"

    def test_a_name_that_is_not_utf8_keeps_its_bytes(self) -> None:
        assert only(block(b"caf\xe9") + END).name == "caf\udce9"

    def test_a_name_in_utf8_is_read_as_such(self) -> None:
        assert only(block("été".encode()) + END).name == "été"

    def test_links_have_their_target_and_no_data(self) -> None:
        hard, soft = read(block(b"a", b"1", linkname=b"b") + block(b"c", b"2", linkname=b"../d") + END)
        assert (hard.member.typeflag, hard.member.linkname) == ("1", "b")
        assert (soft.member.typeflag, soft.member.linkname) == ("2", "../d")

    def test_a_file_has_no_link_target_whatever_the_field_says(self) -> None:
        assert only(block(linkname=b"x") + END).member.linkname == ""

    def test_devices_have_their_numbers(self) -> None:
        char, blk = read(block(b"c", b"3", devmajor=1, devminor=3) + block(b"b", b"4", devmajor=8, devminor=0) + END)
        assert (char.member.typeflag, char.member.device) == ("3", (1, 3))
        assert (blk.member.typeflag, blk.member.device) == ("4", (8, 0))

    @pytest.mark.parametrize("flag", [b"1", b"2", b"3", b"4", b"5", b"6"])
    def test_a_type_without_data_has_none_whatever_its_size_field_says(self, flag: bytes) -> None:
        first, second = read(block(b"a", flag, size=512, devmajor=0, devminor=0) + block(b"b") + END)
        assert (first.member.size, first.data) == (0, b"")
        assert second.name == "b"

    def test_a_contiguous_file_is_a_regular_one(self) -> None:
        one = only(file(b"a", b"x", b"7") + END)
        assert (one.member.typeflag, one.data) == ("0", b"x")

    def test_members_whose_headers_agree_share_a_facet(self) -> None:
        first, second, third = read(block(b"a") + block(b"b") + block(b"c", mtime=1) + END)
        assert first.member.facet is second.member.facet
        assert third.member.facet == (0o644, 0, 0, 1_000_000_000)

    def test_only_the_permission_bits_of_a_mode_are_kept(self) -> None:
        assert only(block(b"d/", b"5", mode=DIRECTORY) + END).member.facet[0] == 0o755

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            (b"0000012\0", 10),
            (b"     12\0", 10),
            (b"12 \0\0\0\0\0", 10),
            (b"00000012", 10),
            (b"12\0003456", 10),
            (bytes(8), 0),
            (b"        ", 0),
            (b" \0\0\0\0\0\0\0", 0),
        ],
    )
    def test_a_number_may_be_padded_with_spaces_and_nuls(self, field: bytes, value: int) -> None:
        assert only(block(uid=field) + END).member.facet[1] == value

    @pytest.mark.parametrize("field", [b"0000018\0", b"1_0\0", b"0o7\0", b"-1\0", b"+1\0", b"1 2\0", b"x\0", b"7\xb9"])
    def test_a_number_that_is_not_octal_is_refused(self, field: bytes) -> None:
        with pytest.raises(FormatError, match="malformed uid") as caught:
            read(block(uid=field.ljust(8, b"\0")) + END)
        assert caught.value.offset == 0

    def test_a_checksum_over_signed_bytes_is_taken(self) -> None:
        header = bytearray(block("été".encode()))
        high = sum(byte >= 0x80 for byte in header)
        stated = int(header[148:154], 8) - 256 * high
        header[148:156] = b"%06o\0 " % stated
        assert only(bytes(header) + END).name == "été"

    def test_a_wrong_checksum_is_refused_also_after_a_right_one_with_the_same_field(self) -> None:
        good = block(b"ab")
        bad = good.replace(b"ab", b"ac", 1)
        with pytest.raises(FormatError, match="checksum") as caught:
            read(good + bad + END)
        assert caught.value.offset == 512

    def test_a_sum_that_is_right_but_for_the_modulus_of_the_adler_sum_is_refused(self) -> None:
        header = bytearray(block(b"\xff" * 100, linkname=b"\xff" * 100, prefix=b"\xff" * 155))
        right = int(header[148:154], 8)
        header[148:156] = b"%06o\0 " % (right - 65521)
        low = bytearray(block(b"a"))
        low[148:156] = b"%06o\0 " % (int(low[148:154], 8) + 65521)
        for wrong in (header, low):
            with pytest.raises(FormatError, match="checksum"):
                read(bytes(wrong) + END)


class TestV7:
    def test_a_nul_typeflag_is_a_regular_file(self) -> None:
        one = only(file(b"a", b"x", b"\0", magic=V7) + END)
        assert (one.member.typeflag, one.data) == ("0", b"x")

    def test_a_nul_typeflag_and_a_trailing_slash_are_a_directory_without_data(self) -> None:
        first, second = read(block(b"d/", b"\0", magic=V7, size=512) + block(b"b", b"\0", magic=V7) + END)
        assert (first.name, first.member.typeflag, first.member.size) == ("d/", "5", 0)
        assert second.name == "b"

    def test_a_stated_regular_file_stays_one_though_its_name_ends_with_a_slash(self) -> None:
        assert only(file(b"f/", b"x") + END).member.typeflag == "0"

    def test_there_is_no_prefix_and_no_device(self) -> None:
        one = only(block(b"a", b"3", magic=V7, prefix=b"p", devmajor=1, devminor=1) + END)
        assert (one.name, one.member.device) == ("a", (0, 0))


class TestStar:
    MARK: Final = MappingProxyType({508: b"tar\0"})

    def test_the_prefix_is_shorter_since_times_follow_it(self) -> None:
        archive = block(b"n", at={**self.MARK, 345: b"p" * 131, 476: b"00000000001 00000000002 "}) + END
        assert only(archive).name == "p" * 131 + "/n"

    def test_a_sparse_file_of_star_is_refused(self) -> None:
        with pytest.raises(FormatError, match="sparse"):
            read(block(b"n", b"S", at=self.MARK) + END)


class TestGnu:
    def test_a_long_name_and_a_long_link_belong_to_the_next_member_alone(self) -> None:
        first, second = read(
            long_name(b"n" * 300)
            + long_name(b"t" * 200, b"K")
            + block(b"n" * 100, b"2", magic=GNU, linkname=b"t" * 100)
            + block(b"b", b"2", magic=GNU, linkname=b"c")
            + END
        )
        assert (first.name, first.member.linkname) == ("n" * 300, "t" * 200)
        assert first.member.header_offset == 0
        assert (second.name, second.member.linkname) == ("b", "c")

    def test_a_long_name_ends_at_its_nul(self) -> None:
        assert only(long_name(b"name\0rest") + block(magic=GNU) + END).name == "name"

    def test_an_empty_long_name_says_nothing(self) -> None:
        assert only(long_name(b"") + block(b"a", magic=GNU) + END).name == "a"

    def test_the_last_of_several_long_names_counts(self) -> None:
        assert only(long_name(b"one") + long_name(b"two") + block(magic=GNU) + END).name == "two"

    def test_a_long_name_wins_over_a_pax_path_in_either_order(self) -> None:
        extended = pax((b"path", b"from-pax"), (b"linkpath", b"to-pax"))
        names = long_name(b"gnu") + long_name(b"to-gnu", b"K")
        for archive in (extended + names, names + extended):
            one = only(archive + block(b"a", b"2", magic=GNU) + END)
            assert (one.name, one.member.linkname) == ("gnu", "to-gnu")

    def test_numbers_may_be_in_base_256(self) -> None:
        header = block(
            uid=base256(1 << 40, 8), gid=base256(2_000_000_000, 8), size=base256(5, 12), mtime=base256(1 << 40, 12)
        )
        one = only(header + b"hello".ljust(512, b"\0") + END)
        assert one.member.facet == (0o644, 1 << 40, 2_000_000_000, (1 << 40) * 1_000_000_000)
        assert one.data == b"hello"

    def test_a_time_may_be_negative(self) -> None:
        assert only(block(mtime=base256(-5, 12), magic=GNU) + END).member.facet[3] == -5_000_000_000

    @pytest.mark.parametrize("field", ["size", "uid", "gid", "mode"])
    def test_nothing_else_may_be_negative(self, field: str) -> None:
        width = 12 if field == "size" else 8
        fields: dict[str, Any] = {field: base256(-1, width)}
        with pytest.raises(FormatError, match="negative"):
            read(block(magic=GNU, **fields) + END)

    @pytest.mark.parametrize("field", ["size", "mtime"])
    def test_a_number_beyond_64_bits_is_refused(self, field: str) -> None:
        fields: dict[str, Any] = {field: b"\x80\0\0\0\x80" + bytes(7)}
        with pytest.raises(FormatError, match="beyond 64 bits"):
            read(block(magic=GNU, **fields) + END)

    def test_an_access_time_is_no_prefix(self) -> None:
        one = only(block(b"a", magic=GNU, at={345: b"12345670123\0" + b"12345670123\0"}) + END)
        assert one.name == "a"

    def test_a_prefix_that_old_go_wrote_into_a_gnu_header_is_taken(self) -> None:
        assert only(block(b"a", magic=GNU, prefix=b"usr/share") + END).name == "usr/share/a"

    def test_such_a_prefix_must_be_ascii(self) -> None:
        assert only(block(b"a", magic=GNU, prefix="usr/shäre".encode()) + END).name == "a"

    def test_a_long_name_over_the_limit_is_refused_before_it_is_read(self) -> None:
        archive = block(b"././@LongLink", b"L", size=(1 << 16) + 1, magic=GNU)
        with pytest.raises(Exhausted, match="exceed the limit"):
            read(archive)

    def test_the_rest_of_a_multi_volume_file_is_refused(self) -> None:
        with pytest.raises(FormatError, match="multi-volume"):
            read(block(b"a", b"M", magic=GNU) + END)


class TestVendors:
    @pytest.mark.parametrize("flag", [b"V", b"D", b"N", b"A"])
    def test_the_type_of_a_vendor_is_given_back_with_its_data(self, flag: bytes) -> None:
        first, second = read(file(b"a", b"x", flag) + block(b"b") + END)
        assert (first.member.typeflag, first.data) == (flag.decode(), b"x")
        assert second.name == "b"

    @pytest.mark.parametrize("flag", [b"8", b"9", b"a", b"z", b" ", b"\xff"])
    def test_any_other_type_is_refused(self, flag: bytes) -> None:
        with pytest.raises(FormatError, match="unknown typeflag"):
            read(block(b"a", flag) + END)

    def test_the_extended_header_of_solaris_is_one_of_pax(self) -> None:
        assert only(pax((b"path", b"long"), flag=b"X") + block() + END).name == "long"


class TestLimits:
    def test_extension_headers_before_one_member_are_counted(self) -> None:
        limits = TarLimits(headers=3)
        assert only(3 * long_name(b"n") + block() + END, limits=limits).name == "n"
        with pytest.raises(Exhausted, match="more than 3 extension headers"):
            read(4 * long_name(b"n") + block() + END, limits=limits)

    def test_many_values_in_every_field_are_read_right_though_few_are_remembered(self) -> None:
        headers = [block(b"%d" % n, uid=n, mtime=n, size=0, gid=n % 7) for n in range(9000)]
        facets = [one.member.facet for one in read(b"".join(headers) + END)]
        assert facets == [(0o644, n, n % 7, n * 1_000_000_000) for n in range(9000)]

    def test_a_header_that_is_valid_by_its_checksum_alone_is_read(self) -> None:
        assert only(with_checksum(bytes(512).replace(b"\0", b"1", 1)) + END).name == "1"
