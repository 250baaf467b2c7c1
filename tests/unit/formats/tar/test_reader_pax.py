# SPDX-License-Identifier: Apache-2.0
"""PAX headers: syntax and precedence."""

from __future__ import annotations

import time

import pytest
from tests.unit.formats.tar.archives import END, block, file, only, pax, read, record

from lamella.errors import Exhausted, FormatError
from lamella.formats.tar import TarLimits

SECOND = 1_000_000_000


class TestRecords:
    def test_a_record_wins_over_its_field(self) -> None:
        extended = pax(
            (b"path", b"p"), (b"linkpath", b"l"), (b"uid", b"5000000"), (b"gid", b"6"), (b"mtime", b"1.000000002")
        )
        one = only(extended + block(b"a", b"2", linkname=b"b", uid=1, gid=2, mtime=3) + END)
        assert (one.name, one.member.linkname) == ("p", "l")
        assert one.member.facet == (0o644, 5_000_000, 6, SECOND + 2)

    def test_a_path_replaces_the_prefix_too(self) -> None:
        assert only(pax((b"path", b"p")) + block(b"a", prefix=b"q") + END).name == "p"

    def test_a_size_wins_over_the_header(self) -> None:
        first, second = read(pax((b"size", b"5")) + block(size=513) + b"hello".ljust(512, b"\0") + block(b"b") + END)
        assert (first.member.size, first.data) == (5, b"hello")
        assert second.name == "b"

    def test_a_size_does_not_apply_to_a_further_extension_header(self) -> None:
        archive = pax((b"size", b"2")) + file(b"L", b"long\0", b"L") + block(size=99) + b"ab".ljust(512, b"\0") + END
        one = only(archive)
        assert (one.name, one.data) == ("long", b"ab")

    def test_a_size_gives_no_data_to_a_type_that_has_none(self) -> None:
        first, second = read(pax((b"size", b"512")) + block(b"d/", b"5") + block(b"b") + END)
        assert (first.member.size, second.name) == (0, "b")

    def test_records_belong_to_one_member(self) -> None:
        first, second = read(pax((b"path", b"p"), (b"uid", b"1")) + block(b"a") + block(b"b") + END)
        assert second.name == "b"
        assert second.member.facet == (0o644, 0, 0, 0)
        assert second.member.records is None
        assert first.member.records == {"path": b"p", "uid": b"1"}

    def test_the_last_of_two_headers_counts_and_the_first_is_gone(self) -> None:
        one = only(pax((b"path", b"p"), (b"uid", b"1")) + pax((b"gid", b"2")) + block(b"a") + END)
        assert (one.name, one.member.facet[:3]) == ("a", (0o644, 0, 2))
        assert one.member.records == {"gid": b"2"}

    def test_the_last_of_two_records_with_one_key_counts(self) -> None:
        assert only(pax((b"path", b"p"), (b"path", b"q")) + block(b"a") + END).name == "q"

    def test_an_empty_record_leaves_the_field_alone(self) -> None:
        empty = [(key, b"") for key in (b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime")]
        one = only(pax(*empty) + block(b"a", b"0", uid=1, gid=2, mtime=3, size=1) + b"x".ljust(512, b"\0") + END)
        assert (one.name, one.data, one.member.facet) == ("a", b"x", (0o644, 1, 2, 3 * SECOND))

    def test_values_are_bytes_and_may_have_nuls_equal_signs_and_newlines(self) -> None:
        value = b"\0\xff=\n 5 x=y\n"
        one = only(pax((b"SCHILY.xattr.user.a", value)) + block() + END)
        assert one.member.records == {"SCHILY.xattr.user.a": value}

    def test_an_empty_attribute_is_there(self) -> None:
        assert only(pax((b"SCHILY.xattr.user.a", b"")) + block() + END).member.records == {"SCHILY.xattr.user.a": b""}

    def test_an_empty_header_says_nothing(self) -> None:
        one = only(pax() + block(b"a") + END)
        assert (one.name, one.member.records) == ("a", None)

    def test_names_that_are_not_utf8_keep_their_bytes(self) -> None:
        assert only(pax((b"path", b"caf\xe9")) + block() + END).name == "caf\udce9"

    @pytest.mark.parametrize(
        ("text", "time"),
        [
            (b"0", 0),
            (b"1.5", 1_500_000_000),
            (b"-1.5", -1_500_000_000),
            (b"-0.000000001", -1),
            (b"1.", SECOND),
            (b"1.0000000019", SECOND + 1),
            (b"1700000000.123456789", 1_700_000_000_123_456_789),
        ],
    )
    def test_times_are_exact_to_the_nanosecond(self, text: bytes, time: int) -> None:
        assert only(pax((b"mtime", text)) + block(mtime=9) + END).member.facet[3] == time

    def test_numbers_may_begin_with_zeros(self) -> None:
        assert only(pax((b"uid", b"0" * 30 + b"7")) + block() + END).member.facet[1] == 7

    @pytest.mark.parametrize("key", [b"size", b"uid", b"gid", b"mtime"])
    @pytest.mark.parametrize("value", [b"x", b"+1", b"1e3", b" 1", b"1_0", b"9" * 20, b"0x1", b"\xb2", b"1\0"])
    def test_a_malformed_number_is_refused(self, key: bytes, value: bytes) -> None:
        with pytest.raises(FormatError, match="PAX"):
            read(block(b"a") + pax((key, value)) + block(b"b") + END)

    @pytest.mark.parametrize("key", [b"size", b"uid", b"gid"])
    def test_a_negative_number_is_refused(self, key: bytes) -> None:
        with pytest.raises(FormatError, match="malformed") as caught:
            read(block(b"a") + pax((key, b"-1")) + block(b"b") + END)
        assert caught.value.offset == 512

    def test_a_size_of_star_that_differs_is_refused(self) -> None:
        assert only(pax((b"SCHILY.realsize", b"1")) + file(b"a", b"x") + END).data == b"x"
        with pytest.raises(FormatError, match="realsize"):
            read(pax((b"SCHILY.realsize", b"2")) + file(b"a", b"x") + END)


class TestSyntax:
    @pytest.mark.parametrize(
        "data",
        [
            b"x",
            b"10 path=p",
            b"9 path=p",
            b"8 path=p\n",
            b"11 path=p\n",
            b"99 path=p\n",
            b"-10 path=p\n",
            b" 10 path=p\n",
            b"+10 path=p\n",
            b"1e1 path=p\n",
            b"10path=p\n",
            b"3 \n",
            b"2 ",
            b"0 ",
            b"7 path\n",
            b"7 =abc\n",
            b"\n",
            b"9" * 5000 + b" path=p\n",
            b"10 path=p\n\0",
            b"10 path=p\n\n",
            b"9 pa\0=p\n",
            b"11 path=p\0\n",
        ],
    )
    def test_a_malformed_record_is_refused(self, data: bytes) -> None:
        with pytest.raises(FormatError, match="PAX header at offset 512"):
            read(block(b"a") + file(b"x", data, b"x") + block(b"b") + END)

    def test_a_length_may_begin_with_zeros(self) -> None:
        assert only(file(b"x", b"0011 path=p\n".replace(b"11", b"12"), b"x") + block() + END).name == "p"

    @pytest.mark.parametrize("key", [b"linkpath", b"uname", b"gname"])
    def test_a_nul_in_a_name_is_refused(self, key: bytes) -> None:
        with pytest.raises(FormatError, match="NUL"):
            read(pax((key, b"a\0b")) + block() + END)


class TestGlobal:
    def test_its_owner_and_time_hold_for_all_members_after_it(self) -> None:
        glob = pax((b"uid", b"1"), (b"gid", b"2"), (b"mtime", b"3.5"), flag=b"g")
        first, second, third = read(block(b"a") + glob + block(b"b", uid=9) + block(b"c", gid=9, mtime=9) + END)
        assert first.member.facet == (0o644, 0, 0, 0)
        assert second.member.facet == (0o644, 1, 2, 3_500_000_000)
        assert third.member.facet == (0o644, 1, 2, 3_500_000_000)
        assert second.member.records is None
        assert second.member.header_offset == 512 + len(glob)

    def test_a_members_own_record_wins_and_an_empty_one_restores_the_field(self) -> None:
        glob = pax((b"uid", b"1"), (b"gid", b"2"), flag=b"g")
        one = only(glob + pax((b"uid", b"7"), (b"gid", b"")) + block(gid=9) + END)
        assert one.member.facet[:3] == (0o644, 7, 9)

    def test_a_later_one_replaces_what_it_names(self) -> None:
        first = pax((b"uid", b"1"), (b"gid", b"2"), flag=b"g")
        one, two = read(
            first
            + pax((b"uid", b"3"), flag=b"g")
            + block()
            + pax((b"uid", b""), (b"gid", b""), flag=b"g")
            + block()
            + END
        )
        assert one.member.facet[:3] == (0o644, 3, 2)
        assert two.member.facet[:3] == (0o644, 0, 0)

    @pytest.mark.parametrize("key", [b"comment", b"uname", b"gname", b"atime", b"ctime", b"charset", b"VENDOR.key"])
    def test_what_changes_nothing_here_is_tolerated(self, key: bytes) -> None:
        one = only(pax((key, b"x"), flag=b"g") + block(b"a") + END)
        assert (one.name, one.member.records, one.member.facet) == ("a", None, (0o644, 0, 0, 0))

    @pytest.mark.parametrize(
        "key",
        [
            b"path",
            b"linkpath",
            b"size",
            b"GNU.sparse.major",
            b"SCHILY.xattr.user.a",
            b"LIBARCHIVE.xattr.user.a",
            b"GNU.volume.filename",
            b"MSWINDOWS.fileattr",
        ],
    )
    def test_what_cannot_hold_for_all_members_is_refused(self, key: bytes) -> None:
        with pytest.raises(FormatError, match="apply to every member") as caught:
            read(block() + pax((key, b"1"), flag=b"g") + block() + END)
        assert caught.value.offset == 512

    @pytest.mark.parametrize("value", [b"x", b"-1"])
    def test_a_malformed_value_is_refused_at_once(self, value: bytes) -> None:
        with pytest.raises(FormatError, match="malformed uid"):
            read(pax((b"uid", value), flag=b"g") + END)

    def test_it_cannot_stand_between_a_member_and_its_extension(self) -> None:
        with pytest.raises(FormatError, match="between a member and its extension") as caught:
            read(pax((b"path", b"p")) + pax((b"comment", b"c"), flag=b"g") + block() + END)
        assert caught.value.offset == 1024

    def test_it_may_stand_last(self) -> None:
        assert only(block(b"a") + pax((b"comment", b"c"), flag=b"g") + END).name == "a"
        assert only(block(b"a") + pax((b"comment", b"c"), flag=b"g")).name == "a"


class TestLimits:
    @pytest.mark.parametrize("flag", [b"x", b"g"])
    def test_a_header_over_the_limit_is_refused_before_it_is_read(self, flag: bytes) -> None:
        with pytest.raises(Exhausted, match="1073741824 bytes exceed the limit"):
            read(block(b"x", flag, size=1 << 30))

    def test_records_are_counted(self) -> None:
        records = [(b"k%d" % n, b"") for n in range(101)]
        assert only(pax(*records[:100]) + block() + END, limits=TarLimits(records=100)).member.records is not None
        with pytest.raises(Exhausted, match="more than 100 records"):
            read(pax(*records) + block() + END, limits=TarLimits(records=100))

    def test_the_largest_header_costs_time_in_proportion(self) -> None:
        data = b"".join(record(b"k%d" % n, b"") for n in range(60_000))
        archive = 12 * file(b"x", data, b"x") + block(b"a") + END
        begin = time.process_time()
        one = only(archive, 4096)
        assert one.member.records is not None
        assert len(one.member.records) == 60_000
        assert time.process_time() - begin < 30
