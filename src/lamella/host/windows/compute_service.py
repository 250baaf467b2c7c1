# SPDX-License-Identifier: Apache-2.0
"""Windows layers by the Host Compute Service: vmcompute.dll, and computestorage.dll (Windows 10 1809).

A layer is the full path of its folder; parents are listed nearest first. vmcompute.dll needs the Containers feature,
and SeBackupPrivilege and SeRestorePrivilege held by the caller.
"""

from __future__ import annotations

import ctypes
import json
import ntpath
import threading
import uuid
from collections.abc import Sequence
from typing import Any, Final

from lamella.host.windows.abi import (
    HANDLE,
    HRESULT,
    I32,
    PTR,
    U32,
    U64,
    Guid,
    Library,
    Loader,
    signature,
    text_at,
    text_of,
    wide,
)
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
"""Windows fails if a process prepares two layers at once."""


class DriverInfo(ctypes.Structure):
    """Filter driver and base folder of layer names: 16 bytes."""

    _fields_ = (("flavour", I32), ("home", PTR))


class LayerDescriptor(ctypes.Structure):
    """A parent layer: 32 bytes."""

    _fields_ = (("id", Guid), ("flags", U32), ("path", PTR))


class ComputeLayers:
    """The calls of vmcompute.dll. Raises Unsupported without the Containers feature, and errors by HRESULT."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._call = Library(loader, _DLL, _VMCOMPUTE)
        self._home = wide("")
        self._driver = DriverInfo(_FILTER_DRIVER, ctypes.addressof(self._home))

    def available(self) -> bool:
        """Whether this host has the Containers feature."""
        return self._loader.has(_DLL)

    def require(self) -> None:
        """Raise Unsupported unless this host has the Containers feature."""
        self._loader.find(_DLL, "ImportLayer", _VMCOMPUTE["ImportLayer"])

    def import_layer(self, layer: str, folder: str, parents: Sequence[str]) -> None:
        """Import ``layer`` from a transport folder."""
        self._call_with_parents("ImportLayer", layer, parents, wide(folder))

    def export_layer(self, layer: str, folder: str, parents: Sequence[str]) -> None:
        """Export the changes of ``layer`` into an empty transport folder."""
        self._call_with_parents("ExportLayer", layer, parents, wide(folder))

    def activate(self, layer: str) -> None:
        """Make the layer's disk available."""
        self._call_for_layer("ActivateLayer", layer)

    def deactivate(self, layer: str) -> None:
        """Undo `activate`."""
        self._call_for_layer("DeactivateLayer", layer)

    def prepare(self, layer: str, parents: Sequence[str]) -> None:
        """Merge the layer's view with its parents; one layer at a time per process."""
        with _preparing:
            self._call_with_parents("PrepareLayer", layer, parents)

    def unprepare(self, layer: str) -> None:
        """Undo `prepare`."""
        self._call_for_layer("UnprepareLayer", layer)

    def destroy(self, layer: str) -> None:
        """Remove the layer's folder."""
        self._call_for_layer("DestroyLayer", layer)

    def create(self, layer: str, parent: str) -> None:
        """Create an empty layer."""
        self._call_for_layer("CreateLayer", layer, wide(parent))

    def create_scratch(self, layer: str, parents: Sequence[str]) -> None:
        """Create a layer with a writable disk."""
        self._call_with_parents("CreateSandboxLayer", layer, parents, 0)

    def expand_scratch(self, layer: str, size: int) -> None:
        """Expand the disk of a layer to ``size`` bytes."""
        self._call_for_layer("ExpandSandboxSize", layer, size)

    def mount_path(self, layer: str) -> str:
        """Mount path of a prepared layer."""
        room = U64(0)
        name = wide(layer)
        result = self._call_with_driver(name, "GetLayerMountPath", ctypes.byref(room), None)
        if result < 0 and win32_of_hresult(result & 0xFFFF_FFFF) != ERROR_INSUFFICIENT_BUFFER:
            check_hresult(result, _describe("GetLayerMountPath", layer))
        buffer = (ctypes.c_uint16 * (room.value + 1))()
        room.value += 1
        check_hresult(
            self._call_with_driver(name, "GetLayerMountPath", ctypes.byref(room), buffer),
            _describe("GetLayerMountPath", layer),
        )
        return text_of(buffer)

    def exists(self, layer: str) -> bool:
        """Whether the service knows the layer."""
        found = U32(0)
        self._call_for_layer("LayerExists", layer, ctypes.byref(found))
        return bool(found.value)

    def guid_of(self, name: str) -> uuid.UUID:
        """The GUID of the layer ``name``."""
        guid = Guid()
        check_hresult(self._call("NameToGuid", wide(name), ctypes.byref(guid)), _describe("NameToGuid", name))
        return guid.uuid()

    def process_base(self, layer: str) -> None:
        """Prepare the files of a base layer for containers: hives and initial disks."""
        check_hresult(self._call("ProcessBaseImage", wide(layer)), _describe("ProcessBaseImage", layer))

    def process_utility(self, utility: str) -> None:
        """Create the disks of a utility VM from the files in the folder."""
        check_hresult(self._call("ProcessUtilityImage", wide(utility)), _describe("ProcessUtilityImage", utility))

    def grant_vm_access(self, vm: str, path: str) -> None:
        """Allow a virtual machine to open the file."""
        check_hresult(self._call("GrantVmAccess", wide(vm), wide(path)), _describe("GrantVmAccess", path))

    def _call_for_layer(self, name: str, layer: str, *more: Any) -> None:
        check_hresult(self._call_with_driver(wide(layer), name, *more), _describe(name, layer))

    def _call_with_driver(self, layer: Any, name: str, *more: Any) -> int:
        return int(self._call(name, ctypes.byref(self._driver), layer, *more))

    def _call_with_parents(self, name: str, layer: str, parents: Sequence[str], *before: Any) -> None:
        paths = [wide(path) for path in parents]  # must outlive the call
        array = (LayerDescriptor * len(paths))() if paths else None
        for at, path in enumerate(parents):
            guid = self.guid_of(ntpath.basename(ntpath.normpath(path)))
            assert array is not None  # noqa: S101
            array[at] = LayerDescriptor(Guid.of(guid), 0, ctypes.addressof(paths[at]))
        self._call_for_layer(name, layer, *before, array, len(paths))


