# SPDX-License-Identifier: Apache-2.0
"""Layers of a Windows image merged into one, the deltas of their registry hives included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from lamella.changes.contracts import Source
from lamella.changes.diff import diff
from lamella.changes.model import Change, Entry, Inline, Kind, Put, StoredContent, Whiteout, dense
from lamella.errors import InvalidInput, Unsupported
from lamella.layers.windows.hives import merge_deltas
from lamella.layers.windows.layout import CONFIG, HIVE_NAMES, HIVES
from lamella.layers.windows.names import Spelling
from lamella.layers.windows.transforms import windows_from_posix
from lamella.layers.windows.tree import WindowsTree
from lamella.operations.layers.read import lower_and_upper
from lamella.paths import LayerPath, beneath

if TYPE_CHECKING:
    from lamella.changes.job import Job
    from lamella.images.resolve import ImageLayer

_DELTAS: Final = {f"{HIVES}/{called}_delta".lower(): name for name, called in HIVE_NAMES.items()}
"""Path of a delta, in lower case -> name of the hive in a base layer."""


@contextmanager
def merged_windows_layers(
    layers: Sequence[ImageLayer],
    below: int,
    job: Job,
) -> Iterator[Source]:
    """All that ``layers`` change in what the first ``below`` of them come to; content is good until the block ends.

    Without any below it is a base layer: its hives have all deltas merged into them, and it has no `Hives`. Deltas of
    several layers cannot be made one without the hive below them, so else each hive may have one.

    Raises Unsupported, InvalidInput, FormatError (malformed hives) and what unpacking raises.
    """
    deltas: dict[str, list[StoredContent]] = {}
    noting = partial(_noting, deltas)
    with lower_and_upper(layers, below, job, spelling=Spelling(), above=noting) as (
        lower,
        upper,
    ):
        changes: Source = diff(lower, upper, exact=True)
        if below:
            for name, several in deltas.items():
                if len(several) > 1:
                    raise Unsupported(
                        f"{len(several)} of the layers change the hive {name}, and no hive below is merged with them",
                        hint="merge all layers of the image, from the base on",
                    )
        else:
            changes = _without_deltas(changes, _merged_hives(WindowsTree(upper), deltas))
        yield windows_from_posix(changes)


def _noting(deltas: dict[str, list[StoredContent]], changes: Source) -> Iterator[Change]:
    for change in changes:
        if isinstance(change, Put) and change.entry.size:
            name = _DELTAS.get(change.entry.path.lower())
            if name is not None and change.content is not None:
                deltas.setdefault(name, []).append(change.content)  # type: ignore[arg-type]  # it lies in a blob
        yield change


def _merged_hives(tree: WindowsTree, deltas: dict[str, list[StoredContent]]) -> dict[LayerPath, bytes]:
    """The hives of the base with the deltas, the lowest first, by their paths."""
    found: dict[LayerPath, bytes] = {}
    for name, several in deltas.items():
        entry = tree.lookup(LayerPath(CONFIG + name))
        if entry is None or entry.kind is not Kind.FILE:
            raise InvalidInput(f"the layers change the hive {name}, and the base layer has none")
        found[entry.path] = merge_deltas(_bytes(tree.open(entry.path)), map(_bytes, several))
    return found


def _bytes(content: StoredContent) -> bytes:
    return b"".join(map(bytes, dense(content)))


def _without_deltas(changes: Source, hives: dict[LayerPath, bytes]) -> Iterator[Change]:
    for change in changes:
        if isinstance(change, Put):
            entry: Entry = change.entry
            if beneath(entry.path, HIVES):
                continue
            merged = hives.get(entry.path)
            if merged is not None:
                yield Put(replace(entry, size=len(merged)), Inline(merged))
                continue
        elif isinstance(change, Whiteout) or beneath(change.path, HIVES):
            continue
        yield change
