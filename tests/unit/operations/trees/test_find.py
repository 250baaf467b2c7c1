# SPDX-License-Identifier: Apache-2.0
"""Finding files by what they are like."""

from __future__ import annotations

import pytest

from lamella.changes.model import Kind
from lamella.changes.tree import fold
from lamella.errors import InvalidInput, NotFound
from lamella.operations.trees.find import Sizes, Wanted, find
from lamella.paths import LayerPath
from lamella.testing.builders import WHEN, directory, file, symlink

TREE = fold(
    [
        directory("", mtime=0),
        directory("a", mtime=0),
        file("a/One.TXT", b"1" * 10),
        file("a/two.txt", b"2" * 2048, mtime=WHEN + 1),
        directory("a-b", mtime=0),
        symlink("a-b/link.txt", "../a/two.txt", mtime=0),
    ]
)


def paths(wanted: Wanted, start: str = "") -> list[str]:
    return [entry.path for entry in find(TREE, LayerPath(start), wanted)]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(), ["", "a", "a/One.TXT", "a/two.txt", "a-b", "a-b/link.txt"]),
        (Wanted(names=("*.txt",)), ["a/two.txt", "a-b/link.txt"]),
        (Wanted(names=("*.txt",), any_case=True), ["a/One.TXT", "a/two.txt", "a-b/link.txt"]),
        (Wanted(names=("One*", "a"), kinds=frozenset({Kind.FILE})), ["a/One.TXT"]),
        (Wanted(paths=("/a/*",)), ["a/One.TXT", "a/two.txt"]),
        (Wanted(paths=("/*link*",)), ["a-b/link.txt"]),
        (Wanted(kinds=frozenset({Kind.DIRECTORY})), ["", "a", "a-b"]),
        (Wanted(sizes=(Sizes(11, None),)), ["a/two.txt"]),
        (Wanted(sizes=(Sizes(None, 0),)), []),
        (Wanted(newer=WHEN), ["a/two.txt"]),
    ],
)
def test_all_wishes_hold_at_once(wanted: Wanted, expected: list[str]) -> None:
    assert paths(wanted) == expected


def test_the_start_counts_too_and_must_be_there() -> None:
    assert paths(Wanted(), "a/two.txt") == ["a/two.txt"]
    assert paths(Wanted(), "a-b") == ["a-b", "a-b/link.txt"]
    with pytest.raises(NotFound):
        paths(Wanted(), "gone")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512", Sizes(512, 512)),
        ("+10k", Sizes(10240, None)),
        ("-2M", Sizes(None, 2 << 20)),
        ("0", Sizes(0, 0)),
        ("3c", Sizes(3, 3)),
    ],
)
def test_sizes_are_read_with_sign_and_unit(text: str, expected: Sizes) -> None:
    assert Sizes.parse(text) == expected


@pytest.mark.parametrize("text", ["", "k", "1.5k", "10x", "++1", "1 k"])
def test_malformed_sizes_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="malformed size"):
        Sizes.parse(text)
