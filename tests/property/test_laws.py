# SPDX-License-Identifier: Apache-2.0
"""Laws of changes for all layers: operations that invert, repeat or agree with each other."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.changes.apply import apply
from lamella.changes.contracts import Source
from lamella.changes.diff import diff, same_bytes
from lamella.changes.dump import dump, escape, parse_dump, unescape
from lamella.changes.model import Change, Content, Entry, Kind, Link, Opaque, Put, Whiteout, dense
from lamella.changes.tree import MemorySink, MemoryTree, fold, merge, walk
from lamella.errors import InvalidInput
from lamella.paths import LayerPath
from lamella.testing.strategies import WHOLE_TIMES, contents, layers, posix, stacks, tree_pairs, trees


def lines(changes: Source) -> list[str]:
    return list(dump(changes, inline=1 << 20))


def copy(tree: MemoryTree) -> MemoryTree:
    return fold(walk(tree))


def without_holes(tree: MemoryTree) -> list[str]:
    """Return a dump in which zeros and holes are equal, as in a diff."""
    return list(dump(walk(tree), extents=False))


@given(trees())
def test_a_tree_walked_and_folded_is_the_same_tree(tree: MemoryTree) -> None:
    assert lines(walk(tree)) == lines(walk(fold(walk(tree))))


@given(stacks(symlinks=True))
def test_a_stack_and_its_flattened_layer_are_one_tree(stack: list[list[Change]]) -> None:
    tree = merge(stack)

    assert lines(walk(tree)) == lines(walk(merge([walk(tree)])))


@settings(max_examples=200)
@given(tree_pairs(), st.booleans())
def test_an_exact_diff_applied_to_the_lower_tree_gives_the_upper(
    pair: tuple[MemoryTree, MemoryTree], parents: bool
) -> None:
    lower, upper = pair
    changes = list(diff(lower, upper, exact=True, parents=parents))

    assert without_holes(apply(changes, MemorySink(copy(lower)))) == without_holes(upper)


@given(tree_pairs(times=WHOLE_TIMES))
def test_equal_times_of_whole_seconds_do_not_prove_equal_content(pair: tuple[MemoryTree, MemoryTree]) -> None:
    lower, upper = pair
    changes = list(diff(lower, upper))

    assert without_holes(apply(changes, MemorySink(copy(lower)))) == without_holes(upper)


@given(tree_pairs())
def test_a_diff_names_each_path_once_and_after_its_parents(pair: tuple[MemoryTree, MemoryTree]) -> None:
    lower, upper = pair
    named: set[str] = {""}
    for change in diff(lower, upper, exact=True):
        assert not isinstance(change, Opaque)
        path = change.entry.path if isinstance(change, Put) else change.path
        parent = path.rpartition("/")[0]
        assert path not in named or not path
        assert parent in named
        if isinstance(change, Whiteout):
            assert lower.lookup(path) is not None
            assert upper.lookup(path) is None
        if isinstance(change, Link):
            assert change.target in named
            assert upper.identity(path) == upper.identity(change.target) is not None
        named.add(path)


@given(tree_pairs())
def test_without_parents_a_diff_states_only_what_changed(pair: tuple[MemoryTree, MemoryTree]) -> None:
    lower, upper = pair
    every = lines(diff(lower, upper, exact=True))
    bare = lines(diff(lower, upper, exact=True, parents=False))
    unchanged = {escape(entry.path) for entry in directories(upper) if entry == lower.lookup(entry.path)}

    assert set(bare) == {
        line for line in every if not line.startswith("put directory") or field(line, 5) not in unchanged
    }


def directories(tree: MemoryTree) -> list[Entry]:
    return [put.entry for put in walk(tree) if isinstance(put, Put) and put.entry.kind is Kind.DIRECTORY]


def field(line: str, number: int) -> str:
    return line.split(" ")[number]


@given(trees())
def test_a_tree_does_not_differ_from_itself(tree: MemoryTree) -> None:
    assert not list(diff(tree, tree, exact=True))
    assert not list(diff(tree, copy(tree), exact=True))


@given(trees())
def test_a_diff_from_an_empty_tree_is_the_whole_tree(tree: MemoryTree) -> None:
    assert lines(walk(tree)) == lines(diff(None, tree))


@given(contents(), contents())
def test_contents_are_equal_if_their_bytes_are(one: Content, other: Content) -> None:
    expected = b"".join(map(bytes, dense(one))) == b"".join(map(bytes, dense(other)))

    assert same_bytes(one, other) == expected


@settings(max_examples=200)
@given(layers(symlinks=True))
def test_a_dump_survives_writing_and_reading(layer: list[Change]) -> None:
    assert list(parse_dump(dump(layer, inline=1 << 20))) == layer
    assert list(dump(layer)) == list(dump(parse_dump(dump(layer))))


@given(st.binary(max_size=12), posix(Kind.SYMLINK))
def test_a_dump_can_contain_any_bytes(raw: bytes, facet: object) -> None:
    text = raw.decode("utf-8", "surrogateescape")

    assert unescape(escape(text)) == text
    assert escape(text).isascii()
    assert " " not in escape(text)
    assert [Whiteout(LayerPath(text))] == list(parse_dump(dump([Whiteout(LayerPath(text))])))


WORDS = (
    "put",
    "link",
    "opaque",
    "file",
    "directory",
    "0644",
    "0:0",
    "1.5",
    "-",
    "a",
    ".",
    "\\x41",
    "\\",
    "size=3",
    "data=0+3",
)
MORE = (
    "text=abc",
    "base64=YWJj",
    "sha256=" + "0" * 64,
    "target=b",
    "attributes=0x20",
    "xattr.a=b",
    "=",
    "é",
    "device=1:3",
)


@settings(max_examples=300)
@given(
    st.sampled_from(["", "put file 0644 0:0 1.5 a", "put symlink - - - a", "link a", "stream a"]),
    st.lists(st.one_of(st.sampled_from(MORE), st.sampled_from(WORDS), st.text(max_size=5)), max_size=5),
)
def test_any_line_of_a_dump_is_read_or_refused(start: str, words: list[str]) -> None:
    try:
        changes = list(parse_dump([" ".join([start, *words])]))
    except InvalidInput:
        return
    assert list(dump(changes)) == list(dump(parse_dump(dump(changes))))
