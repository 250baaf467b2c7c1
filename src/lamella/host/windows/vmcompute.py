# SPDX-License-Identifier: Apache-2.0
"""Windows layers as the host compute service keeps them (vmcompute.dll): imported, exported, processed, mounted.

A layer is named by the full path of its folder; parents are given nearest first. The caller holds SeBackupPrivilege and
SeRestorePrivilege. All needs the Containers feature.
"""

from __future__ import annotations

import ctypes
import ntpath
import threading
import uuid
from collections.abc import Sequence
from typing import Any, Final

from lamella.host.windows.abi import HRESULT, I32, PTR, U32, U64, Guid, Library, Loader, signature, text_of, wide
from lamella.host.windows.errors import ERROR_INSUFFICIENT_BUFFER, check_hresult, win32_of_hresult

_DLL: Final = "vmcompute.dll"
_FILTER_DRIVER: Final = 1

_LAYER: Final = (PTR, PTR)
_PARENTS: Final = (PTR, U32)
_VMCOMPUTE: Final = {
    "ImportLayer": signature(HRESULT, *_LAYER, PTR, *_PARENTS),
    "ExportLayer": signature(HRESULT, *_LAYER, PTR, *_PARENTS),
    "ActivateLayer": signature(HRESULT, *_LAYER),
    "DeactivateLayer": signature(HRESULT, *_LAYER),
    "PrepareLayer": signature(HRESULT, *_LAYER, *_PARENTS),
    "UnprepareLayer": signature(HRESULT, *_LAYER),
    "DestroyLayer": signature(HRESULT, *_LAYER),
    "CreateLayer": signature(HRESULT, *_LAYER, PTR),
    "CreateSandboxLayer": signature(HRESULT, *_LAYER, U64, *_PARENTS),
    "ExpandSandboxSize": signature(HRESULT, *_LAYER, U64),
    "GetLayerMountPath": signature(HRESULT, *_LAYER, PTR, PTR),
    "LayerExists": signature(HRESULT, *_LAYER, PTR),
    "NameToGuid": signature(HRESULT, PTR, PTR),
    "ProcessBaseImage": signature(HRESULT, PTR),
    "ProcessUtilityImage": signature(HRESULT, PTR),
    "GrantVmAccess": signature(HRESULT, PTR, PTR),
}

_preparing: Final = threading.Lock()
"""Windows fails where a process prepares two layers at once."""


class DriverInfo(ctypes.Structure):
    """The driver and the folder that layers' names are relative to: 16 bytes."""

    _fields_ = (("flavour", I32), ("home", PTR))


class LayerDescriptor(ctypes.Structure):
    """One parent: 32 bytes."""

    _fields_ = (("id", Guid), ("flags", U32), ("path", PTR))


