# SPDX-License-Identifier: Apache-2.0
"""Writes new composite images and forks on any host, in the publicly known part of the format."""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import UUID

from lamella.errors import AlreadyExists, InvalidInput, Unavailable, from_os
from lamella.formats.cim.structures import RegionType, objects_file
from lamella.formats.cim.writer import CimWriter
from lamella.host import file_io
from lamella.host.durability import outputs_are_durable, sync_directory
from lamella.layers.cim.async_output import NEW, RegionOutput, WriteBehind

if sys.platform != "win32":
    import fcntl


from collections.abc import Callable, Iterable
from typing import NoReturn

from lamella.changes.contracts import Seen
from lamella.changes.model import Buffer, Kind
from lamella.errors import Unsupported
from lamella.formats.ntfs import basic_information as bits
from lamella.layers.cim import host_files
from lamella.layers.cim.image import CimLayer, OpenCim
from lamella.layers.cim.import_rules import FileMetadata

PARTS: Final = 4
"""Hidden files of a new image: three regions, and one for everything small."""


_MARK: Final = re.compile(r"\..+\.unfinished-[0-9a-f]{8}", re.DOTALL)


_TRIES: Final = 8
"""Another writer may remove a hidden file before it is locked; then the next name is tried."""


class StagingMark:
    """The name prefix of the hidden files of one new image, locked while its writer runs.

    Windows has no such lock: there, only the writer itself removes its files.
    """

    def __init__(self, directory: Path, name: str) -> None:
        """Choose the prefix for the image ``name``, and remove the files of killed writers in the directory.

        Raises NotFound (the directory), Denied, Exhausted, Unavailable.
        """
        self._directory = directory
        self._held = -1
        try:
            _remove_abandoned(directory)
            for _ in range(_TRIES):
                self._name = f".{name}.unfinished-{secrets.token_hex(4)}"
                if sys.platform == "win32":
                    return
                self._held = os.open(directory / self._name, NEW, 0o600)
                if _lock(self._held, directory / self._name) is not False:
                    return
                os.close(self._held)
                self._held = -1
        except OSError as problem:
            self.remove()
            raise from_os(problem, f"write an image in {os.fspath(directory)!r}") from problem
        raise Unavailable(f"cannot lock a file in {os.fspath(directory)!r}")

    def part(self, number: int) -> Path:
        """The path of one of the `PARTS` hidden files."""
        return self._directory / f"{self._name}-{number}"

    def remove(self) -> None:
        """Release the prefix; no file may have it afterwards. Can be called repeatedly."""
        held, self._held = self._held, -1
        if held >= 0:
            with suppress(OSError):
                (self._directory / self._name).unlink()
            os.close(held)


def _remove_abandoned(directory: Path) -> None:
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
            pass  # a user with more rights may remove it
        finally:
            os.close(file)


def _lock(file: int, path: Path) -> bool | None:
    """Lock the file. False if another writer has it, or it was removed; None if the file system has no locks."""
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


_SMALL: Final = PARTS - 1
"""The hidden file that is not a region."""


