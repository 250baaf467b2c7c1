# SPDX-License-Identifier: Apache-2.0
"""All Windows bindings of one loader."""

from __future__ import annotations

import sys
from functools import cache, cached_property

from lamella.host.windows.abi import Loader, SystemLoader
from lamella.host.windows.cimfs import Cimfs, WindowsBuild
from lamella.host.windows.compute_service import ComputeLayers, StorageLayers
from lamella.host.windows.files import Files
from lamella.host.windows.offreg import OfflineRegistry
from lamella.host.windows.security import Privileges
from lamella.host.windows.virtdisk import VirtualDisks


class WindowsSystem:
    """All bindings; one instance per process, since it counts the held privileges."""

    def __init__(self, loader: Loader, build: WindowsBuild | None = None) -> None:
        """``build``: None to query the running Windows."""
        self.loader = loader
        self._build = build
        self.privileges = Privileges(loader)
        self.files = Files(loader)
        self.layers = ComputeLayers(loader)
        self.storage = StorageLayers(loader)
        self.registry = OfflineRegistry(loader)
        self.disks = VirtualDisks(loader)

    @cached_property
    def images(self) -> Cimfs:
        """The calls for composite images. Raises Unsupported on other hosts if no build was given."""
        return Cimfs(self.loader, self._build or WindowsBuild.here())


@cache
def _this_windows() -> WindowsSystem:
    return WindowsSystem(SystemLoader())


def this_system() -> WindowsSystem | None:
    """The bindings of this host; None unless it is Windows."""
    return _this_windows() if sys.platform == "win32" else None
