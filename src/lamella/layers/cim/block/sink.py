# SPDX-License-Identifier: Apache-2.0
"""A layer into a new block image, by the rules of import (`lamella.layers.cim.import_rules`)."""

from __future__ import annotations

from typing import Final

from lamella.changes.contracts import Mine
from lamella.changes.limits import Implied
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import Content, Entry, Kind, implied_directory
from lamella.errors import InvalidInput, MissingFacet, Unsupported
from lamella.host.windows.cimfs import Cimfs
from lamella.layers.cim.block.layer import BlockCimLayer, BlockKind, BlockOptions, system_calls
from lamella.layers.cim.block.writer import BlockWriter
from lamella.layers.cim.host_files import HostFiles
from lamella.layers.cim.import_rules import PLAIN_DIRECTORY, CimImport, QueuedLink
from lamella.layers.stack import LayerStack
from lamella.paths import ROOT, LayerPath, split

_UTILITY: Final = "UtilityVM"
_FLATTEN: Final = "flatten the image, or keep it in forked images"


class BlockCimSink(CimImport):
    """Applies a layer to the new image ``layer``, that will be merged with those of ``parents`` when it is mounted.

    The image holds what the layer states and nothing of its parents, which nobody but Windows can look into. So a
    whiteout becomes a tombstone, and a hard link, once all files are there, a link in the image or one across images.
    Two things have no form there, and are refused: an opaque directory, and a directory put where one is removed.

    Everything is written by Windows' own calls; elsewhere making one raises Unsupported.
    """

    def __init__(
        self,
        layer: BlockCimLayer,
        *,
        parents: LayerStack[BlockCimLayer] | None = None,
        options: BlockOptions | None = None,
        windows: bool = True,
        losses: Losses | None = None,
        calls: Cimfs | None = None,
    ) -> None:
        """Begin the image. Raises Unsupported, InvalidInput (parents of another kind), AlreadyExists."""
        calls = calls if calls is not None else system_calls()
        if layer.kind is not BlockKind.FILE:
            raise Unsupported("layers are imported into block images in files, not on devices")
        below = parents.nearest_first() if parents is not None else ()
        for parent in below:
            if parent.kind is not layer.kind:
                raise InvalidInput(
                    f"the parent {str(parent.block)!r} is a {parent.kind.value}, and the layer a {layer.kind.value}"
                )
        self._layered = bool(below)
        self._kinds: dict[str, Kind] = {}
        """What the layer has put or linked, by path in upper case."""
        self._hidden: set[str] = set()
        """What it has removed from its parents."""
        self._warned = False
        self._implied = Implied()
        super().__init__(
            BlockWriter(calls, layer, options or BlockOptions()),
            HostFiles(layer.folder, own=False),
            below[0].folder if below else None,
            windows=windows,
            losses=losses,
        )

    @property
    def view(self) -> None:
        """See `Sink.view`: nobody can look into the parents."""

    @property
    def layered(self) -> bool:
        """See `Sink.layered`."""
        return self._layered

    def put(self, entry: Entry, content: Content | None) -> None:
        """See `Sink.put`. Raises MissingFacet, InvalidInput, Unsupported (a directory in place of a removed one)."""
        path = entry.path
        if entry.windows is None:
            if entry != implied_directory(path):
                raise MissingFacet(path, "Windows")
            self._imply(path)
            return
        if not path:
            self._losses.record(Loss(ROOT, "metadata of the root", "a block image has no place for it"))
            return
        metadata = self.metadata(entry, entry.windows)
        self._enter(path, entry.kind)
        self.forget(path)
        if self.is_of_host(entry):
            self.put_of_host(entry, content, metadata)
        else:
            self.put_file(entry, content, metadata)

    def link(self, path: LayerPath, target: LayerPath) -> None:
        """See `Sink.link`. Whether the target is of this layer is known at the end."""
        self.check_link(path)
        if path.upper() in self._kinds:
            raise InvalidInput(f"hard link {path!r}: the layer has put something there")
        self._enter(path, Kind.FILE)
        self.queue_link(path, target)

    def make_link(self, link: QueuedLink) -> None:
        """See `CimImport.make_link`: within the image if the target is in it by then, else across images."""
        kind = self._kinds.get(link.target.upper())
        if kind is Kind.DIRECTORY:
            raise InvalidInput(f"hard link {link.path!r}: its target {link.target!r} is a directory")
        if kind is not None:
            self._writer.link(link.path, link.target)
        elif not self._layered:
            raise InvalidInput(f"hard link {link.path!r}: its target {link.target!r} is not there")
        else:
            self._writer.merge_link(link.path, link.target)

    def whiteout(self, path: LayerPath) -> None:
        """See `Sink.whiteout`. A file that the layer puts hides what is below by itself."""
        key = path.upper()
        if self._kinds.get(key) is Kind.DIRECTORY:
            raise _no_opaque(path)
        if key not in self._kinds and key not in self._hidden:
            self._hidden.add(key)
            self._writer.tombstone(path)

    def opaque(self, path: LayerPath, mine: Mine) -> bool | None:  # noqa: ARG002  # nothing can be hidden so
        """See `Sink.opaque`."""
        raise _no_opaque(path)

    def _enter(self, path: LayerPath, kind: Kind) -> None:
        """Note a file, once what it lies in is there."""
        key = path.upper()
        known = self._kinds.get(key)
        if known is not None and (known is Kind.DIRECTORY or kind is Kind.DIRECTORY) and known is not kind:
            raise InvalidInput(f"{path!r} is both a directory and none")
        if known is None:
            if kind is Kind.DIRECTORY and key in self._hidden:
                raise _no_opaque(path)
            parent = split(path)[0]
            if parent and self._kinds.get(parent.upper()) is not Kind.DIRECTORY:
                self._imply(parent)
            self._kinds[key] = kind
        if self._layered and not self._warned and path.partition("/")[0] == _UTILITY:
            self._warned = True
            why = "a block image's is not merged with that of its parents"
            self._losses.record(Loss(LayerPath(_UTILITY), "utility VM of the layers below", why))

    def _imply(self, path: LayerPath) -> None:
        """Directories that the layer does not state, since all that a file lies in must be in the image."""
        missing = []
        while path and self._kinds.get(path.upper()) is not Kind.DIRECTORY:
            missing.append(path)
            if self._layered:
                why = "the layer does not state the directory, and the image needs it"
                self._losses.record(Loss(path, "metadata of the directory below", why))
            path = split(path)[0]
        for number, path in enumerate(reversed(missing)):
            if number:
                self._implied.add(path)
            self._enter(path, Kind.DIRECTORY)
            self._writer.put(path, PLAIN_DIRECTORY, 0, None)

    def _finish_base(self) -> None:
        super()._finish_base()
        for path in self._queue:
            self._kinds.setdefault(path, Kind.FILE)


def _no_opaque(path: str) -> Unsupported:
    return Unsupported(
        f"{path!r} is a directory of which nothing that lies below is to be seen; a block image cannot say that",
        hint=_FLATTEN,
    )