class NewCim:
    """A new image. Its files have hidden names until `commit`, which creates ``NAME.cim`` last."""

    def __init__(self, layer: CimLayer, parent: CimLayer | None = None) -> None:
        """Start the image ``layer``, forked from ``parent`` in the same directory.

        Raises AlreadyExists, NotFound (the parent), InvalidInput (a parent in another directory).
        """
        layer.check()
        if os.path.lexists(layer.path):
            raise AlreadyExists(f"{os.fspath(layer.path)!r} exists")
        self.layer = layer
        self._durable = outputs_are_durable()
        self._behind = WriteBehind()
        self._outputs: dict[RegionType, RegionOutput] = {}
        self._parent: OpenCim | None = None
        self._mark = StagingMark(layer.directory, layer.name)
        try:
            if parent is not None:
                if parent.directory.resolve() != layer.directory.resolve():
                    raise InvalidInput(
                        f"{os.fspath(layer.path)!r} cannot be forked from {os.fspath(parent.path)!r}",
                        hint="an image and those it is forked from must be in one directory",
                    )
                self._parent = OpenCim(parent)
            self.writer = CimWriter(self._region, parent=self._parent.reader if self._parent is not None else None)
        except BaseException:
            self.abort()
            raise

    def _region(self, kind: RegionType) -> RegionOutput:
        output = self._outputs[kind] = RegionOutput(self._mark.part(int(kind)), self._behind)
        return output

    def commit(self, *, guid: UUID | None = None, contents: bytes | None = None) -> None:
        """Rename the files. ``guid`` defaults to one derived from the content, so that equal images are equal files.

        ``contents`` avoids another read of the content: see `CimWriter.fingerprint`.
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
                if self._durable:
                    output.sync()
                output.close()
                _write(image, objects_file(kind, kind), durable=self._durable)
                os.replace(image, directory / f"objectid_{guid}_{int(kind)}")
                os.replace(output.path, directory / f"region_{guid}_{int(kind)}")
            self._outputs.clear()
            if self._durable:
                sync_directory(directory)  # the image names the other files
            _write(image, raw, durable=self._durable)
            os.link(image, self.layer.path)  # fails if another writer was faster
            with suppress(OSError):  # a hidden name, which the next writer in the directory removes
                os.unlink(image)
            if self._durable:
                sync_directory(directory)
        except OSError as problem:
            raise from_os(problem, f"write the image {os.fspath(self.layer.path)!r}") from problem
        finally:
            self._release()

    def abort(self) -> None:
        """Remove the files. Can be called repeatedly."""
        self._behind.stop()
        for output in self._outputs.values():
            output.close()
            output.path.unlink(missing_ok=True)
        self._outputs.clear()
        self._mark.part(_SMALL).unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        if self._parent is not None:
            self._parent.close()
            self._parent = None
        if not self._outputs:
            self._mark.remove()


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


class PortableWriter:
    """Writes the image ``layer``, forked from ``parent`` if given (`ForkWriter`)."""

    def __init__(
        self,
        layer: CimLayer,
        parent: CimLayer | None,
        *,
        guid: UUID | None = None,
        contents: Callable[[], bytes] | None = None,
    ) -> None:
        """Start the image; see `CimSink` for ``guid`` and ``contents``.

        Raises AlreadyExists, NotFound, InvalidInput, as `NewCim` does.
        """
        self._new = NewCim(layer, parent)
        writer = self._writer = self._new.writer
        self._store, self._put = writer.store, writer.put
        self._guid = guid
        self._contents = contents

    def put(self, path: str, metadata: FileMetadata, size: int, chunks: Iterable[Buffer] | None) -> Seen | None:
        """Equal contents are stored once."""
        stream = None
        if not metadata.attributes & bits.DIRECTORY:
            if chunks is None:
                stream = self._writer.zeros(size)
            else:
                stream = self._store(chunks, size, derived=host_files.is_derived(path))
        found = self._put(path, metadata, stream)
        if found is None:
            return None
        return Seen(Kind.DIRECTORY if found.is_directory and not found.reparse else Kind.FILE)

    def stream(self, path: str, name: str, size: int, chunks: Iterable[Buffer]) -> None:
        self._writer.stream(path, name, self._writer.store(chunks, size))

    def link(self, path: str, target: str) -> None:
        self._writer.link(path, target)

    def merge_link(self, path: str, target: str) -> NoReturn:  # noqa: ARG002
        """Raises Unsupported: the format of these links is not publicly known."""
        raise Unsupported(f"hard link {path!r}: only Windows can write links between images")

    def delete(self, path: str) -> None:
        self._writer.delete(path)

    def tombstone(self, path: str) -> NoReturn:
        """Raises Unsupported: the format of tombstones is not publicly known."""
        raise Unsupported(f"whiteout of {path!r}: only Windows can write tombstones")

    def commit(self) -> None:
        contents = None if self._contents is None else self._contents()
        self._new.commit(guid=self._guid, contents=contents)

    def abort(self) -> None:
        self._new.abort()

    def seen(self, path: str) -> Seen | None:
        found = self._writer.what(path)
        return None if found is None else Seen(Kind.DIRECTORY if found == (True, False) else Kind.FILE)

    def is_reparse_point(self, path: str) -> bool:
        found = self._writer.what(path)
        return found is not None and found[1]

    def names(self, directory: str) -> Iterable[tuple[str, bool]]:
        return [(name, record.is_directory) for name, record in self._writer.names(directory)]

    def touched(self, path: str) -> bool:
        return self._writer.touched(path)
