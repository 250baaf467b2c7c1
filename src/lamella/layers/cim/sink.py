# SPDX-License-Identifier: Apache-2.0
"""Applies a layer to a new image that is forked from its parent's, by the rules in `layers.cim.import_rules`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from uuid import UUID

from lamella.changes.contracts import Seen
from lamella.changes.losses import Losses
from lamella.changes.model import Content, Entry, Kind, dense, implied_directory
from lamella.changes.whiteouts import PutRecord, prune
from lamella.errors import InvalidInput, MissingFacet, NotFound
from lamella.layers.cim.host_files import HostFiles
from lamella.layers.cim.image import CimLayer
from lamella.layers.cim.import_rules import PLAIN_DIRECTORY, CimImport, FileMetadata, ForkWriter
from lamella.layers.cim.tree import CimTree
from lamella.layers.cim.writer import PortableWriter
from lamella.layers.stack import LayerStack
from lamella.layers.windows.layout import CONFIG, HIVE_LOGS
from lamella.paths import LayerPath


class CimSink(CimImport):
    """Applies a layer to the new image ``layer``, forked from the nearest of ``parents``.

    The image appears at `commit`; `abort` leaves nothing. Hives and boot files are also written to `CimLayer.folder`; a
    layer with hive deltas gets the merged hives there and in its image. ``windows`` False omits that, so that any tree
    is accepted as a base layer. Whiteouts delete files. Equal contents are stored once.
    """

    def __init__(
        self,
        layer: CimLayer,
        *,
        parents: LayerStack[CimLayer] | None = None,
        windows: bool = True,
        guid: UUID | None = None,
        contents: Callable[[], bytes] | None = None,
        losses: Losses | None = None,
        writer: ForkWriter | None = None,
        dirty: bool = False,
    ) -> None:
        """Start the image; ``writer`` defaults to a `PortableWriter`. Raises AlreadyExists, NotFound, InvalidInput."""
        parent = parents.nearest_first()[0] if parents else None
        if writer is None:
            writer = PortableWriter(layer, parent, guid=guid, contents=contents)
        self._fork = writer
        self._parent = parent
        host = HostFiles(layer.folder, own=layer.own_folder is None)
        super().__init__(
            self._fork, host, None if parent is None else parent.folder, windows=windows, losses=losses, dirty=dirty
        )

    @property
    def view(self) -> CimSink:
        return self

    @property
    def layered(self) -> bool:
        return self._parent is not None

    def seen(self, path: LayerPath) -> Seen | None:
        """A reparse point is a file, so files below one are refused."""
        found = self._fork.seen(path)
        return Seen(Kind.FILE) if found is None and self.is_queued(path) else found

    def put(self, entry: Entry, content: Content | None) -> bool | None:
        """Raises MissingFacet, InvalidInput (a name or kind that an image cannot have), SizeMismatch."""
        path, windows = entry.path, entry.windows
        metadata = self._implied(entry) if windows is None else self.metadata(entry, windows)
        if len(path) in self._host_lengths and self.is_host_file(entry):
            replaced = self._replaced(path, entry.kind)
            self.put_host_file(entry, content, metadata)
            return replaced
        found = self.put_file(entry, content, metadata)
        if found is None and len(path) not in self._lengths and path.isascii():
            return None  # nothing was replaced, and nothing is queued
        return self._drop_replaced(path, entry.kind, found)

    def link(self, path: LayerPath, target: LayerPath) -> bool | None:
        """A link to a queued file is queued too. Raises NotFound, InvalidInput."""
        self.check_link(path)
        replaced = self._replaced(path, Kind.FILE)
        if self.is_queued(target):
            self.queue_link(path, target)
        elif self._fork.seen(target) is None:
            raise NotFound(f"hard link {path!r}: its target {target!r} does not exist")
        else:
            self._fork.link(path, target)
        return replaced

    def whiteout(self, path: LayerPath) -> bool | None:
        """A whiteout of a missing file has no effect."""
        if self._fork.touched(path):
            # `apply` skips whiteouts of the layer's own files unless the two differ in case.
            found = self._fork.seen(path)
            if found is not None and found.kind is Kind.DIRECTORY:
                raise InvalidInput(f"the layer removes and puts {path!r}: the two names differ in case only")
            return None
        try:
            self._fork.delete(path)
        except (NotFound, InvalidInput):
            return None
        return True

    def opaque(self, path: LayerPath, record: PutRecord) -> bool | None:
        return prune(self, path, record)

    def names(self, directory: LayerPath) -> Iterable[tuple[str, bool]]:
        return self._fork.names(directory)

    def remove(self, path: LayerPath) -> None:
        self._fork.delete(path)

    def hive_logs(self, name: str) -> Iterator[bytes]:
        if self._parent is None:
            return
        with closing(CimTree(self._parent)) as tree:
            for suffix in HIVE_LOGS:
                path = LayerPath(f"{CONFIG}{name}{suffix}")
                entry = tree.lookup(path)
                if entry is not None and entry.kind is Kind.FILE:
                    yield b"".join(map(bytes, dense(tree.open(path))))

    def _replaced(self, path: LayerPath, kind: Kind) -> bool | None:
        return self._drop_replaced(path, kind, self._fork.seen(path))

    def _drop_replaced(self, path: LayerPath, kind: Kind, found: Seen | None) -> bool | None:
        is_directory = found is not None and found.kind is Kind.DIRECTORY
        self.drop_queued(path, inside=is_directory and kind is not Kind.DIRECTORY)
        if found is None:
            return None
        return is_directory != (kind is Kind.DIRECTORY)

    def _implied(self, entry: Entry) -> FileMetadata:
        path = entry.path
        if entry != implied_directory(path):
            raise MissingFacet(path, "Windows")
        if self._fork.is_reparse_point(path):
            raise InvalidInput(f"{path!r} is a reparse point: no file can be put below it")
        return PLAIN_DIRECTORY
