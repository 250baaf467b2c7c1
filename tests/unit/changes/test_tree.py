# SPDX-License-Identifier: Apache-2.0
"""The in-memory tree, walks over trees, and path resolution."""

from __future__ import annotations

import pytest

from lamella.changes.dump import dump
from lamella.changes.model import Change, Inline, Kind, Link, Put, Sparse, dense, implied_directory
from lamella.changes.tree import MemorySink, MemoryTree, fold, merge, resolve, walk
from lamella.changes.whiteouts import PutRecord, prune
from lamella.errors import InvalidInput, NotFound, StreamConsumed, Unsupported
from lamella.paths import ROOT, LayerPath
from lamella.testing.builders import directory, file, link, sparse, stream, symlink, whiteout


def paths(tree: MemoryTree, start: str = "") -> list[str]:
    return [change.entry.path if isinstance(change, Put) else change.path for change in walk(tree, LayerPath(start))]


def test_a_walk_yields_a_directory_right_before_its_entries() -> None:
    tree = fold([file("b"), directory("a"), file("a/b/c"), file("a.b"), file("a/a")])

    assert paths(tree) == ["", "a", "a/a", "a/b", "a/b/c", "a.b", "b"]


def test_a_walk_can_start_anywhere() -> None:
    tree = fold([file("a/b/c"), file("a/d"), file("e"), link("a/b/l", "e")])

    assert paths(tree, "a/b") == ["a/b", "a/b/c", "a/b/l"]
    assert paths(tree, "e") == ["e"]
    with pytest.raises(NotFound):
        paths(tree, "none")


def test_the_first_name_of_a_file_is_put_and_the_others_are_links() -> None:
    changes = list(walk(fold([file("b"), link("a", "b"), link("c", "b")])))

    assert isinstance(changes[1], Put)
    assert changes[2:] == [link("b", "a"), link("c", "a")]


def test_the_last_remaining_name_of_a_file_is_no_link() -> None:
    below: list[Change] = [file("a"), link("b", "a")]
    tree = merge([below, [whiteout("a")]])

    assert tree.identity(LayerPath("b")) is None
    assert not any(isinstance(change, Link) for change in walk(tree))
    tree = merge([[*below, file("d/c"), link("d/e", "a")], [whiteout("d"), whiteout("a")]])
    assert tree.identity(LayerPath("b")) is None


def test_one_shot_content_is_refused_by_a_tree() -> None:
    class Stream:
        size = 1
        extents = None
        stored = False

        def chunks(self) -> list[bytes]:
            return [b"x"]

    with pytest.raises(StreamConsumed):
        fold([file("a", Stream())])
    with pytest.raises(Unsupported):
        fold([file("a"), stream("a", "s", b"")])


def test_a_change_of_the_directory_looked_up_last_is_seen() -> None:
    tree = fold([file("a/b/c/d"), file("x/b/c/e")])
    sink = MemorySink(tree)
    deep = LayerPath("a/b/c")

    assert [entry.path for entry in tree.entries(deep)] == ["a/b/c/d"]
    sink.whiteout(LayerPath("a/b"))
    assert tree.lookup(deep) is None
    assert tree.lookup(LayerPath("a/b/c/d")) is None
    sink.put(directory("a/b").entry, None)
    assert tree.lookup(deep) is None
    sink.put(directory("a/b/c").entry, None)
    assert tree.entries(deep) == []
    sink.put(file("a").entry, Inline(b""))
    assert tree.lookup(deep) is None
    with pytest.raises(NotFound):
        tree.entries(deep)
    assert [entry.path for entry in tree.entries(LayerPath("x/b/c"))] == ["x/b/c/e"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", ""),
        ("usr/lib/f", "usr/lib/f"),
        ("/usr/./lib/../lib//f", "usr/lib/f"),
        ("lib/f", "usr/lib/f"),
        ("abs/f", "usr/lib/f"),
        ("../../usr/lib/f", "usr/lib/f"),
        ("out/usr/lib/f", "usr/lib/f"),
        ("lib/../f", "usr/f"),
        ("chain", "usr/lib/f"),
    ],
)
def test_a_path_is_resolved_as_if_chrooted(path: str, expected: str) -> None:
    tree = fold(
        [
            *(file("usr/lib/f"), file("usr/f"), symlink("lib", "usr/lib"), symlink("abs", "/usr/lib")),
            *(symlink("out", "../../.."), symlink("chain", "lib/g"), symlink("usr/lib/g", "f")),
        ]
    )
    assert resolve(tree, LayerPath(path)) == expected


