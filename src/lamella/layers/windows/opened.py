# SPDX-License-Identifier: Apache-2.0
"""A Windows layer opened to be read, and written, as this host can: on Windows by its own calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lamella.host.windows.system import WindowsSystem, this_system
from lamella.layers.windows.folder import FolderWriter
from lamella.layers.windows.parents import Parents
from lamella.layers.windows.place import WindowsLayer
from lamella.layers.windows.source import WindowsChanges
from lamella.layers.windows.writer import LayerWriter

if TYPE_CHECKING:
    from lamella.layers.stack import LayerStack
    from lamella.layers.windows.native_reading import NativeChanges


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
    from lamella.host.windows.privileges import BACKUP
    from lamella.layers.windows.native_reading import NativeChanges

    with system.privileges(BACKUP), NativeChanges(layer, parents, system) as native:
        yield native


@contextmanager
def opened_writer(
    layer: WindowsLayer, parents: LayerStack[WindowsLayer] | None = None, system: WindowsSystem | None = None
) -> Iterator[LayerWriter]:
    """What writes a layer's files, for a sink to use within the block.

    On Windows (``system``) the process holds SeBackupPrivilege and SeRestorePrivilege meanwhile, and this thread
    SeSecurityPrivilege.
    """
    system = this_system() if system is None else system
    if system is None:
        yield FolderWriter(layer, parents)
        return
    from lamella.host.windows.privileges import BACKUP, RESTORE, SECURITY
    from lamella.layers.windows.native_writing import NativeWriter

    # The thread has a copy of the process's token, so that what the process holds comes first.
    with system.privileges(BACKUP, RESTORE), system.privileges.in_thread(SECURITY):
        yield NativeWriter(layer, parents, system)
