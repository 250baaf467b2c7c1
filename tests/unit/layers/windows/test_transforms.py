# SPDX-License-Identifier: Apache-2.0
"""Stages that give entries the metadata of another system."""

from __future__ import annotations

import pytest

from lamella.changes.losses import Losses
from lamella.changes.model import EMPTY, Change, Entry, Inline, Kind, Link, Posix, Put, Stream, Whiteout, Windows
from lamella.errors import InvalidInput
from lamella.formats.ntfs import reparse, sddl
from lamella.formats.ntfs.security import SecurityDescriptor
from lamella.layers.windows.transforms import (
    SecurityTemplate,
    default_security,
    posix_from_windows,
    subtree_changes,
    windows_from_posix,
)
from lamella.paths import LayerPath
from lamella.testing.builders import device, directory, fifo, file, link, opaque, stream, symlink, whiteout

WHEN = 1_700_000_000_123_456_700


def entry_of(change: Change) -> Entry:
    assert isinstance(change, Put)
    return change.entry


def windows_of(change: Change) -> Windows:
    windows = entry_of(change).windows
    assert windows is not None
    return windows


def posix_of(change: Change) -> Posix:
    posix = entry_of(change).posix
    assert posix is not None
    return posix


def windows_put(kind: Kind, target: str = "", **fields: object) -> Put:
    content = Inline(b"x") if kind is Kind.FILE else None
    facet = Windows(**({"attributes": 0, "write_time": WHEN} | fields))  # type: ignore[arg-type]
    return Put(Entry(LayerPath("Files/a"), kind, None, 1 if content else 0, target, facet), content)


class TestWindowsFromPosix:
    def test_files_and_directories_get_the_descriptors_of_a_build(self) -> None:
        source = [directory("Files"), file("Files/a", b"x", mtime=WHEN)]
        first, second = windows_from_posix(source)
        usual = default_security()
        assert windows_of(first).attributes == 0x10
        assert windows_of(first).security_descriptor == usual.directory
        assert windows_of(second) == Windows(0x20, WHEN, WHEN, WHEN, WHEN, usual.file)
        assert posix_of(second) == posix_of(source[1])
        assert isinstance(second, Put)
        assert second.content == Inline(b"x")

    def test_the_default_descriptors_let_users_execute_files(self) -> None:
        descriptor = default_security().file
        assert descriptor is not None
        assert sddl.format(SecurityDescriptor.decode(descriptor)).endswith("(A;;0x1200a9;;;BU)")

    def test_a_template_can_be_replaced_or_empty(self) -> None:
        (first,) = windows_from_posix([file("a", b"")], security=SecurityTemplate(b"d", b"f"))
        assert windows_of(first).security_descriptor == b"f"
        (first,) = windows_from_posix([directory("a")], security=SecurityTemplate())
        assert windows_of(first).security_descriptor is None

    def test_links_get_backslashes_and_the_directory_attribute(self) -> None:
        def asked(path: LayerPath, target: str) -> bool:
            return (path, target) == ("b", "../d")

        links = [symlink("a", "/x/y"), symlink("b", "../d"), symlink("c", "d/")]
        made = list(windows_from_posix(links, leads_to_directory=asked))
        assert [windows_of(change).attributes for change in made] == [0x420, 0x410, 0x410]
        assert [entry_of(change).target for change in made] == ["\\x\\y", "..\\d", "d\\"]
        assert windows_of(made[0]).reparse == reparse.encode(reparse.symlink("\\x\\y"))

    def test_posix_metadata_without_a_windows_form_is_reported_lost(self) -> None:
        losses = Losses()
        named = Put(Entry(LayerPath("f"), Kind.FILE, Posix(0o644, 0, 0, 0, {"user.a": b""})), EMPTY)
        links: list[Change] = [Link(LayerPath("l"), LayerPath("p")), Link(LayerPath("m"), LayerPath("l"))]
        made = list(windows_from_posix([fifo("p"), device("c", 1, 3), *links, named], losses=losses))
        assert [entry_of(change).path for change in made] == ["f"]
        assert [loss.path for loss in losses] == ["p", "c", "l", "m", "f"]

    def test_existing_facets_are_kept_and_other_changes_pass(self) -> None:
        changes: list[Change] = [windows_put(Kind.FILE), whiteout("w"), Stream(LayerPath("Files/a"), "s", EMPTY)]
        assert list(windows_from_posix(changes)) == changes

    def test_a_target_that_is_too_long_is_refused_by_name(self) -> None:
        with pytest.raises(InvalidInput, match="'a': "):
            list(windows_from_posix([symlink("a", "x" * 9000)]))


