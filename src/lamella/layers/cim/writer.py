# SPDX-License-Identifier: Apache-2.0
"""Composite images written on any host, as far as their layout is publicly known: new ones and forks."""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
from pathlib import Path
from typing import Final
from uuid import UUID

from lamella.errors import AlreadyExists, InvalidInput, Unavailable, from_os
from lamella.formats.cim.structures import RegionType, objects_file
from lamella.formats.cim.writer import CimWriter
from lamella.host import file_io
from lamella.layers.cim.async_output import NEW, RegionOutput, WriteBehind

if sys.platform != "win32":
    import fcntl


from collections.abc import Callable, Iterable
from typing import NoReturn

from lamella.changes.contracts import Seen
from lamella.changes.model import Buffer, Kind
from lamella.errors import Unsupported
from lamella.formats.ntfs import attributes as bits
from lamella.layers.cim import host_files
from lamella.layers.cim.image import CimLayer, OpenCim
from lamella.layers.cim.import_rules import FileMetadata
from lamella.layers.cim.tree import ATTRIBUTES

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


_SMALL: Final = PARTS - 1
"""The part of an image in the making that is none of its regions."""


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


KEPT: Final = sum(attribute for _, attribute in ATTRIBUTES)
"""The attributes that a file record has a place for."""


class PortableWriter:
    """Writes the image ``layer``, forked from ``parent`` where there is one (`ForkWriter`)."""

    def __init__(
        self,
        layer: CimLayer,
        parent: CimLayer | None,
        *,
        guid: UUID | None = None,
        contents: Callable[[], bytes] | None = None,
        durable: bool = False,
    ) -> None:
        """Start the image; see `CimSink` for ``guid`` and ``contents``.

        Raises AlreadyExists, NotFound, InvalidInput, as `NewCim` does.
        """
        self._new = NewCim(layer, parent)
        writer = self._writer = self._new.writer
        self._store, self._put = writer.store, writer.put
        self._guid = guid
        self._contents = contents
        self._durable = durable

    def put(self, path: str, metadata: FileMetadata, size: int, chunks: Iterable[Buffer] | None) -> Seen | None:
        """See `CimWriter.put`. Equal contents are kept once."""
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

    def merge_link(self, path: str, target: str) -> NoReturn:  # noqa: ARG002  # whichever they are
        """See `CimWriter.merge_link`: what one looks like on disk is not publicly known."""
        raise Unsupported(f"hard link {path!r}: links between images are Windows' own to write")

    def delete(self, path: str) -> None:
        self._writer.delete(path)

    def tombstone(self, path: str) -> NoReturn:
        """See `CimWriter.tombstone`: what one looks like on disk is not publicly known."""
        raise Unsupported(f"{path!r} is to be hidden when images are merged, which is Windows' own to write")

    def commit(self) -> None:
        """See `CimWriter.commit`: the image gets its name."""
        contents = None if self._contents is None else self._contents()
        self._new.commit(guid=self._guid, contents=contents, durable=self._durable)

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
