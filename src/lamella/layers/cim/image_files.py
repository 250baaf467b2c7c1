# SPDX-License-Identifier: Apache-2.0
"""The files of CIMs in a directory, read and written; names are looked up without regard to case."""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
from pathlib import Path
from typing import Final, Self
from uuid import UUID

from msgspec import Struct

from lamella.errors import AlreadyExists, InvalidInput, LamellaError, NotFound, Unavailable, from_os
from lamella.formats.cim.reader import CimReader
from lamella.formats.cim.structures import RegionType, objects_file, parse_filesystem_file
from lamella.formats.cim.writer import CimWriter
from lamella.host import file_io
from lamella.host.file_io import read_at
from lamella.layers.cim.async_output import NEW, RegionOutput, WriteBehind

if sys.platform != "win32":
    import fcntl

PARTS: Final = 4
"""Files that are called after a mark: three regions, and one for all that is small."""

_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | file_io.O_NOFOLLOW | file_io.O_CLOEXEC | file_io.O_BINARY
_MARK: Final = re.compile(r"\..+\.unfinished-[0-9a-f]{8}", re.DOTALL)
_TRIES: Final = 8
"""Another writer may take a mark for abandoned before it is locked; then there is a next one."""


class Mark:
    """The mark of one writer. On Windows it is a name alone, and nothing is removed but by its own writer."""

    def __init__(self, directory: Path, name: str) -> None:
        """Mark the image ``name`` in the making, and remove what killed writers have left in the directory.

        Raises NotFound (the directory), Denied, Exhausted, Unavailable.
        """
        self._directory = directory
        self._held = -1
        try:
            _sweep(directory)
            for _ in range(_TRIES):
                self._name = f".{name}.unfinished-{secrets.token_hex(4)}"
                if sys.platform == "win32":
                    return
                self._held = os.open(directory / self._name, _NEW, 0o600)
                if _lock(self._held, directory / self._name) is not False:
                    return
                os.close(self._held)
                self._held = -1
        except OSError as problem:
            self.remove()
            raise from_os(problem, f"write an image in {os.fspath(directory)!r}") from problem
        raise Unavailable(f"cannot lock a file in {os.fspath(directory)!r}")

    def part(self, number: int) -> Path:
        """The path of a part, `PARTS` of which there can be."""
        return self._directory / f"{self._name}-{number}"

    def remove(self) -> None:
        """Nothing is called after it any more. May be called again."""
        held, self._held = self._held, -1
        if held >= 0:
            (self._directory / self._name).unlink(missing_ok=True)
            os.close(held)


def _sweep(directory: Path) -> None:
    if sys.platform == "win32":
        return
    for name in os.listdir(directory):
        if _MARK.fullmatch(name) is None:
            continue
        path = directory / name
        try:
            file = os.open(path, file_io.READ_FILE)
        except OSError:
            continue
        try:
            status = os.fstat(file)
            if stat.S_ISREG(status.st_mode) and not status.st_size and _lock(file, path):
                for number in range(PARTS):
                    (directory / f"{name}-{number}").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
        except OSError:
            pass  # it stays, for whoever may remove it
        finally:
            os.close(file)


