# SPDX-License-Identifier: Apache-2.0
"""Chooses how a Windows layer is read and written: by the layer API of Windows on Windows, as a plain folder elsewhere.

``system`` is the Windows system that holds the layers. None stands for this host, which is one on Windows only.
"""

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
from lamella.layers.windows.contract import LayerChanges, LayerWriter
from lamella.layers.windows.folder.parents import Parents
from lamella.layers.windows.folder.reader import FolderChanges
from lamella.layers.windows.folder.writer import FolderWriter
from lamella.layers.windows.layout import FILES, WindowsLayer
from lamella.layers.windows.names import Spelling
from lamella.layers.windows.transforms import posix_from_windows
from lamella.layers.windows.tree import WindowsTree

if TYPE_CHECKING:
    from lamella.layers.stack import LayerStack


@contextmanager
def open_source(
    layer: WindowsLayer, parents: LayerStack[WindowsLayer] | None = None, system: WindowsSystem | None = None
) -> Iterator[LayerChanges]:
    """Open the changes of a layer, until the block ends.

    On Windows, a layer with ``parents`` is exported against them, with SeBackupPrivilege enabled. On other hosts the
    folder itself records the changes, and ``parents`` are only checked. Raises NotFound if a parent does not exist.
    """
    system = this_system() if system is None else system
    if system is None:
        Parents(parents)  # raises NotFound, as Windows does
        with FolderChanges(layer) as changes:
            yield changes
        return
    from lamella.host.windows.security import BACKUP
    from lamella.layers.windows.native.reader import NativeChanges

    with system.privileges(BACKUP), NativeChanges(layer, parents, system) as native:
        yield native


def open_writer(
    layer: WindowsLayer,
    parents: LayerStack[WindowsLayer] | None = None,
    system: WindowsSystem | None = None,
    *,
    dirty: bool = False,
) -> LayerWriter:
    """Start to write a layer. Finish or abort it; on Windows in the same thread.

    ``dirty`` is that of `merge_deltas`; Windows merges hives itself.

    Raises Conflict, NotFound (a parent does not exist); on Windows also Denied (a
    privilege) and Unsupported (no Containers feature).
    """
    system = this_system() if system is None else system
    if system is None:
        return FolderWriter(layer, parents, dirty=dirty)
    from lamella.layers.windows.native.writer import NativeWriter

    return NativeWriter(layer, parents, system)


def remove_empty_files_directory(layer: WindowsLayer, system: WindowsSystem | None = None) -> None:
    """Prepare the folder of a new snapshot for a base layer: remove `Files` if it is empty and the only entry.

    Any other content stays, and errors are ignored; writing the layer then reports them.
    """
    system = this_system() if system is None else system
    if system is None:
        try:
            if os.listdir(layer.path) == [FILES]:
                os.rmdir(layer.path / FILES)
        except OSError:
            pass  # writing the layer reports it
        return
    try:
        with system.files.open(ntpath.abspath(os.fspath(layer.path))) as folder:
            if [one.name for one in system.files.listing(folder)] == [FILES]:
                system.files.delete(folder, FILES)
    except LamellaError:
        pass  # writing the layer reports it


class WindowsLayerTree(WindowsTree):
    """One layer as a tree, without the layers below: names ignore case, entries have both facets.

    A hard link to a file of a lower layer is an entry without metadata (`show_links`). Content can be read until the
    tree is closed.
    """

    def __init__(self, layer: WindowsLayer, system: WindowsSystem | None = None) -> None:
        """Read the changes of the layer. Raises what `open_source` and its changes raise."""
        tree = MemoryTree(streams=True)
        super().__init__(tree)
        with ExitStack() as stack:
            changes = posix_from_windows(Spelling().respell(stack.enter_context(open_source(layer, None, system))))
            apply(show_links(changes, tree), MemorySink(tree))
            self._closing = stack.pop_all()

    def close(self) -> None:
        """Close the folder."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
