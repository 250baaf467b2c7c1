# SPDX-License-Identifier: Apache-2.0
"""Tars of Windows layers: go-winio's bytes, variants of other tools, and refusals."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.unit.formats.tar.archives import END, block, buffers, file, pax

from lamella.changes.apply import apply
from lamella.changes.dump import dump
from lamella.changes.losses import Losses
from lamella.changes.model import (
    EMPTY,
    Buffer,
    Change,
    Content,
    Entry,
    Inline,
    Kind,
    Link,
    Opaque,
    Posix,
    Put,
    Stream,
    Whiteout,
    Windows,
    dense,
)
from lamella.errors import FormatError, InvalidInput, LossRefused, MissingFacet, StreamConsumed, UnsafePath, Unsupported
from lamella.formats.ntfs import basic_information, reparse
from lamella.layers.windows.names import NameRules
from lamella.layers.windows.tar_sink import TarDialect, WindowsTarSink
from lamella.layers.windows.tar_source import windows_tar_changes
from lamella.paths import LayerPath
from lamella.testing.builders import sparse

VECTORS = Path(__file__).parents[3] / "vectors/windows-tar"
SECOND = 1_000_000_000
T = 1683356889_123456700
SD_TEXT = (
    "AQAEgBQAAAAkAAAAAAAAADAAAAABAgAAAAAABSAAAAAgAgAAAQEAAAAAAAUSAAAAAgBMAAMAAAAAABgA/wEfAAECAAAAAAAFIAAAACACAAAAABQA"
    "/wEfAAEBAAAAAAAFEgAAAAAAGACpABIAAQIAAAAAAAUgAAAAIQIAAA=="
)
SD = base64.b64decode(SD_TEXT)


def windows(attributes: int, **fields: object) -> Windows:
    usual = {
        "creation_time": T,
        "access_time": T + SECOND,
        "write_time": T + 2 * SECOND,
        "change_time": T + 3 * SECOND,
        "security_descriptor": SD,
    }
    return Windows(attributes, **(usual | fields))  # type: ignore[arg-type]


def file_at(path: str, data: bytes = b"hello", **fields: object) -> Put:
    content = Inline(data) if data else EMPTY
    facet = windows(0x20, **fields)
    return Put(Entry(LayerPath(path), Kind.FILE, None, len(data), "", facet), content)


def with_stream(path: str, **fields: object) -> list[Change]:
    return [file_at(path, b"hello", **fields), Stream(LayerPath(path), "ads", Inline(b"stream"))]


def link_at(path: str, attributes: int, point: reparse.Symlink | reparse.MountPoint) -> Put:
    facet = windows(attributes, reparse=reparse.encode(point))
    return Put(Entry(LayerPath(path), Kind.SYMLINK, None, 0, point.print_name, facet), None)


def all_times(ns: int) -> dict[str, object]:
    return dict.fromkeys(("creation_time", "access_time", "write_time", "change_time"), ns)


EAS = {"FOO": b"bar", "$KERNEL.PURGE.ESBCACHE": b"\1\2\3\4\5", "EMPTY": b""}
SPARSE = sparse(30, [(0, b"aaaa"), (20, b"bb")])
INPUTS: dict[str, list[Change]] = {
    "file": with_stream("Files/Windows/a.txt"),
    "dir": [Put(Entry(LayerPath("Files/Windows"), Kind.DIRECTORY, None, 0, "", windows(0x10)), None)],
    "empty": [file_at("Files/empty", b"")],
    "symlink": [link_at("Files/ln", 0x420, reparse.symlink("..\\x\\y.txt"))],
    "dirsymlink": [link_at("Files/dln", 0x410, reparse.symlink("C:\\x"))],
    "junction": [link_at("Files/All Users", 0x2416, reparse.mount_point("C:\\ProgramData"))],
    "long": with_stream("Files/" + "d" * 120 + "/é.txt"),
    "wholesec": with_stream("Files/w", **all_times(1_700_000_000 * SECOND)),
    "old": with_stream("Files/o", write_time=-315619199_500000000),
    "zeroft": with_stream("Files/z", **all_times(basic_information.FILETIME_ZERO)),
    "whiteout": [Whiteout(LayerPath("Files/Windows/gone"))],
    "whiteout_nonascii": [Whiteout(LayerPath("Files/Windows/gön"))],
    "ea": [file_at("Files/ea", extended_attributes=EAS)],
    "sparse_ns": [Put(Entry(LayerPath("Files/sp"), Kind.FILE, None, 30, "", windows(0x220)), SPARSE)],
}


def write(changes: Iterable[Change], **options: object) -> tuple[bytes, Losses]:
    out = bytearray()

    def take(piece: Buffer) -> None:
        out.extend(piece)

    losses = apply(changes, WindowsTarSink(take, **options))  # type: ignore[arg-type]
    return bytes(out), losses


def read(data: bytes, step: int = 1 << 20, **options: object) -> list[Change]:
    """The changes, their content held."""
    return [held(change) for change in windows_tar_changes(buffers(data, step), **options)]  # type: ignore[arg-type]


def held(change: Change) -> Change:
    match change:
        case Put(entry, content) if content is not None:
            return Put(entry, inline(content))
        case Stream(path, name, content):
            return Stream(path, name, inline(content))
    return change


def inline(content: Content) -> Inline:
    return Inline(b"".join(bytes(part) for part in dense(content)))


def lines(changes: Iterable[Change]) -> list[str]:
    return list(dump(changes, inline=1 << 20, extents=False))


def vector(name: str) -> bytes:
    return (VECTORS / f"{name}.bin").read_bytes()


class TestVectors:
    @pytest.mark.parametrize("name", INPUTS)
    def test_each_member_is_written_byte_for_byte(self, name: str) -> None:
        data, losses = write(INPUTS[name], dialect=TarDialect(wrap_times=True))
        assert vector(name) + END == data
        assert list(losses) == []

    def test_a_hard_link_repeats_only_times_and_attributes(self) -> None:
        first = file_at("Files/a")
        link = Link(LayerPath("Files/b"), LayerPath("Files/a"))
        alone, _ = write([first])
        data, _ = write([first, link])
        assert vector("link") + END == data[len(alone) - 1024 :]
        looked_up, _ = write([link], lookup=lambda path: first.entry if path == "Files/a" else None)
        assert vector("link") + END == looked_up

    @pytest.mark.parametrize("name", INPUTS)
    def test_each_member_is_read_as_what_it_was_written_from(self, name: str) -> None:
        assert lines(INPUTS[name]) == lines(read(vector(name) + END, 512))

    def test_a_layer_goes_through_unchanged_byte_for_byte(self) -> None:
        names = [name for name in sorted(INPUTS) if name != "dir"]
        whole = b"".join(map(vector, ["dir", *names])) + END
        assert whole == write(read(whole))[0]
        assert whole == write(read(whole, unwrap_times=False), dialect=TarDialect(wrap_times=False))[0]

    def test_the_overflow_of_times_is_undone_only_for_fractional_ticks(self) -> None:
        (put, _) = read(vector("zeroft") + END)
        assert isinstance(put, Put)
        assert put.entry.windows is not None
        assert put.entry.windows.creation_time == basic_information.FILETIME_ZERO
        assert put.entry.windows.write_time == basic_information.FILETIME_ZERO
        (put, _) = read(vector("zeroft") + END, unwrap_times=False)
        assert isinstance(put, Put)
        assert put.entry.windows is not None
        assert put.entry.windows.access_time == 6802270473_709551616

    @pytest.mark.parametrize("name", ["junction", "whiteout"])
    def test_a_member_cut_anywhere_is_refused_as_truncated(self, name: str) -> None:
        data = vector(name)
        for kept in range(1, len(data)):
            with pytest.raises(FormatError, match="truncated"):
                read(data[:kept])

    def test_data_cut_anywhere_is_refused_as_truncated(self) -> None:
        data = vector("file")
        for kept in [*range(1530, 2048), *range(3584, 4096)]:
            with pytest.raises(FormatError, match="truncated"):
                read(data[:kept])


def member(name: str, *records: tuple[str, str], flag: bytes = b"0", data: bytes = b"", **fields: object) -> bytes:
    extension = pax(*[(key.encode(), value.encode()) for key, value in records]) if records else b""
    return extension + file(name.encode(), data, flag, **fields)


def one(data: bytes, **options: object) -> Entry:
    (change,) = read(data + END, 1 << 20, **options)
    assert isinstance(change, Put)
    return change.entry


def facet(data: bytes, **options: object) -> Windows:
    entry = one(data, **options)
    assert entry.windows is not None
    return entry.windows


class TestOtherProducers:
    def test_metadata_missing_from_a_tar_is_none(self) -> None:
        entry = one(member("Files/a", mtime=7))
        assert entry.posix is None
        assert Windows(0, write_time=7 * SECOND) == entry.windows
        assert Windows(0x10, write_time=0) == facet(block(b"Files/", b"5", mode=0o755, uid=5))

    def test_the_write_time_is_that_of_the_record_if_there_is_one(self) -> None:
        for value, expected in (("5.25", 5_250_000_000), ("-1.5", -1_500_000_000), ("", 7 * SECOND)):
            assert facet(member("Files/a", ("mtime", value), ("atime", "1"), mtime=7)).write_time == expected
        shared = pax((b"mtime", b"3.5"), flag=b"g")
        assert facet(shared + member("Files/a", mtime=7)).write_time == 3_500_000_000
        assert facet(shared + member("Files/a", ("mtime", "2"), mtime=7)).write_time == 2 * SECOND

    def test_the_typeflag_makes_a_directory_regardless_of_attributes(self) -> None:
        assert facet(member("Files/", ("MSWINDOWS.fileattr", "32"), flag=b"5")).attributes == 0x30

    def test_leading_and_trailing_slashes_are_ignored(self) -> None:
        assert [one(block(name, b"5")).path for name in (b"./Files/", b"/Files", b"Files")] == ["Files"] * 3

    def test_nanoseconds_of_a_creation_time_without_leading_zeros_are_read_verbatim(self) -> None:
        records = ("LIBARCHIVE.creationtime", "1683356889.123")
        assert facet(member("Files/a", records)).creation_time == 1683356889_123000000

    def test_sddl_is_used_if_there_is_no_binary_descriptor(self) -> None:
        words = ("MSWINDOWS.sd", "O:BUG:BU")
        descriptor = base64.b64decode("AQAAgBQAAAAkAAAAAAAAAAAAAAABAgAAAAAABSAAAAAhAgAAAQIAAAAAAAUgAAAAIQIAAA==")
        assert descriptor == facet(member("Files/a", words)).security_descriptor
        assert facet(member("Files/a", ("MSWINDOWS.rawsd", SD_TEXT), words)).security_descriptor == SD

    def test_a_link_target_with_slashes_gets_the_backslashes_that_windows_follows(self) -> None:
        entry = one(member("Files/l", flag=b"2", linkname=b"../x/y"))
        assert entry.target == "..\\x\\y"
        assert entry.windows is not None
        assert reparse.encode(reparse.symlink("..\\x\\y")) == entry.windows.reparse

    def test_a_mount_point_without_a_print_name_is_a_mount_point(self) -> None:
        entry = one(member("Files/m", ("MSWINDOWS.mountpoint", "0"), flag=b"2"))
        assert entry.windows is not None
        assert entry.windows.attributes == 0x10
        assert reparse.encode(reparse.mount_point("")) == entry.windows.reparse

    def test_a_stream_name_may_end_in_its_type(self) -> None:
        changes = read(member("Files/a") + member("Files/a:s:$DATA", data=b"x") + END)
        assert Stream(LayerPath("Files/a"), "s", Inline(b"x")) == changes[1]

    def test_streams_of_directories_and_links_follow_their_owner(self) -> None:
        data = member("Files/", flag=b"5") + member("Files:s") + member("Files/l", flag=b"2", linkname=b"t")
        changes = read(data + member("Files/l:s") + member("Files/l:t") + END)
        assert [(change.path, change.name) for change in changes if isinstance(change, Stream)] == [
            ("Files", "s"),
            ("Files/l", "s"),
            ("Files/l", "t"),
        ]

    def test_an_opaque_marker_removes_a_file_of_that_name(self) -> None:
        assert [Whiteout(LayerPath("Files/.wh..opq"))] == read(member("Files/.wh..wh..opq") + END)
        assert (
            write([Whiteout(LayerPath("Files/.wh..opq"))])[0]
            == block(b"Files/.wh..wh..opq", mode=0, devmajor=0, devminor=0) + END
        )

    def test_a_link_target_in_another_case_is_the_file_that_the_layer_has(self) -> None:
        data = member("Files/", flag=b"5") + member("Files/Ab") + member("Files/l", flag=b"1", linkname=b"FILES/aB")
        assert Link(LayerPath("Files/l"), LayerPath("Files/Ab")) == read(data + END)[2]
        data = member("Files/l", flag=b"1", linkname=b"FILES/aB")
        assert [Link(LayerPath("Files/l"), LayerPath("Files/aB"))] == read(data + END)

    def test_a_directory_in_another_case_gets_its_first_spelling(self) -> None:
        data = member("Files/Dir/", flag=b"5") + member("files/DIR/a") + END
        assert [change.entry.path for change in read(data) if isinstance(change, Put)] == ["Files/Dir", "Files/Dir/a"]

    def test_content_can_be_read_while_its_change_is_the_current_one(self) -> None:
        source = windows_tar_changes(buffers(member("Files/a", data=b"x" * 600) + member("Files/a:s", data=b"y") + END))
        put = next(source)
        assert isinstance(put, Put)
        assert put.content is not None
        next(source)
        with pytest.raises(StreamConsumed):
            list(put.content.chunks())


RESERVED = ["con", "Aux.txt", "NUL .tar.gz", "com1", "LPT³", "conin$", "a.", "a ", "..."]
ILLEGAL = ["a\\b", "a*", "a?", 'a"', "<", "a|b", "a\1", "é" * 256, "😀" * 128, "\udcff"]


class TestRefusals:
    @pytest.mark.parametrize("name", RESERVED)
    def test_names_without_a_plain_windows_path_need_an_option(self, name: str) -> None:
        for data in (member(f"Files/{name}"), member(f"Files/{name}/x"), member(f"Files/.wh.{name}")):
            with pytest.raises(UnsafePath):
                read(data + END)
        assert one(member(f"Files/{name}"), rules=NameRules(awkward=True)).path == f"Files/{name}"

    @pytest.mark.parametrize("name", ILLEGAL)
    def test_names_that_ntfs_cannot_have_are_always_refused(self, name: str) -> None:
        raw = name.encode("utf-8", "surrogateescape")
        every = NameRules(awkward=True, clashes=True)
        for path in (b"Files/" + raw, b"Files/" + raw + b"/x", b"Files/.wh." + raw):
            with pytest.raises(UnsafePath):
                read(pax((b"path", path)) + file() + END, rules=every)
        with pytest.raises(UnsafePath):
            read(pax((b"linkpath", raw)) + file(b"l", b"", b"1") + END, rules=every)

    @pytest.mark.parametrize(
        "name", ["console", "falcon.exe", "a.con", "com0", "com", "lpt10", "nul2", ".a", "é" * 255]
    )
    def test_unusual_valid_names_are_accepted(self, name: str) -> None:
        raw = name.encode()
        assert one(pax((b"path", b"Files/" + raw)) + file()).path == f"Files/{name}"

    def test_a_path_of_more_than_32767_units_is_refused(self) -> None:
        path = b"/".join([b"a" * 200] * 170)
        with pytest.raises(UnsafePath, match="32767"):
            read(pax((b"path", path)) + file() + END)

    def test_names_that_differ_in_case_only_are_refused_by_default(self) -> None:
        data = member("Files/ab") + member("Files/aB") + END
        with pytest.raises(InvalidInput, match="differ in case only"):
            read(data)
        assert len(read(data, rules=NameRules(clashes=True))) == 2
        assert len(read(member("Files/ß") + member("Files/SS") + END)) == 2
        with pytest.raises(InvalidInput, match="differ in case only"):
            read(member("Files/é") + member("Files/É") + END)

    @pytest.mark.parametrize(
        "data",
        [
            member("Files/b:s"),
            member("Files/a") + member("Files/b:s"),
            member("Files/a") + member("Files/b") + member("Files/a:s"),
            member("Files/a") + member("Files/.wh.b") + member("Files/a:s"),
            member("Files/a") + member("Files/l", flag=b"1", linkname=b"Files/a") + member("Files/l:s"),
            member("Files/a") + member("Files/a:s/b"),
            member("Files/a") + member("Files/a:"),
            member("Files/a") + member("Files/a:$DATA") + member("Files/a::$DATA"),
            member("Files/a") + member("Files/a:s:$INDEX_ALLOCATION"),
            member("C:/a"),
            member("./", flag=b"5") + member(":s"),
        ],
    )
    def test_a_colon_is_for_streams_right_after_their_file(self, data: bytes) -> None:
        with pytest.raises(UnsafePath):
            read(data + END)

    @pytest.mark.parametrize(
        "name", ["../a", "Files/../../a", "a\0", ".wh.", "Files/.wh.", ".wh..", ".wh...", ".wh.a/b"]
    )
    def test_names_that_lead_elsewhere_are_refused(self, name: str) -> None:
        if "\0" in name:
            with pytest.raises(FormatError):
                read(pax((b"path", name.encode())) + file() + END)
            return
        with pytest.raises(UnsafePath):
            read(member(name) + END)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            *(("MSWINDOWS.fileattr", value) for value in ("", "x", "-1", "+1", "0x20", "4294967296", "1" * 30)),
            *(("MSWINDOWS.rawsd", value) for value in ("A", "AA", "A===", "AA==AA==", "*AAA", "AAA=\n")),
            ("MSWINDOWS.xattr.A", "!"),
            ("MSWINDOWS.xattr.", "AA=="),
            ("MSWINDOWS.xattr." + "N" * 256, "AA=="),
            ("MSWINDOWS.xattr.A", base64.b64encode(bytes(65536)).decode()),
            ("MSWINDOWS.sd", "O:"),
            *(("LIBARCHIVE.creationtime", value) for value in ("", "1,5", "x", "1e9", "--1", ".5")),
            ("atime", "x"),
            ("ctime", "1.x"),
            *(("mtime", value) for value in ("x", ".5", "9" * 19)),
        ],
    )
    def test_malformed_records_are_refused(self, key: str, value: str) -> None:
        with pytest.raises(FormatError):
            read(member("Files/a", (key, value)) + END)

    def test_sddl_with_domain_accounts_is_refused(self) -> None:
        with pytest.raises(Unsupported, match="only a domain"):
            read(member("Files/a", ("MSWINDOWS.sd", "O:DAG:DU")) + END)

    @pytest.mark.parametrize("flag", [b"3", b"4", b"6", b"V"])
    def test_types_that_windows_does_not_have_are_refused(self, flag: bytes) -> None:
        with pytest.raises(FormatError, match="which Windows layers do not have"):
            read(block(b"Files/a", flag) + END)

    @pytest.mark.parametrize(
        "data",
        [
            member("Files/a", ("MSWINDOWS.fileattr", "16")),
            member("Files/l", flag=b"2"),
            pax((b"linkpath", b"x" * 9000)) + file(b"l", b"", b"2"),
            member("Files/a") + member("Files/a:s", flag=b"5"),
        ],
    )
    def test_members_that_contradict_themselves_are_refused(self, data: bytes) -> None:
        with pytest.raises(FormatError):
            read(data + END)

    @pytest.mark.parametrize(
        "data", [block(b".", b"0"), block(b"./", b"2", linkname=b"x"), block(b"l", b"1", linkname=b"/")]
    )
    def test_the_root_is_a_directory_and_stays_one(self, data: bytes) -> None:
        with pytest.raises(UnsafePath):
            read(data + END)


class TestWriting:
    def test_an_entry_without_a_windows_facet_is_refused(self) -> None:
        put = Put(Entry(LayerPath("a"), Kind.FILE, Posix(0o644, 0, 0, 0)), EMPTY)
        with pytest.raises(MissingFacet, match="Windows"):
            write([put])

    def test_an_opaque_marker_raises_unsupported(self) -> None:
        with pytest.raises(Unsupported) as caught:
            write([Opaque(LayerPath("Files"))])
        assert caught.value.hint is not None

    def test_a_hard_link_to_an_unknown_target_is_refused(self) -> None:
        with pytest.raises(MissingFacet):
            write([Link(LayerPath("Files/b"), LayerPath("Files/a"))])

    def test_links_to_links_and_odd_times_are_remembered(self) -> None:
        far = (1 << 70) + 1
        first = file_at("Files/a", creation_time=None, access_time=far, change_time=-far)
        changes: list[Change] = [first, Link(LayerPath("Files/b"), first.entry.path)]
        changes.append(Link(LayerPath("Files/c"), LayerPath("Files/b")))
        data, losses = write(changes)
        assert list(losses) == []
        assert data.count(b"atime=%d.%09d\n" % divmod(far, SECOND)) == 3
        assert data.count(b"creationtime") == 0

    @pytest.mark.parametrize(
        "path", ["Files/a:b", "Files/con", "Files/a.", "Files/b\\c", "Files/.wh.a", "Files/d?/x", "Files/AB", "files/x"]
    )
    def test_names_that_could_not_be_read_back_are_reported_lost(self, path: str) -> None:
        changes = [file_at("Files/ab"), *with_stream(path), Link(LayerPath("Files/l"), LayerPath(path))]
        data, losses = write(changes)
        assert write(changes[:1])[0] == data
        assert [path, path, "Files/l"] == [loss.path for loss in losses]
        with pytest.raises(LossRefused):
            write(changes, losses=Losses(refuse=True))

    def test_names_accepted_by_the_rules_are_written(self) -> None:
        rules = NameRules(awkward=True, clashes=True)
        changes: list[Change] = [file_at("Files/con"), file_at("Files/a."), file_at("Files/A.")]
        data, losses = write(changes, rules=rules)
        assert list(losses) == []
        assert lines(changes) == lines(read(data, rules=rules))

    def test_other_reparse_points_are_reported_lost(self) -> None:
        other = reparse.encode(reparse.Unknown(0x80000018, b"wci"))
        path = LayerPath("Files/a")
        a_file = Put(Entry(path, Kind.FILE, None, 0, "", windows(0x420, reparse=other)), EMPTY)
        data, losses = write([a_file])
        assert data == END
        assert [loss.what for loss in losses] == ["reparse point with the tag 0x80000018"]
        a_directory = Put(Entry(path, Kind.DIRECTORY, None, 0, "", windows(0x410, reparse=other)), None)
        data, losses = write([a_directory])
        assert len(losses) == 1
        assert windows(0x10) == facet(data)

    def test_a_device_is_reported_lost(self) -> None:
        _, losses = write([Put(Entry(LayerPath("p"), Kind.FIFO, None, 0, "", windows(0)), None)])
        assert [loss.what for loss in losses] == ["fifo"]

    def test_attributes_that_no_record_can_name_are_reported_lost(self) -> None:
        data, losses = write([file_at("Files/a", extended_attributes={"A=B": b"1", "C": b"2", "": b"3"})])
        assert len(losses) == 2
        assert facet(data).extended_attributes == {"C": b"2"}

    def test_a_stream_must_follow_its_file(self) -> None:
        stray = Stream(LayerPath("Files/a"), "s", EMPTY)
        with pytest.raises(InvalidInput, match="does not follow"):
            write([file_at("Files/a"), file_at("Files/b"), stray])
        _, losses = write([file_at("Files/a"), Stream(LayerPath("Files/a"), "s:t", EMPTY)])
        assert len(losses) == 1

    def test_a_mount_point_without_a_print_name_keeps_its_target_by_default(self) -> None:
        name = "\\??\\Volume{00000000-0000-0000-0000-000000000001}\\"
        put = link_at("Files/m", 0x410, reparse.MountPoint("", name))
        entry = one(write([put])[0])
        assert entry.windows is not None
        assert entry.windows.reparse is not None
        made = reparse.decode(entry.windows.reparse)
        assert isinstance(made, reparse.MountPoint)
        assert name == made.substitute_name
        assert one(write([put], dialect=TarDialect(print_names_only=True))[0]).target == ""

    def test_an_empty_sparse_file_gets_a_data_stream_on_request(self) -> None:
        put = Put(Entry(LayerPath("Files/s"), Kind.FILE, None, 0, "", windows(0x220)), EMPTY)
        assert write([put])[0][1024:][100:108] == b"0000000\0"
        assert write([put], dialect=TarDialect(empty_sparse_data=True))[0][1024:][100:108] == b"0100000\0"

    def test_times_can_be_clamped(self) -> None:
        made = facet(write([file_at("Files/a")], clamp=T + SECOND)[0])
        assert (
            *(made.creation_time, made.access_time),
            *(made.write_time, made.change_time),
        ) == (T, T + SECOND, T + SECOND, T + SECOND)

    def test_an_entry_for_the_root_is_left_out(self) -> None:
        root = Put(Entry(LayerPath(""), Kind.DIRECTORY, None, 0, "", windows(0x10)), None)
        assert write([root])[0] == END
