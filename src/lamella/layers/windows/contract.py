# SPDX-License-Identifier: Apache-2.0
"""The contract between `WindowsSink` and what writes a layer's files: a folder on any host, or the calls of Windows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

from msgspec import Struct

from lamella.changes.model import Change, Content, Entry, Kind, Windows
from lamella.paths import LayerPath


class FinalSteps(Struct, frozen=True):
    """The steps that remain after the last change of a layer."""

    boot_copies: Sequence[tuple[LayerPath, str]]
    """Files of the boot store in the layer, and the names of their copies at the top of the folder."""
    tombstones: Sequence[LayerPath]
    """Files of the layers below that the layer hides; without those that it replaces."""
    hives: bool
    """Whether the layer has `Hives`."""
    utility: bool
    """Whether the folder has a utility VM."""


class LayerWriter(Protocol):
    """Writes the files of one layer. The caller has checked names, and gives each file once, after its directory.

    Paths are spelled as in the folder. Methods raise OSError or a `LamellaError`; `abort` may follow any of them.
    """

    def below(self, path: LayerPath) -> Entry | None:
        """The file ``path`` in the merged layers below; None if they have none."""
        ...

    def imply(self, path: LayerPath) -> None:
        """Create an implied parent directory."""
        ...

    def put(self, entry: Entry, windows: Windows, content: Content | None, *, folder: bool, existed: bool) -> None:
        """Write a file. ``folder``: it is a directory on NTFS; ``existed``: the directory exists, and is kept."""
        ...

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        """Write an alternate data stream of the last file."""
        ...

    def close_file(self) -> None:
        """Close the last file if it is open."""
        ...

    def link(self, path: LayerPath, target: LayerPath, windows: Windows, *, at: LayerPath | None) -> None:
        """Create a hard link to the file ``at`` in this folder, or if that is None, to ``target`` in a layer below."""
        ...

    def whiteout(self, path: LayerPath) -> None:
        """Record that the layer hides ``path``. Files of the utility VM are removed already."""
        ...

    def clone_utility(self) -> Iterator[tuple[LayerPath, bool]]:
        """Create `UtilityVM` with the files of the nearest parent that has one.

        Yields each path, and whether it is a directory: `UtilityVM/Files` and everything below it, in the parent's
        spelling.
        """
        ...

    def remove(self, path: LayerPath) -> None:
        """Remove the cloned file or directory tree at ``path``."""
        ...

    def finish(self, ending: FinalSteps) -> None:
        """Run the final steps, and make the layer visible."""
        ...

    def abort(self) -> None:
        """Remove everything written. Raises nothing."""
        ...


class LayerChanges(ABC):
    """The changes of a layer, in which each hard link is given with the metadata of its target."""

    _linked: tuple[LayerPath, Windows] | None = None

    @abstractmethod
    def __iter__(self) -> Iterator[Change]:
        """The changes, once for each iteration. Their content can be read until `close`."""

    @abstractmethod
    def close(self) -> None:
        """Close the layer."""

    def lookup(self, path: LayerPath) -> Entry | None:
        """The attributes and times of the target of the last hard link."""
        if self._linked is None or self._linked[0] != path:
            return None
        return Entry(path, Kind.FILE, None, 0, "", self._linked[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