class ComputeLayers:
    """The calls of vmcompute.dll. Raises Unsupported without the Containers feature, and what fits the HRESULT."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._call = Library(loader, _DLL, _VMCOMPUTE)
        self._home = wide("")
        self._driver = DriverInfo(_FILTER_DRIVER, ctypes.addressof(self._home))

    def available(self) -> bool:
        """Whether this host has the Containers feature."""
        return self._loader.has(_DLL)

    def require(self) -> None:
        """Make sure that this host has the Containers feature. Raises Unsupported."""
        self._loader.find(_DLL, "ImportLayer", _VMCOMPUTE["ImportLayer"])

    def import_layer(self, layer: str, folder: str, parents: Sequence[str]) -> None:
        """Make the files of ``layer`` from the transport folder."""
        self._with_parents("ImportLayer", layer, parents, wide(folder))

    def export_layer(self, layer: str, folder: str, parents: Sequence[str]) -> None:
        """Write what ``layer`` changes into the empty transport folder."""
        self._with_parents("ExportLayer", layer, parents, wide(folder))

    def activate(self, layer: str) -> None:
        """Let the layer's disk be used."""
        self._simple("ActivateLayer", layer)

    def deactivate(self, layer: str) -> None:
        """Undo `activate`."""
        self._simple("DeactivateLayer", layer)

    def prepare(self, layer: str, parents: Sequence[str]) -> None:
        """Show the layer's files with those of its parents; one at a time in a process."""
        with _preparing:
            self._with_parents("PrepareLayer", layer, parents)

    def unprepare(self, layer: str) -> None:
        """Undo `prepare`."""
        self._simple("UnprepareLayer", layer)

    def destroy(self, layer: str) -> None:
        """Remove the layer's folder."""
        self._simple("DestroyLayer", layer)

    def create(self, layer: str, parent: str) -> None:
        """Make an empty layer."""
        self._simple("CreateLayer", layer, wide(parent))

    def create_scratch(self, layer: str, parents: Sequence[str]) -> None:
        """Make a layer with a disk that can be written to."""
        self._with_parents("CreateSandboxLayer", layer, parents, 0)

    def expand_scratch(self, layer: str, size: int) -> None:
        """Let the disk of a layer have ``size`` bytes."""
        self._simple("ExpandSandboxSize", layer, size)

    def mount_path(self, layer: str) -> str:
        """Where a prepared layer's files are shown."""
        room = U64(0)
        name = wide(layer)
        result = self._on(name, "GetLayerMountPath", ctypes.byref(room), None)
        if result < 0 and win32_of_hresult(result & 0xFFFF_FFFF) != ERROR_INSUFFICIENT_BUFFER:
            check_hresult(result, _doing("GetLayerMountPath", layer))
        buffer = (ctypes.c_uint16 * (room.value + 1))()
        room.value += 1
        check_hresult(
            self._on(name, "GetLayerMountPath", ctypes.byref(room), buffer), _doing("GetLayerMountPath", layer)
        )
        return text_of(buffer)

    def exists(self, layer: str) -> bool:
        """Whether the service knows the layer."""
        found = U32(0)
        self._simple("LayerExists", layer, ctypes.byref(found))
        return bool(found.value)

    def guid_of(self, name: str) -> uuid.UUID:
        """The GUID by which a layer called ``name`` is known."""
        guid = Guid()
        check_hresult(self._call("NameToGuid", wide(name), ctypes.byref(guid)), _doing("NameToGuid", name))
        return guid.uuid()

    def process_base(self, layer: str) -> None:
        """Make of a base layer's files what containers need: names of the hives, disks to begin with."""
        check_hresult(self._call("ProcessBaseImage", wide(layer)), _doing("ProcessBaseImage", layer))

    def process_utility(self, utility: str) -> None:
        """Make the disks of a utility VM from the files in the folder."""
        check_hresult(self._call("ProcessUtilityImage", wide(utility)), _doing("ProcessUtilityImage", utility))

    def grant_vm_access(self, vm: str, path: str) -> None:
        """Let the virtual machine of that id open the file."""
        check_hresult(self._call("GrantVmAccess", wide(vm), wide(path)), _doing("GrantVmAccess", path))

    def _simple(self, name: str, layer: str, *more: Any) -> None:
        check_hresult(self._on(wide(layer), name, *more), _doing(name, layer))

    def _on(self, layer: Any, name: str, *more: Any) -> int:
        return int(self._call(name, ctypes.byref(self._driver), layer, *more))

    def _with_parents(self, name: str, layer: str, parents: Sequence[str], *before: Any) -> None:
        paths = [wide(path) for path in parents]  # must live as long as the call
        array = (LayerDescriptor * len(paths))() if paths else None
        for at, path in enumerate(parents):
            guid = self.guid_of(ntpath.basename(ntpath.normpath(path)))
            assert array is not None  # noqa: S101
            array[at] = LayerDescriptor(Guid.of(guid), 0, ctypes.addressof(paths[at]))
        self._simple(name, layer, *before, array, len(paths))


def _doing(name: str, what: str) -> str:
    return f"{name} of {what!r}"
