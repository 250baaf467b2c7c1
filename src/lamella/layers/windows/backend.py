# SPDX-License-Identifier: Apache-2.0
"""The one place that decides how a Windows layer is read and written: by Windows' own calls there, else as a folder."""

from __future__ import annotations

import ntpath
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lamella.changes.apply import apply
from lamella.changes.single_layer import show_links
from lamella.changes.tree import MemorySink, MemoryTree
from lamella.errors import LamellaError
from lamella.host.windows.system import WindowsSystem, this_system
from lamella.layers.windows.contract import LayerWriter
from lamella.layers.windows.folder.parents import Parents
from lamella.layers.windows.folder.reader import WindowsChanges
from lamella.layers.windows.folder.writer import FolderWriter
from lamella.layers.windows.layout import FILES, WindowsLayer
from lamella.layers.windows.names import Spelling
from lamella.layers.windows.transforms import posix_from_windows
from lamella.layers.windows.tree import WindowsTree

if TYPE_CHECKING:
    from lamella.layers.stack import LayerStack
    from lamella.layers.windows.native.reader import NativeChanges


@contextmanager
def opened_source(
    layer: WindowsLayer, parents: LayerStack[WindowsLayer] | None = None, system: WindowsSystem | None = None
) -> Iterator[WindowsChanges | NativeChanges]:
    """What a layer states, good until the block ends.

    On Windows (``system``, which is this host unless given) a layer with ``parents`` is exported against them, with
    SeBackupPrivilege held. Elsewhere a folder says itself what changed. Raises NotFound where a parent is not there.
    """
    system = this_system() if system is None else system
    if system is None:
        Parents(parents)  # whose folders must be there, as on Windows
        with WindowsChanges(layer) as changes:
            yield changes
        return
    from lamella.host.windows.security import BACKUP
    from lamella.layers.windows.native.reader import NativeChanges

    with system.privileges(BACKUP), NativeChanges(layer, parents, system) as native:
        yield native


def layer_writer(
    layer: WindowsLayer, parents: LayerStack[WindowsLayer] | None = None, system: WindowsSystem | None = None
) -> LayerWriter:
    """What writes a layer's files; it must be finished or aborted, on Windows in the thread that asks for it.

    ``system`` is as for `opened_source`. Raises Conflict, NotFound (a parent is not there), on Windows Denied (a
    privilege), Unsupported (no Containers feature).
    """
    system = this_system() if system is None else system
    if system is None:
        return FolderWriter(layer, parents)
    from lamella.layers.windows.native.writer import NativeWriter

    return NativeWriter(layer, parents, system)


def empty_new_folder(layer: WindowsLayer, system: WindowsSystem | None = None) -> None:
    """Remove the empty directory `Files` where that is all a folder has, as that of a new snapshot.

    ``system`` is as for `opened_source`. What else is there stays; whoever writes the layer says so.
    """
    system = this_system() if system is None else system
    if system is None:
        try:
            if os.listdir(layer.path) == [FILES]:
                os.rmdir(layer.path / FILES)
        except OSError:  # then it is not that
            pass
        return
    try:
        with system.files.open(ntpath.abspath(os.fspath(layer.path))) as folder:
            if [one.name for one in system.files.listing(folder)] == [FILES]:
                system.files.delete(folder, FILES)
    except LamellaError:  # the same
        pass


class WindowsLayerTree(WindowsTree):
    """One layer without those below, seen as the merged view of an image is: names in whatever case, both facets.

    Hard links to files of the layers below are shown by `show_links`. Content can be read until this is closed.
    """

    def __init__(self, layer: WindowsLayer, system: WindowsSystem | None = None) -> None:
        """Read what the layer states. Raises as `opened_source` and what it gives do."""
        tree = MemoryTree(streams=True)
        super().__init__(tree)
        with ExitStack() as stack:
            changes = posix_from_windows(Spelling().respelled(stack.enter_context(opened_source(layer, None, system))))
            apply(show_links(changes, tree), MemorySink(tree))
            self._closing = stack.pop_all()

    def close(self) -> None:
        """Let go of the folder."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