class TestPosixFromWindows:
    def test_modes_owner_and_time(self) -> None:
        (plain,) = posix_from_windows([windows_put(Kind.FILE)])
        assert posix_of(plain) == Posix(0o644, 0, 0, WHEN)
        assert entry_of(plain).windows is not None
        (read_only,) = posix_from_windows([windows_put(Kind.FILE, attributes=1)], file_mode=0o755)
        assert posix_of(read_only).mode == 0o555
        (folder,) = posix_from_windows([windows_put(Kind.DIRECTORY, attributes=0x11, write_time=None)])
        assert posix_of(folder) == Posix(0o755, 0, 0, 0)

    @pytest.mark.parametrize(
        ("target", "posix"),
        [
            ("..\\x\\y", "../x/y"),
            ("C:\\x\\y", "/x/y"),
            ("c:\\", "/"),
            ("C:", "/"),
            ("\\\\?\\C:\\x", "/x"),
            ("\\rooted", "/rooted"),
            ("D:\\x", "D:/x"),
            ("C:relative", "C:relative"),
            ("\\\\server\\share", "//server/share"),
        ],
    )
    def test_links_and_mount_points_become_symbolic_links(self, target: str, posix: str) -> None:
        for point in (reparse.symlink(target), reparse.mount_point(target)):
            (made,) = posix_from_windows([windows_put(Kind.SYMLINK, target, reparse=reparse.encode(point))])
            assert (entry_of(made).kind, entry_of(made).target) == (Kind.SYMLINK, posix)
            assert posix_of(made).mode == 0o777

    def test_windows_metadata_without_a_posix_form_is_reported_lost(self) -> None:
        losses = Losses()
        other = reparse.encode(reparse.Unknown(0x80000018, b""))
        changes = [windows_put(Kind.FILE, reparse=other, extended_attributes={"A": b""})]
        (made,) = posix_from_windows(changes, losses=losses)
        assert entry_of(made).kind is Kind.FILE
        assert [loss.what for loss in losses] == ["extended attribute A", "reparse point with the tag 0x80000018"]

    def test_a_malformed_reparse_point_is_refused_by_name(self) -> None:
        with pytest.raises(InvalidInput, match="'Files/a': "):
            list(posix_from_windows([windows_put(Kind.SYMLINK, reparse=b"short")]))

    def test_existing_facets_are_kept_and_other_changes_pass(self) -> None:
        changes: list[Change] = [file("a", b"x"), Whiteout(LayerPath("w")), Stream(LayerPath("a"), "s", EMPTY)]
        assert list(posix_from_windows(changes)) == changes


class TestInside:
    FILES = LayerPath("Files")

    def test_the_directory_becomes_the_root(self) -> None:
        changes: list[Change] = [
            *(directory("Files"), directory("Hives"), file("Files/a", b"x"), file("FilesX/a", b"")),
            *(link("Files/d/l", "Files/a"), stream("Files/a", "s", b"y"), whiteout("Files/w"), whiteout("UtilityVM/w")),
            *(opaque("Files/d"), stream("Hives", "s", b"")),
        ]
        assert list(subtree_changes(changes, self.FILES)) == [
            *(directory(""), file("a", b"x"), link("d/l", "a"), stream("a", "s", b"y"), whiteout("w"), opaque("d")),
        ]

    @pytest.mark.parametrize("marker", [whiteout("a"), whiteout("a/b"), opaque("a"), opaque("a/b"), opaque("")])
    def test_a_removed_directory_hides_everything_below_it(self, marker: Change) -> None:
        assert list(subtree_changes([marker], LayerPath("a/b"))) == [opaque("")]

    @pytest.mark.parametrize("marker", [whiteout("a/c"), opaque("a/bc"), whiteout("b")])
    def test_a_whiteout_of_another_directory_has_no_effect(self, marker: Change) -> None:
        assert list(subtree_changes([marker], LayerPath("a/b"))) == []

    def test_links_to_files_outside_are_reported_lost(self) -> None:
        losses = Losses()
        changes: list[Change] = [
            link("Files/l", "UtilityVM/Files/a"),
            link("Files/m", "Files"),
            stream("Files", "s", b""),
        ]
        assert list(subtree_changes(changes, self.FILES, losses=losses)) == []
        assert [loss.path for loss in losses] == ["Files/l", "Files/m", "Files"]

    def test_an_entry_for_the_root_has_no_effect(self) -> None:
        changes: list[Change] = [directory(""), file("a", b""), link("b", "a"), whiteout("c"), opaque("")]
        assert list(subtree_changes(changes, LayerPath(""))) == changes