def _describe(name: str, what: str) -> str:
    return f"{name} of {what!r}"


_COMPUTESTORAGE: Final = {
    "HcsImportLayer": signature(HRESULT, PTR, PTR, PTR),
    "HcsExportLayer": signature(HRESULT, PTR, PTR, PTR, PTR),
    "HcsDestroyLayer": signature(HRESULT, PTR),
    "HcsSetupBaseOSLayer": signature(HRESULT, PTR, HANDLE, PTR),
    "HcsSetupBaseOSVolume": signature(HRESULT, PTR, PTR, PTR),
    "HcsInitializeWritableLayer": signature(HRESULT, PTR, PTR, PTR),
    "HcsAttachLayerStorageFilter": signature(HRESULT, PTR, PTR),
    "HcsDetachLayerStorageFilter": signature(HRESULT, PTR),
    "HcsFormatWritableLayerVhd": signature(HRESULT, HANDLE),
    "HcsGetLayerVhdMountPath": signature(HRESULT, HANDLE, PTR),
}
_OLE32: Final = {"CoTaskMemFree": signature(None, PTR)}

Parents = Sequence[tuple[uuid.UUID, str]]
_encode_json: Final = json.JSONEncoder(separators=(",", ":")).encode


class StorageLayers:
    """The calls of computestorage.dll. Raises Unsupported if Windows lacks it, and errors by HRESULT.

    Layers are described in JSON; each parent has a GUID.
    """

    def __init__(self, loader: Loader) -> None:
        self._library = Library(loader, "computestorage.dll", _COMPUTESTORAGE)
        self._ole32 = Library(loader, "ole32.dll", _OLE32)

    def import_layer(self, layer: str, folder: str, parents: Parents) -> None:
        """Import ``layer`` from a transport folder."""
        self._call("HcsImportLayer", layer, wide(layer), wide(folder), _encode_parents(parents))

    def export_layer(self, layer: str, folder: str, parents: Parents, *, writable: bool) -> None:
        """Export the changes of ``layer`` into a transport folder; ``writable`` for scratch layers."""
        options = wide(_encode_json({"IsWritableLayer": writable}))
        self._call("HcsExportLayer", layer, wide(layer), wide(folder), _encode_parents(parents), options)

    def destroy(self, layer: str) -> None:
        """Remove the layer's folder."""
        self._call("HcsDestroyLayer", layer, wide(layer))

    def set_up_base(self, layer: str, *, disk: int = 0, vm: bool = False) -> None:
        """Set up the folder of a base layer; ``disk`` is the handle of a utility VM's scratch disk."""
        self._call("HcsSetupBaseOSLayer", layer, wide(layer), disk, _encode_system_type(vm))

    def set_up_base_volume(self, layer: str, volume: str, *, vm: bool = False) -> None:
        """Set up a base layer on a mounted volume."""
        self._call("HcsSetupBaseOSVolume", layer, wide(layer), wide(volume), _encode_system_type(vm))

    def initialize_writable(self, layer: str, parents: Parents) -> None:
        """Initialize a writable layer."""
        self._call("HcsInitializeWritableLayer", layer, wide(layer), _encode_parents(parents), None)

    def attach_filter(self, path: str, parents: Parents) -> None:
        """Merge the parents' files into the volume ``path``."""
        self._call("HcsAttachLayerStorageFilter", path, wide(path), _encode_parents(parents))

    def detach_filter(self, path: str) -> None:
        """Undo `attach_filter`."""
        self._call("HcsDetachLayerStorageFilter", path, wide(path))

    def format_disk(self, disk: int) -> None:
        """Format an open virtual disk as a writable layer."""
        self._call("HcsFormatWritableLayerVhd", "a disk", disk)

    def disk_mount_path(self, disk: int) -> str:
        """The volume of an attached disk."""
        found = PTR()
        self._call("HcsGetLayerVhdMountPath", "a disk", disk, ctypes.byref(found))
        if found.value is None:
            return ""
        try:
            return text_at(found.value)
        finally:
            self._ole32("CoTaskMemFree", found)

    def _call(self, name: str, what: str, *arguments: Any) -> None:
        check_hresult(self._library(name, *arguments), f"{name} of {what!r}")


def _encode_parents(parents: Parents) -> Any:
    layers = [{"Id": str(guid), "Path": path} for guid, path in parents]
    return wide(_encode_json({"SchemaVersion": {"Major": 2, "Minor": 1}, "Layers": layers}))


def _encode_system_type(vm: bool) -> Any:
    return wide(_encode_json({"Type": "Vm" if vm else "Container"}))
