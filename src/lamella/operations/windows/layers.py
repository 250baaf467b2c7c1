# SPDX-License-Identifier: Apache-2.0
"""Layers of a Windows image together: applied as drive C, or merged into one layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from lamella.changes.apply import Counts, apply
from lamella.changes.contracts import Source
from lamella.changes.diff import diff
from lamella.changes.job import Job
from lamella.changes.model import Change, Entry, Inline, Kind, Put, StoredContent, Whiteout, dense
from lamella.errors import InvalidInput, Unsupported
from lamella.formats.regf.log import is_dirty, replay_logs
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.policy import Devices, Owners, Policy
from lamella.layers.windows.hives import merge_deltas
from lamella.layers.windows.layout import CONFIG, FILES, HIVE_LOGS, HIVE_NAMES, HIVES
from lamella.layers.windows.names import Spelling
from lamella.layers.windows.transforms import subtree_changes, windows_from_posix
from lamella.layers.windows.tree import WindowsTree, view_changes
from lamella.operations.layers.apply import Applied
from lamella.operations.layers.read import checked_reader, lower_and_upper
from lamella.paths import LayerPath, beneath

if TYPE_CHECKING:
    from lamella.images.resolve import ImageLayer

_DELTAS: Final = {f"{HIVES}/{stem}_delta".lower(): name for name, stem in HIVE_NAMES.items()}
"""Path of a delta, in lower case -> name of the hive in a base layer."""
_POLICY: Final = Policy(Owners.IGNORE, Devices.SKIP)
"""Windows layers have no POSIX owners and devices."""


def apply_drive(layers: Sequence[ImageLayer], directory: Path, policy: Policy | None, job: Job) -> Iterator[Applied]:
    """Apply the `Files` of each layer to ``directory``, which becomes drive C. The lowest layer determines spelling."""
    spelling = Spelling()
    for layer in layers:
        counts = Counts()
        with checked_reader(layer, job) as reader:
            sink = DirectorySink(directory, policy=policy or _POLICY, losses=job.losses)
            changes = view_changes(reader.next_buffer, spelling, end=reader.finish, losses=job.losses)
            files = subtree_changes(changes, LayerPath(FILES), losses=job.losses)
            apply(files, sink, cancel=job.cancel, counts=counts)
            yield Applied(reader.finish(), counts.changes, job.losses)


@contextmanager
def merged_windows_layers(
    layers: Sequence[ImageLayer], below: int, job: Job, *, dirty: bool = False
) -> Iterator[Source]:
    """The changes of ``layers`` as one layer over the first ``below`` of them; valid until the block ends.

    If ``below`` is 0, the result is a base layer: all deltas are merged into its hives, and it has no `Hives`.
    Otherwise only one layer may have a delta of each hive, since deltas cannot be merged without the hive below.
    ``dirty`` is that of `merge_deltas`.

    Raises Unsupported, InvalidInput, FormatError (malformed hives) and what unpacking raises.
    """
    deltas: dict[str, list[StoredContent]] = {}
    collect = partial(_collect_deltas, deltas)
    with lower_and_upper(layers, below, job, spelling=Spelling(), above=collect) as (lower, upper):
        changes: Source = diff(lower, upper, exact=True)
        if below:
            for name, several in deltas.items():
                if len(several) > 1:
                    raise Unsupported(
                        f"{len(several)} of the layers change the hive {name}, and the hive below is not merged",
                        hint="merge all layers of the image, from the base on",
                    )
        else:
            changes = _without_deltas(changes, _merged_hives(WindowsTree(upper), deltas, dirty=dirty))
        yield windows_from_posix(changes)


def _collect_deltas(deltas: dict[str, list[StoredContent]], changes: Source) -> Iterator[Change]:
    for change in changes:
        if isinstance(change, Put) and change.entry.size:
            name = _DELTAS.get(change.entry.path.lower())
            if name is not None and change.content is not None:
                deltas.setdefault(name, []).append(change.content)  # type: ignore[arg-type]  # content of a blob is stored
        yield change


def _merged_hives(tree: WindowsTree, deltas: dict[str, list[StoredContent]], *, dirty: bool) -> dict[LayerPath, bytes]:
    """The hives of the base layer with the deltas merged in, by path."""
    found: dict[LayerPath, bytes] = {}
    for name, several in deltas.items():
        entry = tree.lookup(LayerPath(CONFIG + name))
        if entry is None or entry.kind is not Kind.FILE:
            raise InvalidInput(f"the layers change the hive {name}, which the base layer does not have")
        base = _bytes(tree.open(entry.path))
        if is_dirty(base):
            base = replay_logs(base, _logs_of(tree, entry.path))
        found[entry.path] = merge_deltas(base, map(_bytes, several), dirty=dirty)
    return found


def _logs_of(tree: WindowsTree, path: LayerPath) -> Iterator[bytes]:
    """The transaction logs beside the hive ``path``."""
    for suffix in HIVE_LOGS:
        entry = tree.lookup(LayerPath(path + suffix))
        if entry is not None and entry.kind is Kind.FILE:
            yield _bytes(tree.open(entry.path))


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
