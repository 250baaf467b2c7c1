# SPDX-License-Identifier: Apache-2.0
"""Windows layers by the newer calls (computestorage.dll, Windows 10 1809): scratch disks, and files shown over them.

Layers are described in JSON; parents are listed nearest first, each with its GUID.
"""

from __future__ import annotations

import ctypes
import json
import uuid
from collections.abc import Sequence
from typing import Any, Final

from lamella.host.windows.abi import HANDLE, HRESULT, PTR, Library, Loader, signature, text_at, wide
from lamella.host.windows.errors import check_hresult

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
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


class StorageLayers:
    """The calls of computestorage.dll. Raises Unsupported where Windows lacks it, and what fits the HRESULT."""

    def __init__(self, loader: Loader) -> None:
        self._library = Library(loader, "computestorage.dll", _COMPUTESTORAGE)
        self._ole32 = Library(loader, "ole32.dll", _OLE32)

    def import_layer(self, layer: str, folder: str, parents: Parents) -> None:
        """Make the files of ``layer`` from the transport folder."""
        self._call("HcsImportLayer", layer, wide(layer), wide(folder), _told(parents))

    def export_layer(self, layer: str, folder: str, parents: Parents, *, writable: bool) -> None:
        """Write what ``layer`` changes into the transport folder; ``writable``: it is a scratch layer."""
        options = wide(_encode({"IsWritableLayer": writable}))
        self._call("HcsExportLayer", layer, wide(layer), wide(folder), _told(parents), options)

    def destroy(self, layer: str) -> None:
        """Remove the layer's folder."""
        self._call("HcsDestroyLayer", layer, wide(layer))

    def set_up_base(self, layer: str, *, disk: int = 0, vm: bool = False) -> None:
        """Finish a base layer's folder; ``disk`` is the handle of a utility VM's scratch disk."""
        self._call("HcsSetupBaseOSLayer", layer, wide(layer), disk, _system(vm))

    def set_up_base_volume(self, layer: str, volume: str, *, vm: bool = False) -> None:
        """Finish a base layer on a mounted volume."""
        self._call("HcsSetupBaseOSVolume", layer, wide(layer), wide(volume), _system(vm))

    def initialize_writable(self, layer: str, parents: Parents) -> None:
        """Make a writable layer ready."""
        self._call("HcsInitializeWritableLayer", layer, wide(layer), _told(parents), None)

    def attach_filter(self, path: str, parents: Parents) -> None:
        """Show the parents' files on the volume ``path``."""
        self._call("HcsAttachLayerStorageFilter", path, wide(path), _told(parents))

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


def _told(parents: Parents) -> Any:
    layers = [{"Id": str(guid), "Path": path} for guid, path in parents]
    return wide(_encode({"SchemaVersion": {"Major": 2, "Minor": 1}, "Layers": layers}))


def _system(vm: bool) -> Any:
    return wide(_encode({"Type": "Vm" if vm else "Container"}))