def test_the_last_link_is_followed_only_on_request() -> None:
    tree = fold([file("a"), symlink("l", "a"), symlink("none", "nowhere"), symlink("o", "o"), file("f")])

    assert resolve(tree, LayerPath("l")) == "a"
    assert resolve(tree, LayerPath("l"), follow=False) == "l"
    assert resolve(tree, LayerPath("none"), follow=False) == "none"
    for path in ("none", "f/x", "x/y"):
        with pytest.raises(NotFound):
            resolve(tree, LayerPath(path))
    with pytest.raises(InvalidInput):
        resolve(tree, LayerPath("o"))


def test_holes_are_filled_with_zeros_in_pieces() -> None:
    content = sparse(10, [(2, b"abc"), (5, b"d"), (8, b"e")])

    assert b"".join(map(bytes, dense(content))) == b"\0\0abcd\0\0e\0"
    assert max(map(len, dense(sparse(5000), step=1000))) == 1000
    assert list(dense(Sparse(0, (), b""))) == []


def test_the_shared_empty_attributes_stay_empty() -> None:
    posix = implied_directory(ROOT).posix
    assert posix is not None
    with pytest.raises(TypeError):
        posix.xattrs["user.a"] = b""  # type: ignore[index]


def test_a_record_contains_names_and_their_parents() -> None:
    record = PutRecord()
    record.add(LayerPath("a/b"), "c\nd")
    record.add(LayerPath("a/b"), "\udcff")
    record.enter(LayerPath("x/y"))
    record.state(LayerPath("a/b"))

    assert record.names(ROOT) == {"a", "x"}
    assert record.names(LayerPath("a")) == {"b"}
    assert record.names(LayerPath("a/b")) == {"c\nd", "\udcff"}
    record.add(LayerPath("a/b"), "late")
    record.add(LayerPath("a/z"), "new")
    assert record.names(LayerPath("a/b")) == {"c\nd", "\udcff", "late"}
    assert record.names(LayerPath("a")) == {"b", "z"}
    assert record.names(LayerPath("x/y")) == set()
    assert record.stated(LayerPath("a/b"))
    assert not record.stated(LayerPath("a"))


def test_pruning_keeps_the_files_of_the_layer_and_visits_no_path_twice() -> None:
    tree = fold([file("a/old"), directory("a/b", mode=0o700), file("a/b/old"), file("a/b/new"), file("c/old")])
    sink = MemorySink(tree)
    record = PutRecord()
    record.add(LayerPath("a/b"), "new")

    assert prune(sink, LayerPath("a"), record)
    assert [line.split(" ")[2:6] for line in dump(walk(tree))][1:3] == [
        ["0755", "0:0", "0", "a"],
        ["0755", "0:0", "0", "a/b"],
    ]
    assert paths(tree) == ["", "a", "a/b", "a/b/new", "c", "c/old"]
    sink.put(file("a/b/kept").entry, None)
    assert not prune(sink, LayerPath("a/b"), record)
    assert not prune(sink, LayerPath("a"), record)
    assert prune(sink, ROOT, record)
    assert paths(tree) == ["", "a", "a/b", "a/b/kept", "a/b/new"]
    assert tree.lookup(LayerPath("a")) == implied_directory(LayerPath("a"))
    entry = tree.lookup(LayerPath("a/b/kept"))
    assert entry is not None
    assert entry.kind is Kind.FILE
