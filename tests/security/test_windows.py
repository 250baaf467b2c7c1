# SPDX-License-Identifier: Apache-2.0
"""Hostile Windows layers: nothing is written outside, and refused layers leave nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.formats.tar.archives import END, block, file, pax
from tests.unit.layers.windows.test_tar import file_at, link_at, windows, with_stream, write

from lamella.changes.model import Change, Entry, Kind, Put
from lamella.errors import InvalidInput, LamellaError
from lamella.formats.ntfs import reparse
from lamella.layers.windows.folder.reader import FolderChanges
from lamella.layers.windows.layout import WindowsLayer
from lamella.operations.layers.apply import ApplyOptions, apply_blob
from lamella.paths import LayerPath


def folder(path: str) -> Put:
    return Put(Entry(LayerPath(path), Kind.DIRECTORY, None, 0, "", windows(0x10)), None)


TOP: list[Change] = [folder("Files"), folder("Hives")]
START = write(TOP)[0][:-1024]


@pytest.fixture
def arena(tmp_path: Path) -> Path:
    """Return a directory with a base layer and a secret beside it."""
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "base.tar").write_bytes(write([folder("Files"), file_at("Files/below", b"below")])[0])
    apply_blob(tmp_path / "base.tar", tmp_path / "base", ApplyOptions(kind="windows"))
    return tmp_path


def refused(arena: Path, data: bytes) -> None:
    """Assert that both kinds of layer are refused without a trace."""
    (arena / "bad.tar").write_bytes(data)
    before = {path: path.stat().st_mtime_ns for path in arena.rglob("*")}
    for parents in ((), (arena / "base",)):
        with pytest.raises(InvalidInput):
            apply_blob(arena / "bad.tar", arena / "new", ApplyOptions(kind="windows", parents=parents))
        after = {path: path.stat().st_mtime_ns for path in arena.rglob("*")}
        assert before == after
    assert (arena / "secret").read_bytes() == b"secret"


NAMES = [
    *("../secret", "Files/../../secret", "Files/..\\..\\secret", "Files/a\\b", "C:/secret", "Files/C:", "/../secret"),
    *("Files/a:b", "Files/a::$DATA", "Files/:b", "Files/a:b:c", "Files/NUL", "Files/com1.txt", "Files/aux /x"),
    *("Files/a.", "Files/a ", "Files/a?", "Files/a*", "Files/a|b", 'Files/a"', "Files/a<", "Files/a\x07"),
    *("Files/.wh.", "Files/.wh...", "lamella.index", "lamella.framing", "tombstones.txt", "bcd.bak", "Other/x"),
]


class TestNames:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_file_with_this_name_is_refused(self, name: str, arena: Path) -> None:
        refused(arena, START + file(name.encode(), b"x") + END)

    @pytest.mark.parametrize("pair", [("a", "A"), ("é", "É"), ("a", "a")])
    def test_two_spellings_of_one_name_are_refused(self, pair: tuple[str, str], arena: Path) -> None:
        members = b"".join(pax((b"path", f"Files/{name}".encode())) + file(b"Files/x", b"1") for name in pair)
        refused(arena, START + members + END)

    @pytest.mark.parametrize("name", ["files/x", "FILES", "hives/x"])
    def test_top_level_directories_are_spelled_as_windows_does(self, name: str, arena: Path) -> None:
        refused(arena, file(name.encode(), b"x") + END)

    def test_a_directory_in_another_case_is_the_same_directory(self, arena: Path) -> None:
        (arena / "odd.tar").write_bytes(START + file(b"FILES/x", b"1") + END)
        apply_blob(arena / "odd.tar", arena / "new", ApplyOptions(kind="windows"))
        assert sorted(os.listdir(arena / "new")) == ["Files", "Hives", "lamella.framing", "lamella.index"]


class TestLinks:
    @pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "C:\\Windows", "\\\\server\\share", "\\??\\C:\\"])
    def test_a_symbolic_link_is_not_created_in_the_folder(self, target: str, arena: Path) -> None:
        (arena / "link.tar").write_bytes(START + block(b"Files/l", b"2", linkname=target.encode()) + END)
        apply_blob(arena / "link.tar", arena / "new", ApplyOptions(kind="windows"))
        assert not (arena / "new/Files/l").is_symlink()

    @pytest.mark.parametrize("attributes", [0x420, 0x410])
    def test_nothing_is_written_through_a_link(self, attributes: int, arena: Path) -> None:
        link = write([*TOP, link_at("Files/l", attributes, reparse.symlink("..\\..\\..\\secret"))])[0][:-1024]
        for name in (b"Files/l/x", b"FILES/L/x", b"Files/l"):
            refused(arena, link + file(name, b"x") + END)

    @pytest.mark.parametrize("target", [b"secret", b"../secret", b"Files/none", b"Files", b"Files/l", b"lamella.index"])
    def test_a_hard_link_can_only_target_files_of_the_layers(self, target: bytes, arena: Path) -> None:
        (arena / "bad.tar").write_bytes(START + block(b"Files/l", b"1", linkname=target) + END)
        for parents in ((), (arena / "base",)):
            with pytest.raises(LamellaError):
                apply_blob(arena / "bad.tar", arena / "new", ApplyOptions(kind="windows", parents=parents))
            assert not (arena / "new").exists()

    def test_planted_links_in_a_parent_are_not_followed(self, arena: Path) -> None:
        vm = arena / "base/UtilityVM/Files"
        vm.mkdir(parents=True)
        (vm / "x").symlink_to(arena / "secret")
        (vm / "dir").symlink_to(arena)
        (arena / "vm.tar").write_bytes(write([*TOP, folder("UtilityVM"), folder("UtilityVM/Files")])[0])
        apply_blob(arena / "vm.tar", arena / "new", ApplyOptions(kind="windows", parents=[arena / "base"]))
        assert os.listdir(arena / "new/UtilityVM/Files") == []


RECORDS: Iterable[tuple[bytes, bytes]] = [
    (b"MSWINDOWS.rawsd", b"*"),
    (b"MSWINDOWS.rawsd", b"AAA"),
    (b"MSWINDOWS.fileattr", b"-1"),
    (b"MSWINDOWS.fileattr", b"4294967296"),
    (b"MSWINDOWS.xattr.A", b"="),
    (b"LIBARCHIVE.creationtime", b"yesterday"),
]


@pytest.mark.timeout(20)
def test_a_fifo_instead_of_an_index_does_not_block(arena: Path) -> None:
    index = arena / "base" / "lamella.index"
    index.unlink()
    os.mkfifo(index)
    with FolderChanges(WindowsLayer(arena / "base")) as changes, pytest.raises(InvalidInput):
        list(changes)


@pytest.mark.parametrize(("key", "value"), RECORDS)
def test_malformed_records_are_refused(key: bytes, value: bytes, arena: Path) -> None:
    refused(arena, START + pax((key, value)) + file(b"Files/x", b"1") + END)


@pytest.mark.parametrize("flag", [b"3", b"4", b"6", b"A"])
def test_types_that_windows_does_not_have_are_refused(flag: bytes, arena: Path) -> None:
    refused(arena, START + block(b"Files/x", flag) + END)


def test_a_layer_truncated_at_any_block_is_refused(arena: Path) -> None:
    whole = write([*TOP, *with_stream("Files/a"), link_at("Files/l", 0x420, reparse.symlink("a"))])[0]
    for end in range(512, len(whole) - 1024, 512):
        (arena / "bad.tar").write_bytes(whole[: end + 7])
        with pytest.raises(InvalidInput):
            apply_blob(arena / "bad.tar", arena / "new", ApplyOptions(kind="windows"))
        assert not (arena / "new").exists()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_mutated_layers_are_accepted_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    place = tmp_path_factory.mktemp("mutated")
    whole = bytearray(write([*TOP, *with_stream("Files/a"), file_at("Hives/x"), folder("Files/d")])[0])
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (place / "bad.tar").write_bytes(whole)
    try:
        apply_blob(place / "bad.tar", place / "new", ApplyOptions(kind="windows"))
    except LamellaError:
        assert sorted(os.listdir(place)) == ["bad.tar"]
    else:
        assert sorted(os.listdir(place)) == ["bad.tar", "new"]
