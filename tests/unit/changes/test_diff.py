# SPDX-License-Identifier: Apache-2.0
"""Differences between trees and the changes that express them."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Literal

import pytest
from msgspec.structs import replace

from lamella.changes.apply import apply
from lamella.changes.diff import CONTAINERD, Compare, diff, same_bytes
from lamella.changes.dump import dump
from lamella.changes.model import Buffer, Change, Content, Entry, Inline, Kind, Put, Sparse, Windows
from lamella.changes.tree import MemorySink, MemoryTree, fold, walk
from lamella.paths import LayerPath
from lamella.testing.builders import WHEN, device, directory, fifo, file, link, sparse, symlink

SECOND = 1_000_000_000


def said(lower: Iterable[Change], upper: Iterable[Change], *, exact: bool = False, parents: bool = True) -> list[str]:
    """Return the diff of two trees: a word and a path for each change, and the target of a link."""
    before, after = fold(lower), fold(upper)
    changes = list(diff(before, after, exact=exact, parents=parents))
    applied = apply(changes, MemorySink(fold(walk(before))))
    assert list(dump(walk(after))) == list(dump(walk(applied)))
    words = []
    for change in changes:
        match change:
            case Put(entry, _):
                words.append(f"put {entry.path or '/'}")
            case _:
                words.append(" ".join(next(dump([change])).replace("target=", "").split(" ")))
    return words


def test_a_new_file_is_put_after_its_parent_directories() -> None:
    below = [directory("a"), directory("a/b"), file("a/b/old")]

    assert said(below, [*below, file("a/b/new")]) == ["put a", "put a/b", "put a/b/new"]
    assert said(below, [*below, file("a/b/new")], parents=False) == ["put a/b/new"]


def test_each_directory_is_stated_once() -> None:
    below = [directory("a"), directory("a/b"), directory("c")]
    new = [file("a/1"), file("a/b/1"), file("a/b/2"), file("a/z")]

    assert said(below, [*below, *new]) == ["put a", "put a/1", "put a/b", "put a/b/1", "put a/b/2", "put a/z"]


def test_a_removed_tree_is_one_whiteout() -> None:
    below = [directory("a"), directory("a/b"), file("a/b/c"), file("a/d"), file("e")]

    assert said(below, [directory("a"), file("a/d"), file("e")]) == ["put a", "whiteout a/b"]
    assert said(below, []) == ["whiteout a", "whiteout e"]


def test_a_directory_replaced_by_a_file_is_one_put() -> None:
    assert said([directory("a"), file("a/b"), file("a/c")], [file("a")]) == ["put a"]


def test_a_directory_that_replaces_a_file_is_put_with_its_entries() -> None:
    new = [directory("a"), directory("a/b"), file("a/b/c"), file("a/d")]

    assert said([file("a"), file("b")], [*new, file("b")]) == ["put a", "put a/b", "put a/b/c", "put a/d"]


def test_changes_are_sorted_by_bytes_with_directories_before_their_entries() -> None:
    upper = [file("a-"), directory("a"), file("a/b"), file("a.b"), file("é"), file("\udc80")]

    expected = ["put a", "put a/b", "put a-", "put a.b", "put \udc80", "put é"]
    assert said([], upper) == expected
    expected = ["whiteout a", "whiteout a-", "whiteout a.b", "whiteout \\x80", "whiteout \\xc3\\xa9"]
    assert said(upper, []) == expected


@pytest.mark.parametrize(
    "changed",
    [
        file("a", b"text", mode=0o600),
        file("a", b"text", uid=1),
        file("a", b"text", gid=1),
        file("a", b"text", mtime=WHEN + 1),
        file("a", b"text", xattrs={"user.a": b""}),
        file("a", b"text", xattrs={"security.capability": b"\x01"}),
        file("a", b"longer"),
        file("a", b"text", windows=Windows(0)),
        symlink("a", "text"),
        fifo("a"),
        device("a", 1, 3),
        directory("a"),
    ],
)
def test_any_difference_in_content_or_metadata_is_a_change(changed: Put) -> None:
    same = file("a", b"text")

    assert said([same], [changed]) == ["put a"]
    assert said([changed], [same]) == ["put a"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (symlink("a", "b"), symlink("a", "c")),
        (device("a", 1, 3), device("a", 1, 5)),
        (device("a", 8, 0), device("a", 8, 0, block=True)),
        (directory("a"), directory("a", mtime=1)),
        (directory("a"), directory("a", xattrs={"user.a": b""})),
    ],
)
def test_any_difference_of_other_kinds_of_files_is_a_change(one: Put, other: Put) -> None:
    assert said([one], [other]) == ["put a"]


def test_the_root_is_put_when_its_metadata_differs() -> None:
    assert said([directory("")], [directory("", mode=0o700)]) == ["put /"]
    assert said([directory("")], [directory(""), file("a")]) == ["put a"]


def test_equal_times_prove_equality_only_with_a_fraction() -> None:
    def changes(mtime: int, *, exact: bool = False) -> list[str]:
        lower, upper = fold([file("a", b"one", mtime=mtime)]), fold([file("a", b"two", mtime=mtime)])
        return [next(dump([change])).split(" ")[5] for change in diff(lower, upper, exact=exact)]

    assert changes(5 * SECOND) == ["a"]
    assert changes(5 * SECOND + 1) == []
    assert changes(5 * SECOND + 1, exact=True) == ["a"]


def test_equal_content_is_no_change_in_any_mode_of_comparison() -> None:
    for mtime in (5 * SECOND, 5 * SECOND + 1):
        for content in (b"", b"one"):
            assert said([file("a", content, mtime=mtime)], [file("a", content, mtime=mtime)], exact=True) == []


def test_a_truncated_fraction_is_a_change_as_in_containerd() -> None:
    assert said([file("a", mtime=5 * SECOND)], [file("a", mtime=5 * SECOND + 1)]) == ["put a"]


def test_the_containerd_mode_ignores_attributes_and_times_of_directories() -> None:
    lower = fold([directory("a"), file("b", xattrs={"security.capability": b"\x01"})])
    same = fold([directory("a", mtime=1), file("b", xattrs={"security.capability": b"\x01", "user.a": b""})])
    capable = fold([directory("a"), file("b", xattrs={"security.capability": b"\x02"})])

    assert not list(diff(lower, same, compare=CONTAINERD))
    assert len(list(diff(lower, same))) == 2
    assert len(list(diff(lower, same, compare=Compare(xattrs=False)))) == 1
    assert len(list(diff(lower, capable, compare=CONTAINERD))) == 1


def test_the_first_name_of_a_new_file_is_put_and_the_others_are_links() -> None:
    upper: list[Change] = [directory("d"), file("d/b"), link("c", "d/b"), link("e", "d/b")]

    assert said([directory("d")], upper) == ["put c", "put d", "link d/b c", "link e c"]


def test_unchanged_names_are_linked_right_after_the_first_changed_one() -> None:
    lower: list[Change] = [directory("d"), file("d/a"), link("m", "d/a"), file("o")]
    upper: list[Change] = [directory("d"), file("d/a"), link("m", "d/a"), link("n", "d/a"), file("o"), link("p", "d/a")]

    assert said(lower, upper) == ["put n", "put d", "link d/a n", "link m n", "link p n"]


def test_files_that_became_one_have_changed() -> None:
    assert said([file("a"), file("b")], [file("a"), link("b", "a")]) == ["put b", "link a b"]


def test_files_that_are_no_longer_one_have_changed() -> None:
    assert said([file("a"), link("b", "a")], [file("a"), file("b")]) == ["put b"]


def test_a_file_that_became_two_files_with_two_names_each_has_changed() -> None:
    lower: list[Change] = [file("a"), link("b", "a"), link("c", "a"), link("d", "a")]
    upper: list[Change] = [file("a"), link("b", "a"), file("c"), link("d", "c")]

    assert said(lower, upper) == ["put c", "link d c"]


def test_a_file_that_lost_a_name_has_not_changed() -> None:
    assert said([file("a"), link("b", "a"), link("c", "a")], [file("a"), link("c", "a")]) == ["whiteout b"]


def test_names_that_swapped_partners_have_changed() -> None:
    lower: list[Change] = [file("a"), link("b", "a"), file("c"), link("d", "c")]
    upper: list[Change] = [file("a"), link("c", "a"), file("b"), link("d", "b")]

    assert said(lower, upper) == ["put b", "put c", "link a c", "link d b"]


def test_links_of_symlinks_and_devices_are_kept() -> None:
    upper: list[Change] = [symlink("a", "x"), link("b", "a"), device("c", 1, 3), link("d", "c")]

    assert said([], upper) == ["put a", "link b a", "put c", "link d c"]


WINDOWS = Windows(0x20, 1, 2, 3, 4, b"sd", {"a": b"b"}, b"reparse")


@pytest.mark.parametrize(
    "changed",
    [
        replace(WINDOWS, attributes=0x21),
        replace(WINDOWS, creation_time=None),
        replace(WINDOWS, write_time=9),
        replace(WINDOWS, security_descriptor=b""),
        replace(WINDOWS, reparse=None),
        replace(WINDOWS, extended_attributes={}),
    ],
)
def test_windows_metadata_is_compared(changed: Windows) -> None:
    assert said([file("a", windows=WINDOWS)], [file("a", windows=changed)]) == ["put a"]
    assert said([directory("a", windows=WINDOWS)], [directory("a", windows=changed)]) == ["put a"]


def test_times_that_the_system_updates_are_ignored() -> None:
    moved = replace(WINDOWS, access_time=9, change_time=9)

    assert not list(diff(fold([file("a", windows=WINDOWS)]), fold([file("a", windows=moved)])))


def test_the_write_time_decides_without_posix_metadata() -> None:
    def tree(write_time: int | None, content: bytes) -> MemoryTree:
        entry = Entry(LayerPath("a"), Kind.FILE, None, len(content), "", Windows(0x20, write_time=write_time))
        return fold([Put(entry, Inline(content))])

    assert not list(diff(tree(5, b"a"), tree(5, b"b")))
    assert list(diff(tree(SECOND, b"a"), tree(SECOND, b"b")))
    assert list(diff(tree(None, b"a"), tree(None, b"b")))


class Comparing(MemoryTree):
    """A tree with its own comparison, which treats the files in ``same`` as equal."""

    def __init__(self, changes: Iterable[Change], same: str = "", *, able: bool = True) -> None:
        super().__init__()
        self.left_out = same
        self.able = able
        self.asked: list[str] = []
        apply(changes, MemorySink(self))

    def comparison(self, lower: Comparing, *, exact: bool) -> Beside | None:
        assert type(lower) is Comparing
        return Beside(lower, self, exact=exact) if self.able else None


class Beside:
    def __init__(self, lower: Comparing, upper: Comparing, *, exact: bool) -> None:
        self._lower, self._upper = lower, upper
        upper.asked.append(f"exact {exact}")

    def entries(self, directory: LayerPath) -> tuple[list[Entry], list[Entry], bool]:
        self._upper.asked.append(f"entries {directory}")
        lows, ups = (
            [
                Entry(entry.path, entry.kind, None) if entry.kind is Kind.DIRECTORY else entry
                for entry in tree.entries(directory)
                if entry.path[-1] not in self._upper.left_out
            ]
            for tree in (self._lower, self._upper)
        )
        return lows, ups, directory in self._upper.left_out

    def same(self, path: LayerPath) -> bool:
        self._upper.asked.append(f"same {path}")
        return False

    def close(self) -> None:
        self._upper.asked.append("close")


def test_a_tree_can_supply_its_own_comparison() -> None:
    every = [file(f"d/{name}", b"x", mtime=0) for name in "123"]
    upper = Comparing([*every, file("d/new/a")], "12")
    changes = diff(Comparing(every), upper, exact=True)

    assert isinstance(changes, Generator)
    assert [change.entry.path for change in changes if isinstance(change, Put)] == ["d", "d/3", "d/new", "d/new/a"]
    assert upper.asked == ["exact True", "entries ", "entries d", "same d/3", "close"]


def test_directories_may_come_without_their_metadata() -> None:
    lower = [directory("a"), directory("b", mode=0o700), directory("c", mode=0o700), directory("d")]
    upper = Comparing([*(directory(name) for name in "abc"), file("d")], "c")

    changes = list(diff(Comparing(lower), upper))
    assert changes == [directory("b"), file("d")]


def test_a_comparison_is_closed_when_the_diff_is_abandoned() -> None:
    upper = Comparing([file("a"), file("b")])
    changes = diff(Comparing([]), upper)

    assert isinstance(changes, Generator)
    next(changes)
    changes.close()
    assert upper.asked == ["exact False", "entries ", "close"]


def test_trees_of_different_classes_are_compared_by_opening_their_files() -> None:
    one, other = file("a", b"x", mtime=0), file("a", b"y", mtime=0)

    assert not list(diff(fold([one]), Comparing([one], "a")))
    assert len(list(diff(fold([other]), Comparing([one], "a")))) == 1
    assert len(list(diff(Comparing([other]), Comparing([one], "a", able=False)))) == 1


class Chopped:
    """Stored content that yields chunks of a given size in one reused buffer."""

    def __init__(self, content: Content, step: int) -> None:
        self.size = content.size
        self.extents = content.extents
        self._data = b"".join(map(bytes, content.chunks()))
        self._step = step

    @property
    def stored(self) -> Literal[True]:
        return True

    def chunks(self) -> Iterable[Buffer]:
        buffer = bytearray(self._step)
        for at in range(0, len(self._data), self._step):
            part = self._data[at : at + self._step]
            buffer[: len(part)] = part
            yield memoryview(buffer)[: len(part)]


@pytest.mark.parametrize("step", [1, 2, 3, 64])
@pytest.mark.parametrize("other_step", [1, 5, 64])
def test_contents_are_compared_across_chunks_and_holes(step: int, other_step: int) -> None:
    content = sparse(20, [(2, b"abc"), (5, b"\0\0\0"), (12, b"d")])
    flat = Inline(b"\0\0abc\0\0\0\0\0\0\0d\0\0\0\0\0\0\0")
    wrong = Inline(b"\0\0abc\0\0\0\0\0\0\0e\0\0\0\0\0\0\0")
    late = Inline(b"\0\0abc\0\0\0\0\0\0\0d\0\0\0\0\0\0x")

    for same in (content, flat):
        assert same_bytes(Chopped(same, step), Chopped(content, other_step))
        assert same_bytes(Chopped(same, step), Chopped(flat, other_step))
        assert not same_bytes(Chopped(same, step), Chopped(wrong, other_step))
        assert not same_bytes(Chopped(late, step), Chopped(same, other_step))


def test_holes_are_compared_without_reading_them() -> None:
    enormous = Sparse(1 << 60, ((1 << 50, 1),), b"x")

    assert same_bytes(enormous, sparse(1 << 60, [(1 << 50, b"x")]))
    assert not same_bytes(enormous, sparse(1 << 60, [(1 << 50, b"y")]))


def test_comparing_stops_at_the_first_difference() -> None:
    class Endless:
        size = 1 << 60
        extents = None
        stored = True

        def __init__(self, first: bytes) -> None:
            self._first = first

        def chunks(self) -> Iterable[Buffer]:
            yield self._first
            raise AssertionError("read on after a difference")

    assert not same_bytes(Endless(b"x"), Endless(b"y"))


def test_trees_of_the_maximum_depth_can_be_compared() -> None:
    deep = [directory("/".join(["d"] * depth)) for depth in range(1, 1500)]
    below = fold(deep)

    changes = list(diff(below, fold([*deep, file("/".join([*["d"] * 1499, "f"]))])))
    assert len(changes) == 1500
