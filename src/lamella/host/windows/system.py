# SPDX-License-Identifier: Apache-2.0
"""All of Windows' calls over one loader."""

from __future__ import annotations

import sys
from functools import cache, cached_property

from lamella.host.windows.abi import Loader, SystemLoader
from lamella.host.windows.cimfs import Cimfs, WindowsBuild
from lamella.host.windows.computestorage import StorageLayers
from lamella.host.windows.files import Files
from lamella.host.windows.offreg import OfflineRegistry
from lamella.host.windows.security import Privileges
from lamella.host.windows.virtdisk import VirtualDisks
from lamella.host.windows.vmcompute import ComputeLayers


class WindowsSystem:
    """The calls of one Windows; privileges are counted here, so a process has one of these."""

    def __init__(self, loader: Loader, build: WindowsBuild | None = None) -> None:
        """``build`` is asked for where it is not given."""
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
        """The calls for composite images. Raises Unsupported where this host is not Windows, and no build was given."""
        return Cimfs(self.loader, self._build or WindowsBuild.here())


@cache
def _this_windows() -> WindowsSystem:
    return WindowsSystem(SystemLoader())


def this_system() -> WindowsSystem | None:
    """The Windows that this process runs on; None on other hosts."""
    return _this_windows() if sys.platform == "win32" else None
