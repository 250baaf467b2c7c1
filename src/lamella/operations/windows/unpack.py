# SPDX-License-Identifier: Apache-2.0
"""Unpacks a Windows image as the plain directory that its containers see as drive C."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lamella.changes.apply import Counts, apply
from lamella.changes.job import Job
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.policy import Devices, Owners, Policy
from lamella.layers.windows.layout import FILES
from lamella.layers.windows.names import Spelling
from lamella.layers.windows.transforms import subtree_changes
from lamella.layers.windows.tree import view_changes
from lamella.operations.layers.apply import Applied
from lamella.operations.layers.read import checked_reader
from lamella.paths import LayerPath

if TYPE_CHECKING:
    from lamella.images.resolve import ImageLayer

_POLICY: Final = Policy(Owners.IGNORE, Devices.SKIP)
"""A Windows layer knows neither owners nor devices as POSIX has them."""


def files_applied(layers: Sequence[ImageLayer], directory: Path, policy: Policy | None, job: Job) -> Iterator[Applied]:
    """Apply what each of ``layers`` has in `Files` to ``directory``. The names are those of the lowest layer."""
    spelling = Spelling()
    for layer in layers:
        counts = Counts()
        with checked_reader(layer, job) as reader:
            sink = DirectorySink(directory, policy=policy or _POLICY, losses=job.losses)
            changes = view_changes(reader.next_buffer, spelling, end=reader.finish, losses=job.losses)
            apply(subtree_changes(changes, LayerPath(FILES), losses=job.losses), sink, cancel=job.cancel, counts=counts)
            yield Applied(reader.finish(), counts.changes, job.losses)
