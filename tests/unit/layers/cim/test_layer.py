# SPDX-License-Identifier: Apache-2.0
"""Windows layers in composite images: applied, read back, and compared with their parents."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

import pytest

from lamella.changes.apply import apply
from lamella.changes.model import Change, Entry, Inline, Kind, Link, Posix, Put, Sparse, Stream, Whiteout, Windows
from lamella.changes.tree import walk
from lamella.errors import AlreadyExists, Conflict, FormatError, InvalidInput, MissingFacet, NotFound
from lamella.formats.ntfs import reparse
from lamella.formats.ntfs.basic_information import DIRECTORY, REPARSE_POINT
from lamella.formats.regf.keys import MemoryKey
from lamella.formats.regf.reader import Hive
from lamella.formats.regf.writer import encode_hive
from lamella.layers.cim.image import CimLayer, OpenCim
from lamella.layers.cim.import_rules import NO_DESCRIPTOR
from lamella.layers.cim.sink import CimSink
from lamella.layers.cim.source import all_changes, changes_since
from lamella.layers.cim.tree import CimTree
from lamella.layers.cim.writer import NewCim
from lamella.layers.stack import LayerStack
from lamella.layers.windows.tar_sink import WindowsTarSink
from lamella.layers.windows.tar_source import windows_tar_changes
from lamella.paths import LayerPath
from lamella.streams.buffers import FileBuffers

NS = 1_683_356_889_123_456_700


def entry(path: str, kind: Kind = Kind.FILE, size: int = 0, attributes: int = 0x20, target: str = "") -> Entry:
    point = None
    if kind is Kind.DIRECTORY:
        attributes = DIRECTORY
    if kind is Kind.SYMLINK:
        attributes |= REPARSE_POINT
        point = reparse.encode(reparse.symlink(target))
    windows = Windows(attributes, NS, NS + 100, NS + 200, NS + 300, b"descriptor of " + path.encode(), reparse=point)
    return Entry(LayerPath(path), kind, None, size, target, windows)


def file(path: str, data: bytes = b"") -> Put:
    return Put(entry(path, size=len(data)), Inline(data))


def directory(path: str) -> Put:
    return Put(entry(path, Kind.DIRECTORY), None)


def whiteout(path: str) -> Whiteout:
    return Whiteout(LayerPath(path))


def link(path: str, target: str) -> Link:
    return Link(LayerPath(path), LayerPath(target))


def stream(path: str, name: str, data: bytes) -> Stream:
    return Stream(LayerPath(path), name, Inline(data))


def tree(*rest: Change) -> list[Change]:
    return [directory("Files"), directory("Files/Windows"), *rest]


def write(path: Path, changes: Iterable[Change], *parents: CimLayer, windows: bool = False) -> CimLayer:
    layer = CimLayer(path)
    stack = LayerStack.from_nearest(parents) if parents else None
    apply(changes, CimSink(layer, parents=stack, windows=windows))
    return layer


def contents(layer: CimLayer) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    with CimTree(layer) as image:
        todo = [LayerPath("")]
        while todo:
            for each in image.entries(todo.pop()):
                found[each.path] = None
                if each.kind is Kind.DIRECTORY:
                    todo.append(each.path)
                elif each.kind is Kind.FILE:
                    found[each.path] = b"".join(image.open(each.path).chunks())
    return found


def changed(layer: CimLayer, parent: CimLayer) -> list[str]:
    with OpenCim(layer) as image, OpenCim(parent) as below:
        return [said(change) for change in changes_since(image, below)]


def said(change: Change) -> str:
    match change:
        case Put(entry=put):
            return f"put {put.path}"
        case Link(path, target):
            return f"link {path} {target}"
        case Stream(path, name, _):
            return f"stream {path}:{name}"
        case _:
            return f"whiteout {change.path}"


class TestALayerWithoutParents:
    def test_is_read_back_as_it_was_written(self, tmp_path: Path) -> None:
        changes = tree(
            file("Files/Windows/a.txt", b"hello"),
            stream("Files/Windows/a.txt", "ads", b"stream"),
            Put(entry("Files/link", Kind.SYMLINK, target="..\\x"), None),
            link("Files/b", "Files/Windows/a.txt"),
        )
        layer = write(tmp_path / "one.cim", changes)
        with CimTree(layer) as image:
            assert image.lookup(LayerPath("files/WINDOWS/A.TXT")) == Entry(
                LayerPath("files/WINDOWS/A.TXT"), Kind.FILE, None, 5, "", entry("Files/Windows/a.txt").windows
            )
            assert image.lookup(LayerPath("Files/link")) == entry("Files/link", Kind.SYMLINK, target="..\\x")
            assert image.lookup(LayerPath("Files/Windows")) == entry("Files/Windows", Kind.DIRECTORY)
            assert image.identity(LayerPath("Files/b")) == image.identity(LayerPath("Files/Windows/a.txt"))
            streams = image.streams(LayerPath("Files/Windows/a.txt"))
            assert {name: b"".join(each.chunks()) for name, each in streams.items()} == {"ads": b"stream"}
        assert contents(layer)["Files/Windows/a.txt"] == b"hello"

    def test_has_the_same_files_for_the_same_content(self, tmp_path: Path) -> None:
        sums = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            write(tmp_path / name / "x.cim", tree(file("Files/f", b"1" * 9000)))
            sums.append(
                {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / name).iterdir()}
            )
        assert sums[0] == sums[1]

    def test_has_another_guid_if_a_large_content_differs(self, tmp_path: Path) -> None:
        guids = set()
        for name, data in (("a", b"1" * 70_000), ("b", b"2" * 70_000), ("c", b"1" * 70_000)):
            layer = write(tmp_path / f"{name}.cim", tree(file("Files/f", data)))
            with OpenCim(layer) as image:
                guids.add(image.reader.filesystem.own.guid)
        assert len(guids) == 2
        assert contents(CimLayer(tmp_path / "a.cim"))["Files/f"] == b"1" * 70_000

    def test_has_the_guid_that_it_is_given(self, tmp_path: Path) -> None:
        layer, guid = CimLayer(tmp_path / "one.cim"), UUID(int=7)
        apply(tree(), CimSink(layer, windows=False, guid=guid))
        with OpenCim(layer) as image:
            assert guid == image.reader.filesystem.own.guid

    def test_accepts_implied_directories(self, tmp_path: Path) -> None:
        layer = write(tmp_path / "one.cim", [file("Files/a/b", b"1")])
        with CimTree(layer) as image:
            implied = image.lookup(LayerPath("Files/a"))
        assert implied is not None
        assert implied.windows is not None
        assert implied.windows.security_descriptor == NO_DESCRIPTOR

    def test_refuses_an_entry_without_a_windows_facet(self, tmp_path: Path) -> None:
        posix = Put(Entry(LayerPath("f"), Kind.FILE, Posix(0o644, 0, 0, 0)), Inline(b""))
        with pytest.raises(MissingFacet):
            write(tmp_path / "one.cim", [posix])
        assert list(tmp_path.iterdir()) == []

    def test_refuses_a_time_that_no_file_of_windows_can_have(self, tmp_path: Path) -> None:
        for time in (-(1 << 64), 1 << 80):
            put = file("f")
            assert put.entry.windows is not None
            put.entry.windows.creation_time = time
            with pytest.raises(InvalidInput, match="FILETIME"):
                write(tmp_path / "one.cim", [put])
        assert list(tmp_path.iterdir()) == []

    def test_keeps_names_of_extended_attributes_that_are_not_ascii(self, tmp_path: Path) -> None:
        put = file("f")
        assert put.entry.windows is not None
        put.entry.windows.extended_attributes = {"É日": b"1"}
        with CimTree(write(tmp_path / "one.cim", [put])) as image:
            found = image.lookup(LayerPath("f"))
        assert found is not None
        assert found.windows is not None
        assert found.windows.extended_attributes == {"É日": b"1"}

    def test_gives_the_content_of_a_reparse_point_that_is_no_link(self, tmp_path: Path) -> None:
        put = file("f", b"content")
        assert put.entry.windows is not None
        put.entry.windows.reparse = reparse.encode(reparse.Unknown(0x80000017, b"0" * 16))
        with CimTree(write(tmp_path / "one.cim", [put])) as image:
            changes = [change for change in walk(image) if isinstance(change, Put) and change.entry.path]
            assert [(change.entry.kind, change.entry.size) for change in changes] == [(Kind.FILE, 7)]
            assert b"".join(image.open(LayerPath("f")).chunks()) == b"content"

    def test_refuses_files_below_a_reparse_point(self, tmp_path: Path) -> None:
        point = Put(entry("Files/l", Kind.SYMLINK, attributes=DIRECTORY, target="C:\\x"), None)
        with pytest.raises(InvalidInput, match="below it"):
            write(tmp_path / "one.cim", tree(point, file("Files/l/f")))
        assert list(tmp_path.iterdir()) == []

    def test_is_not_written_over_another(self, tmp_path: Path) -> None:
        write(tmp_path / "one.cim", tree())
        with pytest.raises(AlreadyExists):
            write(tmp_path / "one.cim", tree())

    def test_keeps_no_zeros_of_a_file_that_is_a_hole(self, tmp_path: Path) -> None:
        sparse = Put(entry("Files/s", size=1 << 20), Sparse(1 << 20, (), b""))
        layer = write(tmp_path / "one.cim", tree(sparse))
        assert contents(layer)["Files/s"] is not None
        with CimTree(layer) as image:
            assert image.open(LayerPath("Files/s")).extents == ()
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1 << 18

    def test_takes_a_hole_as_long_as_a_length_can_say_and_refuses_a_longer_one(self, tmp_path: Path) -> None:
        longest = (1 << 48) - 1
        for size in (longest + 1, longest + 6):
            with pytest.raises(InvalidInput, match="a stream of"):
                write(tmp_path / "long.cim", tree(Put(entry("Files/s", size=size), Sparse(size, (), b""))))
        assert list(tmp_path.iterdir()) == []
        layer = write(tmp_path / "one.cim", tree(Put(entry("Files/s", size=longest), Sparse(longest, (), b""))))
        with CimTree(layer) as image:
            found = image.lookup(LayerPath("Files/s"))
            assert found is not None
            assert (Kind.FILE, longest) == (found.kind, found.size)


class TestALayerOverOthers:
    @pytest.fixture
    def base(self, tmp_path: Path) -> CimLayer:
        return write(
            tmp_path / "base.cim",
            tree(
                file("Files/Windows/a.txt", b"a"),
                file("Files/Windows/b.txt", b"b"),
                link("Files/Windows/b2.txt", "Files/Windows/b.txt"),
                directory("Files/old"),
                file("Files/old/f", b"f"),
            ),
        )

    def test_shows_what_lies_below_with_its_changes_on_top(self, tmp_path: Path, base: CimLayer) -> None:
        child = write(
            tmp_path / "child.cim",
            [file("Files/Windows/A.TXT", b"new"), file("Files/Windows/c.txt", b"c"), whiteout("Files/OLD")],
            base,
        )
        assert contents(child) == {
            "Files": None,
            "Files/Windows": None,
            "Files/Windows/A.TXT": b"new",
            "Files/Windows/b.txt": b"b",
            "Files/Windows/b2.txt": b"b",
            "Files/Windows/c.txt": b"c",
        }

    def test_reads_its_changes_from_the_file_tables(self, tmp_path: Path, base: CimLayer) -> None:
        changes: list[Change] = [
            file("Files/Windows/a.txt", b"new"),
            link("Files/Windows/b3.txt", "Files/Windows/b.txt"),
            file("Files/new", b"n"),
            stream("Files/new", "s", b"1"),
            whiteout("Files/old"),
        ]
        child = write(tmp_path / "child.cim", changes, base)
        assert changed(child, base) == [
            "put Files",
            "whiteout Files/old",
            "put Files/Windows",
            "put Files/Windows/a.txt",
            "link Files/Windows/b3.txt Files/Windows/b.txt",
            "put Files/new",
            "stream Files/new:s",
        ]

    def test_an_unchanged_fork_has_no_changes(self, tmp_path: Path, base: CimLayer) -> None:
        child = write(tmp_path / "child.cim", [], base)
        assert changed(child, base) == []

    def test_comes_to_the_same_tree_when_its_changes_are_applied_again(self, tmp_path: Path, base: CimLayer) -> None:
        changes: list[Change] = [
            file("Files/old/f", b"other"),
            whiteout("Files/Windows/b.txt"),
            directory("Files/new"),
            file("Files/new/x", b"x"),
            file("Files/Windows/z", b"z"),
        ]
        child = write(tmp_path / "child.cim", changes, base)
        with OpenCim(child) as image, OpenCim(base) as below:
            again = CimLayer(tmp_path / "again.cim")
            sink = CimSink(again, parents=LayerStack([base]), windows=False)
            apply(changes_since(image, below), sink)
        assert contents(again) == contents(child)

    def test_replaces_a_directory_by_a_file_and_a_file_by_a_directory(self, tmp_path: Path, base: CimLayer) -> None:
        changes = [file("Files/old", b"file"), directory("Files/Windows/a.txt"), file("Files/Windows/a.txt/x", b"x")]
        child = write(tmp_path / "child.cim", changes, base)
        found = contents(child)
        assert found["Files/old"] == b"file"
        assert found["Files/Windows/a.txt/x"] == b"x"
        assert "Files/old/f" not in found

    def test_removes_and_puts_names_that_differ_in_case_alone(self, tmp_path: Path, base: CimLayer) -> None:
        removed, put = whiteout("Files/Windows/A.TXT"), file("Files/Windows/a.txt", b"n")
        orders: list[list[Change]] = [[removed, put], [put, removed]]
        for number, changes in enumerate(orders):
            child = write(tmp_path / f"{number}.cim", changes, base)
            assert contents(child)["Files/Windows/a.txt"] == b"n"

    def test_removes_a_directory_that_something_was_removed_from(self, tmp_path: Path, base: CimLayer) -> None:
        child = write(tmp_path / "child.cim", [whiteout("Files/old/f"), whiteout("Files/old")], base)
        assert "Files/old" not in contents(child)

    def test_keeps_its_own_files_if_a_whiteout_differs_in_case(self, tmp_path: Path, base: CimLayer) -> None:
        changes: list[Change] = [directory("Files/old/deep"), file("Files/old/deep/x", b"x"), whiteout("Files/OLD")]
        with pytest.raises(InvalidInput, match="differ in case"):
            write(tmp_path / "child.cim", changes, base)

    @pytest.mark.parametrize("removed", ["Files/OLD", "FILES", "Files/old/DEEP"])
    def test_keeps_a_directory_put_over_another_in_another_case(self, tmp_path: Path, removed: str) -> None:
        base = write(tmp_path / "base.cim", tree(directory("Files/old"), directory("Files/old/deep")))
        with pytest.raises(InvalidInput, match="differ in case"):
            write(tmp_path / "child.cim", [directory("Files/old/deep"), whiteout(removed)], base)

    def test_lies_in_the_directory_of_its_parent(self, tmp_path: Path, base: CimLayer) -> None:
        (tmp_path / "elsewhere").mkdir()
        with pytest.raises(InvalidInput, match="forked"):
            write(tmp_path / "elsewhere" / "child.cim", [], base)

    def test_is_refused_if_its_parent_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound):
            write(tmp_path / "child.cim", [], CimLayer(tmp_path / "none.cim"))
        assert list(tmp_path.iterdir()) == []

    def test_that_fails_leaves_nothing(self, tmp_path: Path, base: CimLayer) -> None:
        before = sorted(os.listdir(tmp_path))

        def broken() -> Iterable[Change]:
            yield file("Files/f", b"1" * 100_000)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            write(tmp_path / "child.cim", broken(), base)
        assert sorted(os.listdir(tmp_path)) == before


def windows_base(*rest: Change) -> list[Change]:
    config = "Files/Windows/System32/config"
    hives = [
        file(f"{config}/{name}", encode_hive(MemoryKey(name)))
        for name in ("DEFAULT", "SAM", "SECURITY", "SOFTWARE", "SYSTEM")
    ]
    return tree(directory("Files/Windows/System32"), directory(config), *hives, *rest)


class TestALayerOfWindows:
    def test_gets_the_cumulative_hives_of_a_base_layer(self, tmp_path: Path) -> None:
        layer = write(tmp_path / "base.cim", windows_base(), windows=True)
        found = contents(layer)
        assert found["layout"] == b"vhd-with-hives\n"
        for stem in ("SYSTEM", "SOFTWARE", "SAM", "SECURITY", "DEFAULTUSER"):
            assert (layer.folder / "Hives" / f"{stem}_BASE").is_file()
            assert found[f"Hives/{stem}_BASE"] is not None
        with CimTree(layer) as image:
            one, other = "Hives/SYSTEM_BASE", "Files/Windows/System32/config/SYSTEM"
            assert image.identity(LayerPath(one)) == image.identity(LayerPath(other))

    def test_a_base_layer_needs_its_hives(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="config/SYSTEM"):
            write(tmp_path / "base.cim", tree(), windows=True)
        assert list(tmp_path.iterdir()) == []

    def test_gets_the_parent_s_hives_with_deltas_merged(self, tmp_path: Path) -> None:
        base = write(tmp_path / "base.cim", windows_base(), windows=True)
        delta = MemoryKey("delta")
        delta.make("Added")
        changes = [directory("Files"), directory("Hives"), file("Hives/System_Delta", encode_hive(delta))]
        child = write(tmp_path / "child.cim", changes, base, windows=True)
        found = contents(child)
        merged = found["Hives/SYSTEM_BASE"]
        assert merged is not None
        assert [key.name for key in Hive(merged).root_key.subkeys()] == ["Added"]
        assert (child.folder / "Hives" / "SYSTEM_BASE").read_bytes() == merged
        # Without a delta the parent's is carried on, so that a child of this layer finds one.
        assert (child.folder / "Hives" / "SAM_BASE").read_bytes() == (base.folder / "Hives" / "SAM_BASE").read_bytes()
        grandchild = [directory("Hives"), file("Hives/Sam_Delta", encode_hive(MemoryKey("d")))]
        assert "Hives/SAM_BASE" in contents(write(tmp_path / "third.cim", grandchild, child, windows=True))

    def test_links_to_a_hive_are_made_at_the_end(self, tmp_path: Path) -> None:
        config = "Files/Windows/System32/config"
        layer = write(tmp_path / "base.cim", windows_base(link("Files/h", f"{config}/SYSTEM")), windows=True)
        with CimTree(layer) as image:
            assert image.identity(LayerPath("Files/h")) == image.identity(LayerPath(f"{config}/SYSTEM"))

    def test_refuses_a_link_or_a_stream_where_the_host_needs_a_file(self, tmp_path: Path) -> None:
        config = "Files/Windows/System32/config"
        wrong: list[Change] = [link(f"{config}/sam", "Files/x"), stream(f"{config}/SYSTEM", "s", b"")]
        for change in wrong:
            with pytest.raises(InvalidInput):
                write(tmp_path / "base.cim", [*windows_base(file("Files/x")), change], windows=True)
        assert list(tmp_path.iterdir()) == []


def tar_of(changes: Iterable[Change]) -> bytes:
    out = bytearray()
    sink = WindowsTarSink(out.extend)
    apply(changes, sink)
    return bytes(out)


def test_a_tar_that_goes_through_an_image_comes_out_with_the_same_bytes(tmp_path: Path) -> None:
    # In the order in which a walk meets them.
    changes = tree(
        file("Files/Windows/a.txt", b"hello"),
        stream("Files/Windows/a.txt", "ads", b"stream"),
        file("Files/Windows/b", b"x" * 10_000),
        Put(entry("Files/Windows/dln", Kind.SYMLINK, attributes=DIRECTORY, target="C:\\x"), None),
        link("Files/z", "Files/Windows/a.txt"),
    )
    raw = tar_of(changes)
    with (tmp_path / "tar").open("wb") as out:
        out.write(raw)
    with (tmp_path / "tar").open("rb", buffering=0) as source:
        layer = write(tmp_path / "x.cim", windows_tar_changes(FileBuffers(source).next_buffer))
    with OpenCim(layer) as image:
        again = [change for change in all_changes(image) if change.__class__ is not Put or change.entry.path]
        assert tar_of(again) == raw


def test_a_directory_that_contains_itself_is_a_format_error(tmp_path: Path) -> None:
    new = NewCim(CimLayer(tmp_path / "x.cim"))
    apply([], CimSink(CimLayer(tmp_path / "y.cim"), windows=False))
    writer = new.writer
    from lamella.formats.cim.writer import Metadata

    writer.put("a", Metadata(), None)
    writer.put("a/b", Metadata(), None)
    directory_of_b = writer._find("a/b")
    directory_of_a = writer._find("a")
    assert directory_of_a is not None
    assert directory_of_b is not None
    writer._directories.changing(directory_of_b)["A"] = ("a", directory_of_a)
    new.commit()
    with OpenCim(new.layer) as image, pytest.raises(FormatError, match="in itself"):
        list(all_changes(image))
    with CimTree(new.layer) as found, pytest.raises(FormatError, match="in itself"):
        list(walk(found))
    with CimTree(new.layer) as found, pytest.raises(FormatError, match="in itself"):
        found.lookup(LayerPath("a/b/a"))


def test_the_name_of_an_image_ends_as_it_must(tmp_path: Path) -> None:
    for name in ("x", "x.tar", ".cim"):
        with pytest.raises((InvalidInput, Conflict)):
            NewCim(CimLayer(tmp_path / name))
