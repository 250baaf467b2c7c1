# SPDX-License-Identifier: Apache-2.0
"""What `WindowsSink` asks of the place that it writes to: a folder on any host, or NTFS through Windows' own calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from msgspec import Struct

from lamella.changes.model import Content, Entry, Windows
from lamella.paths import LayerPath


class Ending(Struct, frozen=True):
    """What remains to be done once all of a layer has been taken."""

    boot_copies: Sequence[tuple[LayerPath, str]]
    """Files of the boot store that the layer has, and what their copies at the top are called."""
    tombstones: Sequence[LayerPath]
    """Files of the layers below that are hidden, without what the layer puts itself."""
    hives: bool
    """Whether the layer has `Hives`."""
    utility: bool
    """Whether the folder has a utility VM."""


class LayerWriter(Protocol):
    """Writes the files of one layer. Names have been checked, each file comes once, and after its directory.

    Paths are spelled as the folder has them. Calls raise OSError or a `LamellaError`; `abort` may follow each.
    """

    def below(self, path: LayerPath) -> Entry | None:
        """The file ``path`` as the layers below come to; None where they have none."""
        ...

    def imply(self, path: LayerPath) -> None:
        """Make a directory that the layer has something in, and does not state, or not yet."""
        ...

    def put(self, entry: Entry, windows: Windows, content: Content | None, *, folder: bool, existed: bool) -> None:
        """Write a file. ``folder``: NTFS has a directory there; ``existed``: that is there already, and stays."""
        ...

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        """An alternate data stream of the file that was put last."""
        ...

    def close_file(self) -> None:
        """Finish the file that was put last, if that is open."""
        ...

    def link(self, path: LayerPath, target: LayerPath, windows: Windows, *, at: LayerPath | None) -> None:
        """A further name of ``target``, which lies ``at`` a path of this layer's folder, or in a layer below."""
        ...

    def whiteout(self, path: LayerPath) -> None:
        """The layer states that ``path`` is gone; what the utility VM has there has been removed."""
        ...

    def clone_utility(self) -> Iterator[tuple[LayerPath, bool]]:
        """Make `UtilityVM`, with the files of the nearest parent that has one; say of each whether it is a directory.

        The paths are those of the parent's directory `UtilityVM/Files` and of what is in it.
        """
        ...

    def remove(self, path: LayerPath) -> None:
        """Remove what was cloned at the path, with all beneath it."""
        ...

    def finish(self, ending: Ending) -> None:
        """Do what waits for the end, and make the layer visible."""
        ...

    def abort(self) -> None:
        """Leave nothing. Does not raise."""
        ...
