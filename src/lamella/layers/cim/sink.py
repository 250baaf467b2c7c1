# SPDX-License-Identifier: Apache-2.0
"""A layer into a new image, by the rules by which Windows' own tools import one (``docs/formats/cim.md``)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from lamella.changes.contracts import Mine, Seen
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import Buffer, Content, Entry, Kind, Windows, dense, implied_directory
from lamella.changes.semantics import prune
from lamella.errors import AlreadyExists, InvalidInput, MissingFacet, NotFound, from_os
from lamella.formats.cim.structures import Stream as CimStream
from lamella.formats.cim.writer import CimWriter, Metadata
from lamella.formats.ntfs import attributes as bits
from lamella.formats.ntfs import extended_attributes, filetime
from lamella.formats.ntfs.extended_attributes import ExtendedAttribute
from lamella.layers.cim import special
from lamella.layers.cim.files import CimLayer, NewCim
from lamella.layers.cim.tree import ATTRIBUTES
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath, join, split

NO_DESCRIPTOR: Final = bytes.fromhex("01000480") + bytes(16)
"""What a file without a security descriptor gets, since an image must have one: everybody may do everything."""

_PLAIN: Final = Metadata(security=NO_DESCRIPTOR)
"""What a file has that no layer states."""

_STEP: Final = 1 << 20
_HELD: Final = sum(attribute for _, attribute in ATTRIBUTES) | bits.DIRECTORY | bits.REPARSE_POINT | bits.NORMAL


class CimSink:
    """Applies a layer to the new image ``layer``, which is forked from the nearest of ``parents``.

    The image appears with `commit`; `abort` leaves nothing. Hives and boot files lie in `CimLayer.folder` too, and a
    layer with deltas of hives gets there, and in its image, what they come to over the parent's. ``windows`` False
    leaves all that out: then any tree will do as a base layer. Whiteouts delete. Equal contents are kept once.
    """

    def __init__(
        self,
        layer: CimLayer,
        *,
        parents: LayerStack[CimLayer] | None = None,
        windows: bool = True,
        durable: bool = False,
        losses: Losses | None = None,
    ) -> None:
        """Start the image. Raises AlreadyExists, NotFound, InvalidInput, as `NewCim` does."""
        self._losses = losses if losses is not None else Losses()
        self._parents = parents.nearest_first() if parents is not None else ()
        self._windows = windows
        self._durable = durable
        self._folder = layer.folder
        self._made_folder = False
        self._new = NewCim(layer, self._parents[0] if self._parents else None)
        self._writer: CimWriter = self._new.writer
        self._waiting: dict[str, tuple[LayerPath, Metadata]] = {}
        """Files that are put into the image at the end, from the host's: path in upper case -> path, metadata."""
        self._links: list[tuple[LayerPath, LayerPath]] = []

    @property
    def view(self) -> CimSink:
        """See `Sink.view`."""
        return self

    @property
    def layered(self) -> bool:
        """See `Sink.layered`."""
        return bool(self._parents)

    def seen(self, path: LayerPath) -> Seen | None:
        """See `View.seen`. Reparse points are no way to anything, so what is put behind one is refused."""
        record = self._writer.lookup(path)
        if record is None:
            return Seen(Kind.FILE) if path.upper() in self._waiting else None
        return Seen(Kind.DIRECTORY if record.is_directory and not record.reparse else Kind.FILE)

    def put(self, entry: Entry, content: Content | None) -> bool | None:
        """See `Sink.put`. Raises MissingFacet, InvalidInput (a name or kind that an image has not)."""
        path = entry.path
        metadata = self._metadata(entry)
        replaced = self._replaced(path, entry.kind)
        if self._waiting:
            self._waiting.pop(path.upper(), None)
        if entry.kind is Kind.FILE:
            if self._windows and special.is_special(path):
                self._to_host(path, entry, content)
                self._waiting[path.upper()] = path, metadata
            else:
                self._writer.put(path, metadata, self._stored(entry, content))
        elif entry.kind is Kind.DIRECTORY or (entry.kind is Kind.SYMLINK and _is_directory(entry)):
            self._writer.put(path, metadata, None)
        else:
            self._writer.put(path, metadata, self._writer.zeros(0))
        return replaced

    def link(self, path: LayerPath, target: LayerPath) -> bool | None:
        """See `Sink.link`: a link to a file that waits for the end waits too."""
        if path.upper() in self._waiting or (self._windows and special.is_special(path)):
            raise InvalidInput(f"hard link {path!r}: the host needs a file of its own there")
        replaced = self._replaced(path, Kind.FILE)
        if target.upper() in self._waiting:
            self._links.append((path, target))
        else:
            record = self._writer.lookup(target)
            if record is None:
                raise NotFound(f"hard link {path!r}: its target {target!r} is not there")
            self._writer.link(path, target)
        return replaced

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        """See `Sink.stream`."""
        if path.upper() in self._waiting:
            raise InvalidInput(f"alternate data stream {name!r} of {path!r}: the host's file cannot have one")
        self._writer.stream(path, name, self._writer.store(content.chunks(), content.size))

    def whiteout(self, path: LayerPath) -> bool | None:
        """See `Sink.whiteout`: what is not there need not be deleted."""
        if self._writer.touched(path):
            # `apply` names what the layer itself has put only where the two differ in case.
            record = self._writer.lookup(path)
            if record is not None and record.is_directory:
                raise InvalidInput(f"{path!r} is removed and put: the names differ in case alone")
            return None
        try:
            self._writer.delete(path)
        except (NotFound, InvalidInput):
            return None
        return True

    def opaque(self, path: LayerPath, mine: Mine) -> bool | None:
        """See `Sink.opaque`."""
        return prune(self, path, mine)

    def names(self, directory: LayerPath) -> Iterable[tuple[str, bool]]:
        """See `FlatPlace.names`."""
        return [(name, record.is_directory) for name, record in self._writer.names(directory)]

    def remove(self, path: LayerPath) -> None:
        """See `FlatPlace.remove`."""
        self._writer.delete(path)

    def commit(self) -> Losses:
        """Do what waits for the end, and give the image its name."""
        for path, metadata in self._waiting.values():
            self._from_host(path, metadata)
        for path, target in self._links:
            self._writer.link(path, target)
        if self._windows:
            if self._parents:
                self._merge_hives()
            else:
                self._finish_base()
        self._new.commit(durable=self._durable)
        return self._losses

    def abort(self) -> None:
        """See `Sink.abort`."""
        self._new.abort()
        if self._made_folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    # The end

    def _finish_base(self) -> None:
        """The cumulative hives of a base layer are those of its configuration."""
        self._writer.put("Hives", _PLAIN, None)
        self._directory("Hives")
        for name, stem in special.HIVES.items():
            source = special.find(self._folder, f"{special.CONFIG}/{name}")
            if source is None:
                raise InvalidInput(
                    f"the layer has no parent and no registry hive {special.CONFIG}/{name}, as a base layer must",
                    hint="give its parent",
                )
            _host_link(source, self._folder / "Hives" / f"{stem}_BASE")
            self._writer.link(f"Hives/{stem}_BASE", f"{special.CONFIG}/{name}")
        self._write_host("layout", [special.LAYOUT])
        self._from_host(LayerPath("layout"), _PLAIN)

    def _merge_hives(self) -> None:
        """A delta is laid over the parent's cumulative hive; where there is none, that hive is this layer's too."""
        for stem in special.HIVES.values():
            delta = special.find(self._folder, f"Hives/{stem}_DELTA")
            base = special.find(self._parents[0].folder, f"Hives/{stem}_BASE")
            if delta is None and base is None:
                continue
            self._directory("Hives")
            result = self._folder / "Hives" / f"{stem}_BASE"
            if delta is None:
                assert base is not None  # noqa: S101  # one of them is there
                _host_link(base, result)
                continue
            if base is None:
                raise NotFound(
                    f"the parent {os.fspath(self._parents[0].path)!r} has no hive {stem}_BASE for this layer's delta"
                )
            special.merge_hive(base, delta, result)
            self._from_host(join("Hives", result.name), _PLAIN)

    # The host's files

    def _to_host(self, path: str, entry: Entry, content: Content | None) -> None:
        size = self._write_host(path, _dense(content))
        if size != entry.size:
            raise InvalidInput(f"content of {path!r}: expected {entry.size} bytes, got {size}")

    def _write_host(self, path: str, chunks: Iterable[Buffer]) -> int:
        parent = path.rpartition("/")[0]
        self._directory(parent)
        target = self._folder / path
        done = 0
        try:
            target.unlink(missing_ok=True)
            with target.open("xb", buffering=0) as file:
                for chunk in chunks:
                    view = memoryview(chunk)
                    done += len(view)
                    while view:
                        view = view[file.write(view) :]
                if self._durable:
                    os.fsync(file.fileno())
        except OSError as problem:
            raise from_os(problem, f"write {os.fspath(target)!r}") from problem
        return done

    def _directory(self, path: str) -> None:
        """A directory in the folder, which is ours: nothing in it is a link."""
        try:
            if not self._made_folder:
                self._folder.mkdir(0o700)
                self._made_folder = True
            (self._folder / path).mkdir(parents=True, exist_ok=True)
        except FileExistsError as problem:
            raise AlreadyExists(f"{os.fspath(self._folder)!r} exists", hint="it belongs to another image") from problem
        except OSError as problem:
            raise from_os(problem, f"make {os.fspath(self._folder / path)!r}") from problem

    def _from_host(self, path: LayerPath, metadata: Metadata) -> None:
        source = self._folder / path
        try:
            size = source.stat().st_size
            stream = self._writer.store(_pieces(source), size)
        except OSError as problem:
            raise from_os(problem, f"read {os.fspath(source)!r}") from problem
        parent = split(path)[0]
        if parent and self._writer.lookup(parent) is None:
            self._writer.put(parent, _PLAIN, None)
        self._writer.put(path, metadata, stream)

    # One file

    def _stored(self, entry: Entry, content: Content | None) -> CimStream:
        if content is None:
            return self._writer.zeros(0)
        if content.extents is not None and not content.extents:
            return self._writer.zeros(entry.size)
        return self._writer.store(_dense(content), entry.size)

    def _replaced(self, path: LayerPath, kind: Kind) -> bool | None:
        record = self._writer.lookup(path)
        if record is None:
            return None
        is_directory = record.is_directory and not record.reparse
        if is_directory and kind is not Kind.DIRECTORY:
            inside = path.upper() + "/"
            for waiting in [each for each in self._waiting if each.startswith(inside)]:
                del self._waiting[waiting]
        return bool(record.reparse) or is_directory != (kind is Kind.DIRECTORY)

    def _metadata(self, entry: Entry) -> Metadata:
        windows = entry.windows
        path = entry.path
        if windows is None:
            if entry != implied_directory(path):
                raise MissingFacet(path, "Windows")
            record = self._writer.lookup(path)
            if record is not None and record.reparse:
                raise InvalidInput(f"{path!r} is a reparse point, and nothing can be put behind it")
            return _PLAIN
        if entry.kind not in (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK):
            raise InvalidInput(f"{path!r} is a {entry.kind.value}, which Windows has not")
        lost = windows.attributes & ~_HELD
        if lost:
            words = ", ".join(bits.names(lost))
            self._losses.record(Loss(path, f"attributes {words}", "an image has no place for them"))
        return _described(windows, self._reparse(entry, windows))

    def _reparse(self, entry: Entry, windows: Windows) -> bytes:
        if windows.reparse is not None:
            return windows.reparse
        if entry.kind is Kind.SYMLINK:
            raise MissingFacet(entry.path, "Windows (a reparse point)")
        return b""


def _described(windows: Windows, reparse: bytes) -> Metadata:
    written = windows.write_time if windows.write_time is not None else 0

    def ticks(time: int | None) -> int:
        return max(0, filetime.ticks_from_ns(written if time is None else time))

    extended = [
        ExtendedAttribute(name.encode("latin-1"), windows.extended_attributes[name])
        for name in sorted(windows.extended_attributes)
    ]
    return Metadata(
        sum(flag for flag, attribute in ATTRIBUTES if windows.attributes & attribute),
        ticks(windows.creation_time),
        ticks(windows.write_time),
        ticks(windows.change_time),
        ticks(windows.access_time),
        windows.security_descriptor or NO_DESCRIPTOR,
        extended_attributes.encode(extended) if extended else b"",
        reparse,
    )


def _is_directory(entry: Entry) -> bool:
    return entry.windows is not None and bool(entry.windows.attributes & bits.DIRECTORY)


def _dense(content: Content | None) -> Iterator[Buffer]:
    return iter(()) if content is None else dense(content)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_STEP):
            yield piece


def _host_link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as problem:
        raise from_os(problem, f"link {os.fspath(target)!r}") from problem
