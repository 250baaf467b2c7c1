# SPDX-License-Identifier: Apache-2.0
"""All views of a stack agree: merged, unpacked, flattened, as overlay layers, as tars, diffed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings

from lamella.changes.apply import apply
from lamella.changes.contracts import Source
from lamella.changes.diff import diff
from lamella.changes.model import Change, Put
from lamella.changes.tree import MemoryTree, fold, merge, walk
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.directory.tree import DirectoryTree
from lamella.layers.tar.sink import TarSink
from lamella.layers.tar.source import tar_changes
from lamella.testing.reading import text
from lamella.testing.strategies import WHOLE_TIMES, stacks, tree_pairs

pytestmark = pytest.mark.root

Stack = list[list[Change]]


@contextmanager
def bare() -> Iterator[Path]:
    """Create a directory with the default metadata of a root."""
    with tempfile.TemporaryDirectory() as above:
        root = Path(above, "root")
        root.mkdir(mode=0o755)
        os.utime(root, ns=(0, 0))
        yield root


def unpack(stack: Stack, root: Path) -> None:
    for layer in stack:
        assert list(apply(layer, DirectorySink(root))) == []


def through_tar(changes: Source) -> Source:
    data = bytearray()
    apply(changes, TarSink(data.extend, root=True))
    pieces = iter([memoryview(data)])
    return tar_changes(lambda: next(pieces, memoryview(b"")))


@settings(max_examples=80)
@given(stacks(symlinks=True))
def test_the_merged_view_equals_the_unpacked_tree(stack: Stack) -> None:
    with bare() as root:
        unpack(stack, root)
        with DirectoryTree(root) as unpacked:
            assert text(merge(stack)) == text(unpacked)


@settings(max_examples=60)
@given(stacks(symlinks=True, times=WHOLE_TIMES))
def test_the_flattened_layer_unpacks_to_the_same_tree(stack: Stack) -> None:
    merged = merge(stack)
    with bare() as root:
        apply(through_tar(walk(merged)), DirectorySink(root))
        with DirectoryTree(root) as unpacked:
            assert text(merged) == text(unpacked)


@settings(max_examples=80)
@given(tree_pairs(times=WHOLE_TIMES))
def test_a_diff_of_directories_survives_a_tar_and_gives_the_upper_one(pair: tuple[MemoryTree, MemoryTree]) -> None:
    lower, upper = pair
    with bare() as one, bare() as other, bare() as target:
        for root, tree in ((one, lower), (other, upper), (target, lower)):
            apply(walk(tree), DirectorySink(root))
        with DirectoryTree(one) as before, DirectoryTree(other) as after:
            assert [f"{change}" for change in diff(lower, upper)] == [
                plain(change, upper) for change in diff(before, after)
            ]
            apply(through_tar(diff(before, after)), DirectorySink(target))
        with DirectoryTree(target) as result:
            assert text(upper) == text(result)


def plain(change: Change, tree: MemoryTree) -> str:
    """Return ``change`` with its content from ``tree``, for comparison with a diff of in-memory trees."""
    if isinstance(change, Put) and change.content is not None:
        change = Put(change.entry, tree.open(change.entry.path))
    return f"{change}"


@settings(max_examples=40)
@given(tree_pairs())
def test_directories_and_in_memory_trees_have_the_same_diff(pair: tuple[MemoryTree, MemoryTree]) -> None:
    lower, upper = pair
    with bare() as one, bare() as other:
        apply(walk(lower), DirectorySink(one))
        apply(walk(upper), DirectorySink(other))
        with DirectoryTree(one) as before, DirectoryTree(other) as after:
            for exact in (False, True):
                expected = [f"{change}" for change in diff(lower, upper, exact=exact)]
                assert [plain(change, upper) for change in diff(before, after, exact=exact)] == expected
            assert text(fold(walk(after))) == text(upper)
