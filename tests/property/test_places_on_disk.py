# SPDX-License-Identifier: Apache-2.0
"""Trees survive being written to a directory or a tar and read again."""

from __future__ import annotations

import io
import tempfile

import pytest
from hypothesis import given, settings

from lamella.changes.apply import apply
from lamella.changes.contracts import Source
from lamella.changes.dump import dump
from lamella.changes.model import Buffer, Change, Link, Put
from lamella.changes.tree import MemoryTree, walk
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.directory.tree import DirectoryTree
from lamella.layers.tar.sink import TarSink
from lamella.layers.tar.source import tar_changes
from lamella.paths import beneath
from lamella.testing.strategies import WHOLE_TIMES, layers, trees


def lines(changes: Source) -> list[str]:
    return list(dump(changes, inline=16, extents=False))


@pytest.mark.root
@settings(max_examples=60)
@given(trees())
def test_a_tree_survives_writing_to_a_directory(tree: MemoryTree) -> None:
    with tempfile.TemporaryDirectory() as root:
        losses = apply(walk(tree), DirectorySink(root))
        assert list(losses) == []
        with DirectoryTree(root) as found:
            assert lines(walk(tree)) == lines(walk(found)) == lines(found.changes())
            for change in walk(found):
                if isinstance(change, Put):
                    assert change.entry == found.lookup(change.entry.path)


def written(changes: Source, *, subsecond: bool = False) -> bytes:
    out = io.BytesIO()

    def write(piece: Buffer) -> None:
        out.write(piece)

    losses = apply(changes, TarSink(write, root=True, subsecond=subsecond))
    assert list(losses) == []
    return out.getvalue()


def reads(data: bytes) -> Source:
    pieces = iter([memoryview(data), memoryview(b"")])
    return tar_changes(lambda: next(pieces, memoryview(b"")))


def linkable(layer: list[Change]) -> bool:
    """Return whether every hard link has an earlier target at another path, whose metadata its header can repeat."""
    files = set()
    for change in layer:
        if isinstance(change, Link):
            if change.target not in files or beneath(change.target, change.path):
                return False
            files.add(change.path)
        elif isinstance(change, Put):
            files.add(change.entry.path)
    return True


@settings(max_examples=200)
@given(layers(symlinks=True, times=WHOLE_TIMES).filter(linkable))
def test_a_layer_survives_writing_as_a_tar(layer: list[Change]) -> None:
    assert lines(layer) == lines(reads(written(layer)))


@settings(max_examples=60)
@given(layers(symlinks=True).filter(linkable))
def test_fractions_of_seconds_are_kept_on_request(layer: list[Change]) -> None:
    assert lines(layer) == lines(reads(written(layer, subsecond=True)))


@settings(max_examples=60)
@given(layers(symlinks=True).filter(linkable))
def test_a_tar_read_and_written_again_has_the_same_bytes(layer: list[Change]) -> None:
    data = written(layer)
    assert written(reads(data)) == data
