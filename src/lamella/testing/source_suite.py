# SPDX-License-Identifier: Apache-2.0
"""Contract suites of layer sources and of trees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lamella.changes.contracts import Source, Tree
from lamella.changes.dump import dump
from lamella.changes.model import Change, Content, Kind, Put
from lamella.changes.tree import fold
from lamella.errors import Conflict, InvalidInput, NotFound
from lamella.paths import ROOT, LayerPath, parse_path
from lamella.testing.builders import directory, fifo, file, link, opaque, sparse, symlink, whiteout
from lamella.testing.reading import at, closed_after, held, raises, text

SECOND = 1_000_000_000

LAYER: tuple[Change, ...] = (
    directory("a", mode=0o750, mtime=5 * SECOND),
    file("a/b", b"text", mode=0o640, mtime=6 * SECOND, xattrs={"user.a": b"\0\xff"}),
    link("a/c", "a/b"),
    file("a/d", bytes(range(256)) * 5000, mtime=0),
    file("a/e", mtime=0),
    fifo("a/f", mtime=0),
    symlink("a/g", "../some where", mtime=0),
    file("a/é\udcff\n", b"odd", mtime=0),
    whiteout("a/gone"),
    opaque("h"),
    directory("h", mtime=0),
    file("h/i", sparse(2 << 20, [(1 << 20, b"x" * 4096)]), mtime=0),
    file("j", b"last", mtime=0),
)
"""Times are whole seconds, because many kinds of layer keep no others."""


class SourceTests:
    """Contract of sources. A binding defines ``make``."""

    layer: tuple[Change, ...] = LAYER
    """Changes that the sources are made from; override for formats without POSIX metadata. The last file is "last"."""

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Source:
        """Return a source of ``changes``, as this kind of layer stores them; ``tmp_path`` is an empty directory."""
        raise NotImplementedError

    def expected(self) -> list[str]:
        """Return the canonical text of `layer` as the source yields it; override for another order."""
        return list(dump(self.layer, inline=64, extents=False))

    def test_a_source_yields_the_changes_that_were_stored(self, tmp_path: Path) -> None:
        assert list(dump(self.make(tmp_path, self.layer), inline=64, extents=False)) == self.expected()

    def test_paths_are_canonical(self, tmp_path: Path) -> None:
        for change in self.make(tmp_path, self.layer):
            path = change.entry.path if isinstance(change, Put) else change.path
            assert path == parse_path(path)

    def test_only_files_have_content_and_it_has_their_size(self, tmp_path: Path) -> None:
        for change in self.make(tmp_path, self.layer):
            if isinstance(change, Put):
                assert (change.content is not None) == (change.entry.kind is Kind.FILE)
                if change.content is not None:
                    assert change.entry.size == change.content.size
                    extents = change.content.extents
                    data = change.content.size if extents is None else sum(length for _, length in extents)
                    assert sum(map(len, change.content.chunks())) == data

    def test_content_may_be_skipped(self, tmp_path: Path) -> None:
        paths = [change.entry.path for change in self.make(tmp_path, self.layer) if isinstance(change, Put)]
        assert sorted(paths) == sorted(change.entry.path for change in self.layer if isinstance(change, Put))

    def test_content_may_be_read_in_part(self, tmp_path: Path) -> None:
        last = b""
        for change in self.make(tmp_path, self.layer):
            if isinstance(change, Put) and change.content is not None:
                for chunk in change.content.chunks():
                    last = bytes(chunk[:4])
                    break
        assert last == b"last"

    def test_content_read_late_or_twice_is_correct_or_raises_conflict(self, tmp_path: Path) -> None:
        puts = (change for change in self.make(tmp_path, self.layer) if isinstance(change, Put))
        late = [(put.content, _read(put.content)) for put in puts if put.content is not None]
        assert len(late) == sum(isinstance(change, Put) and change.content is not None for change in self.layer)
        for content, expected in late:
            try:
                again = _read(content)
            except Conflict:
                continue
            assert again == expected

    def test_skipped_content_is_correct_or_raises_conflict(self, tmp_path: Path) -> None:
        skipped = [change for change in self.make(tmp_path, self.layer) if isinstance(change, Put)]
        expected = {change.entry.path: change.content for change in self.layer if isinstance(change, Put)}
        for change in skipped:
            if change.content is None:
                continue
            try:
                found = _read(change.content)
            except Conflict:
                continue
            original = expected[change.entry.path]
            assert original is not None
            assert found.strip(b"\0") == _read(original).strip(b"\0")


def _read(content: Content) -> bytes:
    return b"".join(map(bytes, content.chunks()))


TREE: tuple[Change, ...] = (
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
    """Contract of trees. A binding defines ``make``."""

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Tree:
        """Return the tree that results from ``changes``; ``tmp_path`` is an empty directory for it."""
        raise NotImplementedError

    @contextmanager
    def tree(self, tmp_path: Path, changes: Iterable[Change] = TREE) -> Iterator[Tree]:
        """Yield a tree and close it after the block."""
        with closed_after(self.make(tmp_path, changes)) as tree:
            yield tree

    def test_a_tree_holds_what_its_changes_state(self, tmp_path: Path) -> None:
        with self.tree(tmp_path) as tree:
            assert text(tree) == text(fold(TREE))

    def test_the_root_always_exists(self, tmp_path: Path) -> None:
        with self.tree(tmp_path, []) as tree:
            assert at(tree, "").kind is Kind.DIRECTORY
            assert tree.entries(ROOT) == []

    def test_lookup_finds_what_entries_list(self, tmp_path: Path) -> None:
        with self.tree(tmp_path) as tree:
            assert [entry.path for entry in tree.entries(ROOT)] == ["d", "p", "s", "t", "x"]
            for parent in ("", "d"):
                for entry in tree.entries(LayerPath(parent)):
                    assert tree.lookup(entry.path) == entry

    def test_lookup_of_a_missing_path_returns_none(self, tmp_path: Path) -> None:
        with self.tree(tmp_path) as tree:
            for path in ("none", "none/at/all", "x/y", "d/a/b", "p/q"):
                assert tree.lookup(LayerPath(path)) is None

    def test_lookup_follows_no_symbolic_link(self, tmp_path: Path) -> None:
        with self.tree(tmp_path) as tree:
            assert at(tree, "s").kind is Kind.SYMLINK
            assert tree.lookup(LayerPath("s/a")) is None
            with raises(InvalidInput, NotFound):
                tree.entries(LayerPath("s/e"))
            with raises(InvalidInput):
                tree.entries(LayerPath("s"))
            with raises(InvalidInput, NotFound):
                tree.open(LayerPath("s/a"))

    def test_entries_are_sorted_by_the_bytes_of_their_names(self, tmp_path: Path) -> None:
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

    def test_content_can_be_opened_repeatedly(self, tmp_path: Path) -> None:
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

    def test_extents_ascend_and_cover_all_nonzero_bytes(self, tmp_path: Path) -> None:
        content = sparse(4 << 20, [(1 << 20, b"x" * 8192), (3 << 20, b"y")])
        with self.tree(tmp_path, [file("a", content), file("b", sparse(1 << 20))]) as tree:
            for path, expected in (("a", held(content)), ("b", bytes(1 << 20))):
                found = tree.open(LayerPath(path))
                end = 0
                for offset, length in found.extents or ():
                    assert end <= offset
                    end = offset + length
                assert end <= found.size == len(expected)
                assert held(found) == expected

    def test_hard_links_of_one_file_share_an_identity(self, tmp_path: Path) -> None:
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
