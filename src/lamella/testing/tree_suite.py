# SPDX-License-Identifier: Apache-2.0
"""What every tree promises, shown on trees that layers come to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lamella.changes.contracts import Tree
from lamella.changes.model import Change, Kind
from lamella.changes.tree import fold
from lamella.errors import InvalidInput, NotFound
from lamella.paths import ROOT, LayerPath
from lamella.testing.builders import directory, fifo, file, link, sparse, symlink
from lamella.testing.reading import at, closed_after, held, raises, text

SOME: tuple[Change, ...] = (
    directory("", mode=0o711, mtime=5),
    directory("d", mode=0o750, mtime=6),
    file("d/a", b"text", mode=0o640, mtime=7, xattrs={"user.a": b"\0\xff"}),
    directory("d/e"),
    link("d/z", "d/a"),
    fifo("p"),
    symlink("s", "d"),
    link("t", "s"),
    file("x"),
)


class TreeTests:
    """Bind with ``make``, which gives the tree that changes come to."""

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Tree:
        """A tree; ``tmp_path`` is an empty directory for it."""
        raise NotImplementedError

    @contextmanager
    def tree(self, tmp_path: Path, changes: Iterable[Change] = SOME) -> Iterator[Tree]:
        """A tree that is closed after the block."""
        with closed_after(self.make(tmp_path, changes)) as tree:
            yield tree

    def test_a_tree_says_what_its_changes_said(self, tmp_path: Path) -> None:
        with self.tree(tmp_path) as tree:
            assert text(fold(SOME)) == text(tree)

    def test_the_root_is_always_there(self, tmp_path: Path) -> None:
        with self.tree(tmp_path, []) as tree:
            assert at(tree, "").kind is Kind.DIRECTORY
            assert tree.entries(ROOT) == []

    def test_lookup_finds_what_entries_list(self, tmp_path: Path) -> None:
        with self.tree(tmp_path) as tree:
            assert [entry.path for entry in tree.entries(ROOT)] == ["d", "p", "s", "t", "x"]
            for parent in ("", "d"):
                for entry in tree.entries(LayerPath(parent)):
                    assert entry == tree.lookup(entry.path)

    def test_lookup_finds_nothing_where_there_is_nothing(self, tmp_path: Path) -> None:
        with self.tree(tmp_path) as tree:
            for path in ("none", "none/at/all", "x/y", "d/a/b", "p/q"):
                assert tree.lookup(LayerPath(path)) is None

    def test_no_link_is_followed(self, tmp_path: Path) -> None:
        with self.tree(tmp_path) as tree:
            assert at(tree, "s").kind is Kind.SYMLINK
            assert tree.lookup(LayerPath("s/a")) is None
            with raises(InvalidInput, NotFound):
                tree.entries(LayerPath("s/e"))
            with raises(InvalidInput):
                tree.entries(LayerPath("s"))
            with raises(InvalidInput, NotFound):
                tree.open(LayerPath("s/a"))

    def test_entries_come_in_the_order_of_their_bytes(self, tmp_path: Path) -> None:
        names = ["a", "a b", "a-", "a.", "aa", "b", "\udc80", "é", "\ue000", "\U0001f600", "\udcff"]
        with self.tree(tmp_path, [file(f"d/{name}") for name in reversed(names)]) as tree:
            assert [f"d/{name}" for name in names] == [entry.path for entry in tree.entries(LayerPath("d"))]

    def test_only_directories_have_entries(self, tmp_path: Path) -> None:
        with self.tree(tmp_path) as tree:
            for path in ("x", "p", "d/z"):
                with raises(InvalidInput):
                    tree.entries(LayerPath(path))
            with raises(NotFound):
                tree.entries(LayerPath("none"))
            assert tree.entries(LayerPath("d/e")) == []

    def test_content_can_be_opened_as_often_as_wanted(self, tmp_path: Path) -> None:
        big = bytes(range(256)) * 5000
        with self.tree(tmp_path, [file("a", big), file("b", b"text"), file("c")]) as tree:
            first, second = tree.open(LayerPath("a")), tree.open(LayerPath("a"))
            assert first.stored
            assert [first.size, tree.open(LayerPath("c")).size] == [len(big), 0]
            one, other = iter(first.chunks()), iter(second.chunks())
            head = bytes(next(one))
            assert held(tree.open(LayerPath("b"))) == b"text"
            assert big.startswith(bytes(next(other)))
            assert big == head + b"".join(map(bytes, one))
            assert big == held(first) == held(second)
            assert held(tree.open(LayerPath("c"))) == b""

    def test_only_regular_files_can_be_opened(self, tmp_path: Path) -> None:
        with self.tree(tmp_path) as tree:
            for path in ("", "d", "s", "p"):
                with raises(InvalidInput):
                    held(tree.open(LayerPath(path)))
            with raises(NotFound):
                held(tree.open(LayerPath("none")))

    def test_extents_rise_and_hold_all_that_is_not_zero(self, tmp_path: Path) -> None:
        content = sparse(4 << 20, [(1 << 20, b"x" * 8192), (3 << 20, b"y")])
        with self.tree(tmp_path, [file("a", content), file("b", sparse(1 << 20))]) as tree:
            for path, expected in (("a", held(content)), ("b", bytes(1 << 20))):
                found = tree.open(LayerPath(path))
                end = 0
                for offset, length in found.extents or ():
                    assert end <= offset
                    end = offset + length
                assert end <= found.size == len(expected)
                assert expected == held(found)

    def test_the_names_of_one_file_have_one_identity(self, tmp_path: Path) -> None:
        with self.tree(tmp_path) as tree:
            assert tree.identity(LayerPath("d/a")) == tree.identity(LayerPath("d/z")) is not None
            assert tree.identity(LayerPath("s")) == tree.identity(LayerPath("t")) is not None
            assert tree.identity(LayerPath("s")) != tree.identity(LayerPath("d/a"))

    def test_a_file_with_one_name_has_no_identity(self, tmp_path: Path) -> None:
        with self.tree(tmp_path) as tree:
            assert tree.identity(LayerPath("x")) is None
            tree.entries(ROOT)
            assert tree.identity(LayerPath("x")) is None
            assert tree.identity(LayerPath("p")) is None

    def test_a_deep_tree_can_be_walked(self, tmp_path: Path) -> None:
        deep = "/".join(["d"] * 600)
        with self.tree(tmp_path, [file(f"{deep}/f", b"text")]) as tree:
            assert len(text(tree)) == 602
            assert held(tree.open(LayerPath(f"{deep}/f"))) == b"text"
