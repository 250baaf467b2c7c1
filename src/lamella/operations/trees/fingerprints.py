# SPDX-License-Identifier: Apache-2.0
"""Trees that hold a fingerprint of each file in place of its content, to compare images in one pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal

from msgspec import Struct

from lamella.changes.apply import apply
from lamella.changes.contracts import Source
from lamella.changes.job import Job
from lamella.changes.model import EMPTY, Buffer, Change, Content, Kind, Put, Stream, dense, pieces
from lamella.changes.tree import MemorySink, MemoryTree
from lamella.digests import Digest
from lamella.errors import Unsupported
from lamella.images.resolve import ImageLayer
from lamella.layers.windows.names import Spelling
from lamella.operations.layers.read import layer_changes

_BLOCK: Final = 64 << 10
_ZEROS: Final = bytes(_BLOCK)


class Fingerprint(Struct, frozen=True):
    """Content that was read and hashed: equal for equal content, wherever its holes are."""

    length: int
    digest: bytes

    @property
    def size(self) -> int:
        return self.length

    @property
    def extents(self) -> Sequence[tuple[int, int]] | None:
        return None

    @property
    def stored(self) -> Literal[True]:
        return True

    def chunks(self) -> Iterable[Buffer]:
        raise Unsupported("a fingerprint has no content")


def fingerprint(content: Content) -> Fingerprint:
    """The fingerprint of ``content``, which is read once. Holes are not read."""
    state = hashlib.sha256()
    size = content.size
    if size <= _BLOCK:
        for chunk in dense(content):
            state.update(chunk)
        return Fingerprint(size, state.digest())
    block = bytearray(_BLOCK)
    at = 0
    filled = False
    for length, view in pieces(content):
        if view is None:
            left = _BLOCK - at % _BLOCK
            if filled and length >= left:
                _hash_block(state, block, at // _BLOCK)
                filled = False
            at += length
            continue
        while view:
            start = at % _BLOCK
            part = view[: _BLOCK - start]
            if not filled:
                block[:] = _ZEROS
            block[start : start + len(part)] = part
            filled = True
            at += len(part)
            view = view[len(part) :]
            if at % _BLOCK == 0:
                _hash_block(state, block, at // _BLOCK - 1)
                filled = False
    if filled:
        _hash_block(state, block, at // _BLOCK)
    return Fingerprint(size, state.digest())


def _hash_block(state: hashlib._Hash, block: bytearray, number: int) -> None:
    if block != _ZEROS:
        state.update(number.to_bytes(8, "big"))
        state.update(block)


def fingerprinted(changes: Source) -> Iterator[Change]:
    """``changes`` with fingerprints in place of contents."""
    for change in changes:
        if isinstance(change, Put) and change.entry.kind is Kind.FILE:
            yield Put(change.entry, fingerprint(EMPTY if change.content is None else change.content))
        elif isinstance(change, Stream):
            yield Stream(change.path, change.name, fingerprint(change.content))
        else:
            yield change


def fingerprinted_trees(
    one: Sequence[ImageLayer],
    other: Sequence[ImageLayer],
    *,
    windows: bool = False,
    job: Job,
) -> tuple[MemoryTree, MemoryTree]:
    """The merged views of two stacks of layers, both of Windows or neither. A layer of both is read once.

    Raises what unpacking raises.
    """
    # Shared, so that names that differ in case alone are the same file.
    spelling = Spelling() if windows else None
    shared = {layer.diff_id for layer in one} & {layer.diff_id for layer in other}
    to_read = [*one, *(layer for layer in other if layer.diff_id not in shared)]
    known: dict[Digest, list[Change]] = {}
    trees = MemoryTree(streams=windows), MemoryTree(streams=windows)
    with job.step("read", sum(layer.descriptor.size for layer in to_read)):
        for tree, layers in zip(trees, (one, other), strict=True):
            for layer in layers:
                changes = known.get(layer.diff_id)
                if changes is not None:
                    apply(changes, MemorySink(tree), cancel=job.cancel)
                    continue
                with layer_changes(layer, job, spelling=spelling) as read:
                    found: Source = fingerprinted(read)
                    if layer.diff_id in shared:
                        found = known[layer.diff_id] = list(found)
                    apply(found, MemorySink(tree), cancel=job.cancel)
    return trees
