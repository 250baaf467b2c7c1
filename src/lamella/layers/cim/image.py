# SPDX-License-Identifier: Apache-2.0
"""Composite images on disk: the paths of their files, and images opened for reading. File names ignore case."""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path
from typing import Final, Self
from uuid import UUID

from msgspec import Struct

from lamella.errors import InvalidInput, LamellaError, NotFound, from_os
from lamella.formats.cim.reader import CimReader
from lamella.formats.cim.structures import parse_filesystem_file
from lamella.host import file_io
from lamella.host.file_io import read_at

if sys.platform != "win32":
    pass


_MOST: Final = 2 << 20
"""The largest size of a file system file, in bytes: 65,536 parent sets."""
_SUFFIX: Final = ".cim"


class CimLayer(Struct, frozen=True):
    """The layer in the image ``path``, a file ``NAME.cim`` with its region files beside it."""

    path: Path
    own_folder: Path | None = None
    """The folder of the layer if it is not beside the image. It also has other files, and is never removed."""

    @property
    def directory(self) -> Path:
        """The directory of the image, and of all images that it is forked from."""
        return self.path.parent

    @property
    def folder(self) -> Path:
        """The folder for files that the host needs outside of the image: registry hives and boot files."""
        return self.own_folder or self.path.with_suffix("")

    @property
    def name(self) -> str:
        """The name of the image, without suffix."""
        return self.path.stem

    def check(self) -> None:
        """Raises InvalidInput if the path is not that of an image."""
        if self.path.suffix.lower() != _SUFFIX or not self.name:
            raise InvalidInput(
                f"{os.fspath(self.path)!r} is not the path of a CIM", hint="give a path like DIR/NAME.cim"
            )


class _RegionFile:
    """An open region."""

    __slots__ = ("_file", "size")

    def __init__(self, path: Path) -> None:
        self._file = _open(path)
        self.size = os.fstat(self._file).st_size

    def read(self, offset: int, length: int) -> bytes:
        return read_at(self._file, length, offset)

    def close(self) -> None:
        os.close(self._file)


class OpenCim:
    """An image opened for reading. Close it, or use it as a context manager."""

    def __init__(self, layer: CimLayer) -> None:
        """Open the image. Raises NotFound, FormatError, Unsupported (a version), Denied."""
        layer.check()
        self.layer = layer
        self._regions: list[_RegionFile] = []
        self._names: dict[str, Path] | None = None
        try:
            self.reader = CimReader(_filesystem_file(layer.path), self._region)
        except BaseException:
            self.close()
            raise

    def _region(self, guid: UUID, number: int) -> _RegionFile:
        region = _RegionFile(self._find(f"region_{guid}_{number}"))
        self._regions.append(region)
        return region

    def _find(self, name: str) -> Path:
        exact = self.layer.directory / name
        if exact.exists():
            return exact
        if self._names is None:
            self._names = {path.name.lower(): path for path in self.layer.directory.iterdir()}
        try:
            return self._names[name.lower()]
        except KeyError:
            raise NotFound(
                f"{os.fspath(exact)!r} does not exist",
                hint="an image needs its regions, and those of the images it is forked from, in its directory",
            ) from None

    def close(self) -> None:
        """Close the files."""
        for region in self._regions:
            region.close()
        self._regions.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parent_of(layer: CimLayer) -> CimLayer | None:
    """The image in the same directory that ``layer`` is forked from; None if it is not a fork.

    Raises NotFound if the directory does not have it, and what reading ``layer`` raises.
    """
    own = parse_filesystem_file(_filesystem_file(layer.path))
    if not own.parents:
        return None
    for name in sorted(os.listdir(layer.directory)):
        other = CimLayer(layer.directory / name)
        if not is_cim_path(name) or other.path == layer.path:
            continue
        try:
            found = parse_filesystem_file(_filesystem_file(other.path))
        except LamellaError:
            continue  # not a valid image, so not the parent
        if found.sets == own.parents:
            return other
    raise NotFound(
        f"{os.fspath(layer.path)!r} is forked from the image {own.parents[-1].guid}, which is not in its directory",
        hint="give the parent's path",
    )


def is_cim_path(text: str) -> bool:
    """Whether a path has the form of an image's path."""
    return re.fullmatch(r".*[^/\\]\.cim", text, re.IGNORECASE | re.DOTALL) is not None


def _filesystem_file(path: Path) -> bytes:
    file = _open(path)
    try:
        return read_at(file, _MOST, 0)
    finally:
        os.close(file)


def _open(path: Path) -> int:
    try:
        file = os.open(path, file_io.READ_FILE)
    except OSError as problem:
        raise from_os(problem, f"open {os.fspath(path)!r}") from problem
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise InvalidInput(f"{os.fspath(path)!r} is not a regular file")
    return file
