# SPDX-License-Identifier: Apache-2.0
"""A layer into a new image that is forked from its parent's; the rules are those of `layers.cim.import_rules`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from uuid import UUID

from lamella.changes.contracts import Mine, Seen
from lamella.changes.losses import Losses
from lamella.changes.model import Content, Entry, Kind, implied_directory
from lamella.changes.whiteouts import prune
from lamella.errors import InvalidInput, MissingFacet, NotFound
from lamella.layers.cim.host_files import HostFiles
from lamella.layers.cim.image import CimLayer
from lamella.layers.cim.import_rules import PLAIN_DIRECTORY, CimImport, FileMetadata, ForkWriter
from lamella.layers.cim.writer import PortableWriter
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath


class CimSink(CimImport):
    """Applies a layer to the new image ``layer``, which is forked from the nearest of ``parents``.

    The image appears with `commit`; `abort` leaves nothing. Hives and boot files lie in `CimLayer.folder` too, and a
    layer with deltas of hives gets there, and in its image, what they come to over the parent's. ``windows`` False
    leaves all that out: then any tree will do as a base layer. Whiteouts delete. Equal contents are kept once.

    The image's GUID follows from its content, unless there is a ``guid``. ``contents`` is asked at the end for what
    stands for all contents that the sink was given, as a diff id does; without it they are read again for that.
    """

    def __init__(
        self,
        layer: CimLayer,
        *,
        parents: LayerStack[CimLayer] | None = None,
        windows: bool = True,
        guid: UUID | None = None,
        contents: Callable[[], bytes] | None = None,
        durable: bool = False,
        losses: Losses | None = None,
        writer: ForkWriter | None = None,
    ) -> None:
        """Start the image, by ``writer`` where one is given. Raises AlreadyExists, NotFound, InvalidInput."""
        parent = parents.nearest_first()[0] if parents else None
        if writer is None:
            writer = PortableWriter(layer, parent, guid=guid, contents=contents, durable=durable)
        self._fork = writer
        self._has_parent = parent is not None
        host = HostFiles(layer.folder, own=layer.own_folder is None, durable=durable)
        super().__init__(self._fork, host, None if parent is None else parent.folder, windows=windows, losses=losses)

    @property
    def view(self) -> CimSink:
        return self

    @property
    def layered(self) -> bool:
        return self._has_parent

    def seen(self, path: LayerPath) -> Seen | None:
        """See `View.seen`. Reparse points are no way to anything, so what is put behind one is refused."""
        found = self._fork.seen(path)
        return Seen(Kind.FILE) if found is None and self.waits(path) else found

    def put(self, entry: Entry, content: Content | None) -> bool | None:
        """See `Sink.put`. Raises MissingFacet, InvalidInput (a name or kind that an image has not)."""
        path, windows = entry.path, entry.windows
        metadata = self._implied(entry) if windows is None else self.metadata(entry, windows)
        if len(path) in self._host_lengths and self.is_of_host(entry):
            replaced = self._replaced(path, entry.kind)
            self.put_of_host(entry, content, metadata)
            return replaced
        found = self.put_file(entry, content, metadata)
        if found is None and len(path) not in self._lengths and path.isascii():
            return None  # nothing was there, and nothing waits for the end
        return self._gave_way(path, entry.kind, found)

    def link(self, path: LayerPath, target: LayerPath) -> bool | None:
        """See `Sink.link`: a link to a file that waits for the end waits too."""
        self.check_link(path)
        replaced = self._replaced(path, Kind.FILE)
        if self.waits(target):
            self.queue_link(path, target)
        elif self._fork.seen(target) is None:
            raise NotFound(f"hard link {path!r}: its target {target!r} is not there")
        else:
            self._fork.link(path, target)
        return replaced

    def whiteout(self, path: LayerPath) -> bool | None:
        """See `Sink.whiteout`: what is not there need not be deleted."""
        if self._fork.touched(path):
            # `apply` names what the layer itself has put only where the two differ in case.
            found = self._fork.seen(path)
            if found is not None and found.kind is Kind.DIRECTORY:
                raise InvalidInput(f"{path!r} is removed and put: the names differ in case alone")
            return None
        try:
            self._fork.delete(path)
        except (NotFound, InvalidInput):
            return None
        return True

    def opaque(self, path: LayerPath, mine: Mine) -> bool | None:
        return prune(self, path, mine)

    def names(self, directory: LayerPath) -> Iterable[tuple[str, bool]]:
        return self._fork.names(directory)

    def remove(self, path: LayerPath) -> None:
        self._fork.delete(path)

    def _replaced(self, path: LayerPath, kind: Kind) -> bool | None:
        return self._gave_way(path, kind, self._fork.seen(path))

    def _gave_way(self, path: LayerPath, kind: Kind, found: Seen | None) -> bool | None:
        is_directory = found is not None and found.kind is Kind.DIRECTORY
        self.forget(path, inside=is_directory and kind is not Kind.DIRECTORY)
        if found is None:
            return None
        return is_directory != (kind is Kind.DIRECTORY)

    def _implied(self, entry: Entry) -> FileMetadata:
        path = entry.path
        if entry != implied_directory(path):
            raise MissingFacet(path, "Windows")
        if self._fork.is_reparse_point(path):
            raise InvalidInput(f"{path!r} is a reparse point, and nothing can be put behind it")
        return PLAIN_DIRECTORY
