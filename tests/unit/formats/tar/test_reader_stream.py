# SPDX-License-Identifier: Apache-2.0
"""The reader and its stream: buffers, data, end of archive, truncated streams."""

from __future__ import annotations

import pytest
from tests.unit.formats.tar.archives import (
    END,
    base256,
    block,
    buffers,
    facet,
    file,
    long_name,
    only,
    pax,
    read,
    reader,
)

from lamella.changes.model import Content
from lamella.errors import FormatError, StreamConsumed
from lamella.formats.tar import TarReader

BIG = bytes(range(256)) * 40


class TestData:
    def test_data_in_one_buffer_is_a_view_of_it_and_nothing_is_copied(self) -> None:
        whole = bytearray(file(b"a", b"hello") + END)
        parts = iter([memoryview(whole), memoryview(b"")])
        member = next(iter(TarReader(parts.__next__, facet=facet)))
        chunks = member.chunks()
        assert isinstance(chunks, tuple)
        (view,) = chunks
        assert view.obj is whole
        assert view == b"hello"

    def test_an_empty_file_has_no_chunks(self) -> None:
        assert next(iter(reader(block() + END))).chunks() == ()

    @pytest.mark.parametrize("step", [512, 1024, 4096, 1 << 20])
    def test_data_over_several_buffers_comes_whole(self, step: int) -> None:
        first, second, third = read(file(b"a", BIG) + file(b"b", b"x" * 512) + file(b"c", b"yz") + END, step)
        assert (first.data, second.data, third.data) == (BIG, b"x" * 512, b"yz")

    @pytest.mark.parametrize("step", [512, 1024, 4096, 1 << 20])
    def test_data_that_is_not_asked_for_is_passed(self, step: int) -> None:
        names = [member.name for member in reader(file(b"a", BIG) + file(b"b", BIG) + block(b"c") + END, step)]
        assert names == ["a", "b", "c"]

    @pytest.mark.parametrize("step", [512, 1024, 4096])
    def test_data_that_is_read_in_part_is_passed(self, step: int) -> None:
        names = []
        for member in reader(file(b"a", BIG) + file(b"b", BIG) + block(b"c") + END, step):
            names.append(member.name)
            next(iter(member.chunks()), None)
        assert names == ["a", "b", "c"]

    @pytest.mark.parametrize("data", [b"", b"x", BIG])
    def test_data_can_be_asked_for_once(self, data: bytes) -> None:
        member = next(iter(reader(file(b"a", data) + END, 1024)))
        member.chunks()
        with pytest.raises(StreamConsumed):
            member.chunks()

    @pytest.mark.parametrize("step", [512, 1 << 20])
    def test_data_cannot_be_asked_for_after_the_next_member(self, step: int) -> None:
        members = iter(reader(file(b"a", BIG) + block(b"b") + END, step))
        first = next(members)
        next(members)
        with pytest.raises(StreamConsumed):
            first.chunks()

    def test_data_cannot_be_asked_for_after_the_last_member(self) -> None:
        members = iter(reader(file(b"a", b"x") + END))
        last = next(members)
        assert next(members, None) is None
        with pytest.raises(StreamConsumed):
            last.chunks()

    def test_a_stream_of_data_fails_when_it_is_used_after_the_next_member(self) -> None:
        members = iter(reader(file(b"a", BIG) + block(b"b") + END, 1024))
        started = iter(next(members).chunks())
        next(started)
        next(members)
        with pytest.raises(StreamConsumed):
            next(started)
        members = iter(reader(file(b"a", BIG) + block(b"b") + END, 1024))
        fresh = iter(next(members).chunks())
        next(members)
        with pytest.raises(StreamConsumed):
            next(fresh)

    def test_a_stream_can_be_iterated_once(self) -> None:
        archive = reader(block() + END)
        list(archive)
        with pytest.raises(StreamConsumed):
            iter(archive)

    def test_a_member_is_the_content_of_its_file(self) -> None:
        content: Content = next(iter(reader(file(b"a", b"hello") + END)))
        assert (content.size, content.extents, [bytes(part) for part in content.chunks()]) == (5, None, [b"hello"])

    def test_offsets_are_those_of_the_stream(self) -> None:
        archive = file(b"a", BIG) + pax((b"path", b"b")) + long_name(b"c") + file(b"d", b"x") + block(b"e") + END
        for step in (512, 2048, 1 << 20):
            members = list(reader(archive, step))
            assert [member.header_offset for member in members] == [0, 10752, 13824]
            assert [member.data_offset for member in members] == [512, 13312, 14336]


