# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the Host Compute Service, on the volume of the stub."""

from __future__ import annotations

import struct

from tests.native.stub import Stub

from lamella.errors import NotFound
from lamella.formats.ntfs.basic_information import DERIVED
from lamella.host.windows.files import (
    DIRECTORY,
    FILE_WRITE_ATTRIBUTES,
    GENERIC_READ,
    GENERIC_WRITE,
    REPARSE_POINT,
    Basic,
    Files,
    Handle,
)

WRITE = GENERIC_READ | GENERIC_WRITE
PLACEHOLDER = struct.pack("<IHH", 0x80000018, 4, 0) + b"lies"
"""The reparse point by which a layer has what its parents have."""
SUFFIX = ".$wcidirs$"
BOOT = "UtilityVM\\Files\\EFI\\Microsoft\\Boot\\BCD"


def stream(id_: int, body: bytes) -> bytes:
    return struct.pack("<IIqI", id_, 0, len(body), 0) + body


class ComputeService:
    """Does the work behind the calls of vmcompute.dll."""

    def __init__(self, stub: Stub, files: Files) -> None:
        self._stub = stub
        self._files = files
        self.hives: dict[str, list[str]] = {}
        stub.on_layer(self._work)

    def _work(self, call: str, layer: str, other: str) -> None:
        line = self._stub.log[-1]
        parents = [one.partition(":0:")[2] for one in line.rpartition("=")[2].split("|") if one]
        if call == "ProcessBaseImage":
            self._process_base(layer)
        elif call == "ProcessUtilityImage":
            self._process_utility(layer)
        elif call == "ImportLayer":
            self._import(layer, other, parents)
        elif call == "ExportLayer":
            self._export(layer, other, parents)
        elif call == "DestroyLayer":
            above, _, name = layer.rpartition("\\")
            with self._files.open(above + "\\") as root:
                self._files.delete_tree(root, name)

    def _process_base(self, layer: str) -> None:
        with self._files.open(layer) as root:
            with self._files.open_in(root, "Files\\Windows\\System32\\config\\SYSTEM") as hive:
                self._files.open_in(root, "Hives", create=True, directory=True).close()
                self._files.link(hive, root, "Hives\\SYSTEM_BASE")
            self._write(root, "layout", b"vhd-with-hives\n")
            self._write(root, "blank-base.vhdx", b"disk")

    def _process_utility(self, utility: str) -> None:
        with self._files.open(utility) as root:
            self._write(root, "SystemTemplate.vhdx", b"disk")
            try:
                with self._files.open_in(root, BOOT.partition("\\")[2], WRITE) as store:
                    self._files.write(store, b"CHANGED")
            except NotFound:
                pass

    def _import(self, layer: str, stage: str, parents: list[str]) -> None:
        with self._files.open(layer) as to, self._files.open(stage) as source:
            self._import_tree(to, source, parents, "Files")
            self._files.open_in(to, "Hives", create=True, directory=True).close()
            for name, _ in self._names(source, "Hives"):
                with self._files.open_in(source, f"Hives\\{name}") as delta:
                    self._write(to, f"Hives\\{name}", self._all(delta), self._files.basic(delta))
            self._write(to, "Hives\\System_Base", b"merged")

    def _import_tree(self, to: Handle, stage: Handle, parents: list[str], path: str) -> None:
        """A directory that the layer states or has something in, with what the parents have in it."""
        self._files.open_in(to, path, create=True, directory=True).close()
        stated = self._names(stage, path)
        for parent in parents:
            with self._files.open(parent) as root:
                for name, directory in self._names(root, path):
                    if name not in dict(stated) and name not in dict(self._names(to, path)):
                        self._restore(to, f"{path}\\{name}", stream(8, PLACEHOLDER), directory=directory)
        for name, directory in stated:
            if name.endswith(SUFFIX):
                continue
            inner = f"{path}\\{name}"
            if directory:
                self._import_tree(to, stage, parents, inner)
                self._metadata(to, stage, inner, inner + SUFFIX)
            else:
                self._restore(to, inner, b"", directory=False)
                self._metadata(to, stage, inner, inner)
        if path == "Files":
            self._metadata(to, stage, path, path + SUFFIX)

    def _metadata(self, to: Handle, stage: Handle, path: str, place: str) -> None:
        try:
            with self._files.open_in(stage, place) as file:
                raw = self._all(file)
                basic = self._files.basic(file)
        except NotFound:
            return
        with self._files.open_in(to, path, WRITE) as handle:
            with self._files.restore(handle, security=True) as output:
                output.write(raw[4:])
            (attributes,) = struct.unpack("<I", raw[:4])
            self._files.set_basic(
                handle, Basic(basic.creation, basic.access, basic.write, basic.change, attributes & ~DERIVED or 0x80)
            )

    def _export(self, layer: str, folder: str, parents: list[str]) -> None:
        tombstones: list[str] = []
        with self._files.open(layer) as source, self._files.open(folder) as to:
            self._export_tree(to, source, parents, "Files", tombstones)
            self._files.open_in(to, "Hives", create=True, directory=True).close()
            for name, _ in self._names(source, "Hives"):
                if name.endswith("_Delta"):
                    with self._files.open_in(source, f"Hives\\{name}") as delta:
                        self._write(to, f"Hives\\{name}", self._all(delta), self._files.basic(delta))
            text = "".join(f"{line}\r\n" for line in ["Version 1.0", *sorted(tombstones)])
            self._write(to, "tombstones.txt", b"\xef\xbb\xbf" + text.encode())

    def _export_tree(self, to: Handle, source: Handle, parents: list[str], path: str, gone: list[str]) -> None:
        self._files.open_in(to, path, create=True, directory=True).close()
        here = dict(self._names(source, path))
        for parent in parents:
            with self._files.open(parent) as root:
                gone += [
                    f"{path[5:]}\\{name}"
                    for name, _ in self._names(root, path)
                    if name not in here and f"{path[5:]}\\{name}" not in gone
                ]
        with self._files.open_in(source, path) as handle:
            self._export_file(to, path + SUFFIX, handle)
        for name, directory in here.items():
            inner = f"{path}\\{name}"
            with self._files.open_in(source, inner) as handle:
                attributes = self._files.basic(handle).attributes
                with self._files.backup(handle, security=False) as read:
                    streams = b"".join(iter(read.read, b""))
                if PLACEHOLDER in streams:
                    continue
                if not directory:
                    self._export_file(to, inner, handle)
                    continue
            if attributes & REPARSE_POINT:
                with self._files.open_in(source, inner) as handle:
                    self._export_file(to, inner + SUFFIX, handle)
                self._files.open_in(to, inner, create=True, directory=True).close()
            else:
                self._export_tree(to, source, parents, inner, gone)

    def _export_file(self, to: Handle, place: str, handle: Handle) -> None:
        basic = self._files.basic(handle)
        with self._files.backup(handle, security=True) as read:
            streams = b"".join(iter(read.read, b""))
        self._write(to, place, struct.pack("<I", basic.attributes) + streams, basic)

    def _names(self, root: Handle, path: str) -> list[tuple[str, bool]]:
        try:
            with self._files.open_in(root, path) as handle:
                if self._files.basic(handle).attributes & REPARSE_POINT:
                    return []
                return [(one.name, bool(one.attributes & DIRECTORY)) for one in self._files.listing(handle)]
        except NotFound:
            return []

    def _restore(self, root: Handle, path: str, streams: bytes, *, directory: bool) -> None:
        with (
            self._files.open_in(root, path, WRITE, create=True, directory=directory) as handle,
            self._files.restore(handle, security=True) as output,
        ):
            output.write(streams)

    def _write(self, root: Handle, path: str, data: bytes, basic: Basic | None = None) -> None:
        with self._files.open_in(root, path, WRITE | FILE_WRITE_ATTRIBUTES, create=True) as handle:
            self._files.write(handle, data)
            if basic is not None:
                self._files.set_basic(handle, Basic(basic.creation, basic.access, basic.write, basic.change, 0))

    def _all(self, handle: Handle) -> bytes:
        return b"".join(iter(lambda: self._files.read(handle), b""))