def _lock(file: int, path: Path) -> bool | None:
    """Whether the file is locked for us, and still there under its name; None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


_MOST: Final = 2 << 20
"""Bytes of a file system file: 65,536 parent sets."""
_SUFFIX: Final = ".cim"
_SMALL: Final = PARTS - 1
"""The part of an image in the making that is none of its regions."""


class CimLayer(Struct, frozen=True):
    """The layer in the image ``path``, a file ``NAME.cim`` whose regions lie beside it."""

    path: Path
    own_folder: Path | None = None
    """The folder of the layer where it is not beside the image; it has other files too, and stays when they go."""

    @property
    def directory(self) -> Path:
        """Where the files of the image are, and those of all images that it is forked from."""
        return self.path.parent

    @property
    def folder(self) -> Path:
        """Where the files are that the host needs outside of the image: registry hives and boot files."""
        return self.own_folder or self.path.with_suffix("")

    @property
    def name(self) -> str:
        """Of the image."""
        return self.path.stem

    def check(self) -> None:
        """Raise InvalidInput where the path is not that of an image."""
        if self.path.suffix.lower() != _SUFFIX or not self.name:
            raise InvalidInput(
                f"{os.fspath(self.path)!r} is not the path of a CIM", hint="give a path like DIR/NAME.cim"
            )


class _RegionFile:
    """A region that is open."""

    __slots__ = ("_file", "size")

    def __init__(self, path: Path) -> None:
        self._file = _open(path)
        self.size = os.fstat(self._file).st_size

    def read(self, offset: int, length: int) -> bytes:
        """See `lamella.formats.cim.reader.Region`."""
        return read_at(self._file, length, offset)

    def close(self) -> None:
        os.close(self._file)


class OpenCim:
    """An image that is open for reading; close it, or use it as a context manager."""

    def __init__(self, layer: CimLayer) -> None:
        """Open it. Raises NotFound, FormatError, Unsupported (a version), Denied."""
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
                f"{os.fspath(exact)!r} is not there",
                hint="the regions of an image, and of those it is forked from, lie in its directory",
            ) from None

    def close(self) -> None:
        """Let go of the files."""
        for region in self._regions:
            region.close()
        self._regions.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NewCim:
    """An image in the making: its files have hidden names until `commit`, and ``NAME.cim`` comes last."""

    def __init__(self, layer: CimLayer, parent: CimLayer | None = None) -> None:
        """Start the image ``layer``, forked from ``parent`` in the same directory.

        Raises AlreadyExists, NotFound (parent), InvalidInput (a parent elsewhere).
        """
        layer.check()
        if os.path.lexists(layer.path):
            raise AlreadyExists(f"{os.fspath(layer.path)!r} exists")
        self.layer = layer
        self._behind = WriteBehind()
        self._outputs: dict[RegionType, RegionOutput] = {}
        self._parent: OpenCim | None = None
        self._mark = Mark(layer.directory, layer.name)
        try:
            if parent is not None:
                if parent.directory.resolve() != layer.directory.resolve():
                    raise InvalidInput(
                        f"{os.fspath(layer.path)!r} cannot be forked from {os.fspath(parent.path)!r}",
                        hint="an image and those it is forked from lie in one directory",
                    )
                self._parent = OpenCim(parent)
            self.writer = CimWriter(self._region, parent=self._parent.reader if self._parent is not None else None)
        except BaseException:
            self.abort()
            raise

    def _region(self, kind: RegionType) -> RegionOutput:
        output = self._outputs[kind] = RegionOutput(self._mark.part(int(kind)), self._behind)
        return output

    def commit(self, *, guid: UUID | None = None, contents: bytes | None = None, durable: bool = False) -> None:
        """Give the files their names. Without ``guid`` it follows from the content, so that equal images are equal.

        ``contents`` spares reading that again: see `CimWriter.fingerprint`.
        """
        root = self.writer.write_tables()
        guid = guid or UUID(bytes=self.writer.fingerprint(contents)[:16], version=5)
        raw = self.writer.file(root, guid)
        self._behind.drain()
        self._behind.stop()
        directory = self.layer.directory
        image = self._mark.part(_SMALL)
        try:
            for kind, output in self._outputs.items():
                output.finish(durable=durable)
                _write(image, objects_file(kind, kind), durable=durable)
                os.replace(image, directory / f"objectid_{guid}_{int(kind)}")
                os.replace(output.path, directory / f"region_{guid}_{int(kind)}")
            self._outputs.clear()
            _write(image, raw, durable=durable)
            os.link(image, self.layer.path)  # fails where somebody else was first
            os.unlink(image)
            if durable and file_io.O_DIRECTORY:
                file = os.open(directory, os.O_RDONLY | file_io.O_DIRECTORY | file_io.O_CLOEXEC)
                os.fsync(file)
                os.close(file)
        except OSError as problem:
            raise from_os(problem, f"write the image {os.fspath(self.layer.path)!r}") from problem
        finally:
            self._leave()

    def abort(self) -> None:
        """Remove what was written. May be called again."""
        self._behind.stop()
        for output in self._outputs.values():
            output.close()
            output.path.unlink(missing_ok=True)
        self._outputs.clear()
        self._mark.part(_SMALL).unlink(missing_ok=True)
        self._leave()

    def _leave(self) -> None:
        if self._parent is not None:
            self._parent.close()
            self._parent = None
        if not self._outputs:
            self._mark.remove()


def parent_of(layer: CimLayer) -> CimLayer | None:
    """The image in the same directory that ``layer`` is forked from; None for one that is no fork.

    Raises NotFound where it is not there under any name, and as reading ``layer`` does.
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
            continue  # whatever it is, nothing can be forked from it
        if found.sets == own.parents:
            return other
    raise NotFound(
        f"{os.fspath(layer.path)!r} is forked from the image {own.parents[-1].guid}, and none beside it is that",
        hint="give the parent's path",
    )


def is_cim_path(text: str) -> bool:
    """Whether a path reads as that of an image."""
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


def _write(path: Path, raw: bytes, *, durable: bool) -> None:
    file = os.open(path, NEW, 0o600)
    try:
        view = memoryview(raw)
        while view:
            view = view[os.write(file, view) :]
        if durable:
            os.fsync(file)
    finally:
        os.close(file)