class TestEnd:
    def test_what_follows_the_end_marker_is_read_but_not_parsed(self) -> None:
        taken = 0
        source = buffers(block(b"a") + END + block(b"b") + b"junk" * 1000, 1024)

        def counted() -> memoryview:
            nonlocal taken
            view = source()
            taken += len(view)
            return view

        assert [member.name for member in TarReader(counted, facet=facet)] == ["a"]
        assert taken == 512 + 1024 + 512 + 4000

    def test_a_stream_without_an_end_marker_ends_where_it_ends(self) -> None:
        assert [one.name for one in read(block(b"a") + file(b"b", b"x"))] == ["a", "b"]

    @pytest.mark.parametrize("archive", [b"", bytes(512), bytes(1024), bytes(10240)])
    def test_an_archive_may_be_empty(self, archive: bytes) -> None:
        assert read(archive) == []

    @pytest.mark.parametrize("step", [512, 1024, 1 << 20])
    def test_a_single_zero_block_may_end_the_stream_but_not_stand_inside_it(self, step: int) -> None:
        assert only(block(b"a") + bytes(512), step).name == "a"
        with pytest.raises(FormatError, match="single zero block") as caught:
            read(block(b"a") + bytes(512) + block(b"b"), step)
        assert caught.value.offset == 512

    @pytest.mark.parametrize("archive", [block(), block() + bytes(512), block() + END, file(b"a", BIG)])
    def test_nothing_is_asked_for_after_the_stream_has_ended(self, archive: bytes) -> None:
        views = iter([memoryview(archive), memoryview(b"")])

        def following() -> memoryview:
            try:
                return next(views)
            except StopIteration:
                raise AssertionError("asked again") from None

        assert len(list(TarReader(following, facet=facet))) == 1


class TestBroken:
    @pytest.mark.parametrize("step", [512, 1024, 1 << 20])
    @pytest.mark.parametrize("cut", [1, 100, 511, 513, 600, 1023])
    def test_a_stream_that_breaks_off_inside_a_member_is_refused(self, step: int, cut: int) -> None:
        archive = (block(b"a") + file(b"b", b"x" * 600))[: 512 + cut]
        with pytest.raises(FormatError, match="truncated") as caught:
            read(archive, step)
        assert caught.value.offset == 512

    @pytest.mark.parametrize("step", [512, 1024, 1 << 20])
    def test_so_it_is_where_only_the_padding_is_cut(self, step: int) -> None:
        archive = file(b"b", b"x" * 600)[:-1]
        with pytest.raises(FormatError, match="truncated"):
            read(archive, step)

    def test_data_that_breaks_off_fails_in_its_chunks(self) -> None:
        member = next(iter(reader(file(b"a", BIG)[:2000], 1024)))
        with pytest.raises(FormatError, match="ends 8752 bytes early") as caught:
            list(member.chunks())
        assert caught.value.offset == 0

    def test_an_immense_size_costs_nothing_but_the_stream(self) -> None:
        with pytest.raises(FormatError, match="truncated"):
            read(block(size=base256((1 << 63) - 1, 12)) + bytes(4096))

    @pytest.mark.parametrize("extension", [pax((b"path", b"p")), long_name(b"n"), long_name(b"n", b"K")])
    @pytest.mark.parametrize("end", [b"", bytes(512), END])
    def test_an_extension_header_without_its_member_is_refused(self, extension: bytes, end: bytes) -> None:
        with pytest.raises(FormatError, match="no member after it") as caught:
            read(block(b"a") + extension + end)
        assert caught.value.offset == 512

    @pytest.mark.parametrize("step", [512, 1024, 1 << 20])
    @pytest.mark.parametrize("kept", [512, 513, 1023])
    def test_an_extension_header_that_breaks_off_is_refused(self, step: int, kept: int) -> None:
        with pytest.raises(FormatError, match="truncated") as caught:
            read(block(b"a") + pax((b"path", b"p"))[:kept], step)
        assert caught.value.offset == 512

    def test_an_error_of_the_stream_itself_passes_through(self) -> None:
        source = buffers(block(b"a") + END, 512)
        calls = 0

        def failing() -> memoryview:
            nonlocal calls
            calls += 1
            if calls == 4:
                raise OSError("the digest does not match")
            return source()

        members = iter(TarReader(failing, facet=facet))
        assert next(members).name == "a"
        with pytest.raises(OSError, match="digest"):
            next(members)
