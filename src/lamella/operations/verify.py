# SPDX-License-Identifier: Apache-2.0
"""Everything that an image promises about its bytes, checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from lamella.changes.apply import apply
from lamella.changes.contracts import Source
from lamella.changes.model import EMPTY, Change, Put, Stream
from lamella.changes.tree import MemorySink, MemoryTree
from lamella.digests import Digest, parse_digest
from lamella.errors import Cancelled, DigestMismatch, LamellaError, NotFound
from lamella.images.contract import ImageReader
from lamella.images.graph import ImageGraph, Kind, Node, kind_of, only_entries
from lamella.images.transports import ImageName, parse_image_name
from lamella.oci.descriptor import Descriptor
from lamella.oci.mediatypes import CONFIGS, FOREIGN_LAYERS, layer_compression
from lamella.operations.layers.read import changes_of_blob
from lamella.streams.blob_reader import BlobReader

if TYPE_CHECKING:
    from lamella.layers.windows.casefold import Spelling
    from lamella.oci.manifest import Manifest
    from lamella.progress import Cancellation, Progress

_CHUNK: Final = 1 << 20


class Problem(Struct, frozen=True):
    """One promise that does not hold."""

    blob: Digest
    """The blob that it was noticed at."""
    why: str

    def __str__(self) -> str:
        return f"{self.blob}: {self.why}"


class Verified(Struct):
    """What a check came to."""

    images: int = 0
    blobs: int = 0
    size: int = 0
    """Bytes that were read."""
    problems: list[Problem] = field(default_factory=list)
    foreign: list[Digest] = field(default_factory=list)
    """Layers that need not be there, and are not."""

    @property
    def sound(self) -> bool:
        """Whether every promise holds."""
        return not self.problems


def verify(
    name: str | ImageName,
    *,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Verified:
    """Check an image, for all its platforms; without a tag, every image of the place, and in a layout every blob.

    Digest and size of each blob are compared, documents are read strictly, each layer's diff id is compared and its
    tar applied to a tree in memory without content, on top of the layers below it, as one of Windows where the image
    is for that. A problem is noted and does not keep the rest from being checked. Raises what opening the place raises,
    and Cancelled.
    """
    from lamella.images.resolve import find
    from lamella.images.transports import open_reader

    name = parse_image_name(name) if isinstance(name, str) else name
    with open_reader(name) as reader:
        check = _Check(reader, progress, cancel)
        if name.tag is None and name.position is None:
            entries = [image.descriptor for image in reader.images()]
        else:
            entries = find(reader, name.tag, name.position)
        for entry in entries:
            check.entry(entry)
        if name.form == "oci" and name.tag is None and name.position is None:
            for blob in _stored_blobs(name.path):
                check.stored(blob)
        return check.found


def _stored_blobs(layout: str) -> Iterator[Descriptor]:
    """The blobs that lie in a layout, referred to or not."""
    blobs = os.path.join(layout, "blobs")
    for algorithm in sorted(os.listdir(blobs)) if os.path.isdir(blobs) else ():
        directory = os.path.join(blobs, algorithm)
        for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
            try:
                digest = parse_digest(f"{algorithm}:{name}")
            except LamellaError:
                continue
            size = os.stat(os.path.join(directory, name), follow_symlinks=False).st_size
            yield Descriptor(media_type="application/octet-stream", digest=digest, size=size)


class _Check:
    """One run: its findings, and the blobs that have been checked."""

    def __init__(self, reader: ImageReader, progress: Progress | None, cancel: Cancellation | None) -> None:
        self.found = Verified()
        self._reader = reader
        self._progress = progress
        self._cancel = cancel
        self._read: set[tuple[Digest, Kind]] = set()
        """The same bytes may be listed as a document and as a blob."""

    def entry(self, entry: Descriptor) -> None:
        """Check an entry of the place and all that it leads to, except what earlier entries led to."""
        if not self._is_new(entry):
            return
        fresh: set[tuple[Digest, Kind]] = set()

        def select(node: Node) -> Iterable[Descriptor]:
            fresh.add((node.digest, node.kind))
            if node.kind is Kind.MANIFEST:
                node.manifest  # noqa: B018  # its errors belong to the walk; `_image` checks config and layers
            return filter(self._is_new, only_entries(node))

        for node in ImageGraph(self._reader, cancel=self._cancel).walk([entry], select, self._record):
            if node.kind is Kind.BLOB:
                self._blob(node.descriptor)
                continue
            self._count(node.descriptor)
            if node.kind is Kind.MANIFEST:
                self._image(node.descriptor, node.manifest)
        self._read |= fresh

    def stored(self, blob: Descriptor) -> None:
        """Check the digest of a blob in the layout, unless an image led to it."""
        if not any((blob.digest, kind) in self._read for kind in Kind):
            self._blob(blob)

    def _is_new(self, descriptor: Descriptor) -> bool:
        return (descriptor.digest, kind_of(descriptor)) not in self._read

    def _blob(self, blob: Descriptor) -> None:
        if not self._is_new(blob):
            return
        self._read.add((blob.digest, kind_of(blob)))
        try:
            self._digest(blob)
        except LamellaError as error:
            self._record(blob, error)
        else:
            self._count(blob)

    def _image(self, entry: Descriptor, manifest: Manifest) -> None:
        from lamella.oci.config import decode_config, pair_layers
        from lamella.oci.index import is_image_entry

        image = is_image_entry(entry)  # what is about one, as attestations are, has its media types all the same
        self.found.images += image
        raw = self._config(manifest.config)
        if manifest.config.media_type not in CONFIGS or not image:
            for layer in manifest.layers:  # an artifact: blobs of any type
                self._blob(layer)
            return
        pairs: list[tuple[Descriptor, Digest | None]] = [(layer, None) for layer in manifest.layers]
        windows = False
        if raw is not None:
            try:
                config = decode_config(raw)
                windows = config.os == "windows"
                pairs = list(pair_layers(manifest, config))
            except LamellaError as error:
                self._record(entry, error)
        if self._progress is not None:
            self._progress.start("verify", sum(layer.size for layer, _ in pairs))
        try:
            tree: MemoryTree | None = MemoryTree(streams=windows)
            spelling = _spelling() if windows else None
            for layer, diff_id in pairs:
                tree = self._layer(layer, diff_id, tree, spelling)
        finally:
            if self._progress is not None:
                self._progress.finish()

    def _config(self, config: Descriptor) -> bytes | None:
        new = self._is_new(config)
        self._read.add((config.digest, Kind.BLOB))
        try:
            raw = self._reader.read_document(config)
        except LamellaError as error:
            self._record(config, error)
            return None
        if new:
            self._count(config)
        return raw

    def _layer(
        self, layer: Descriptor, diff_id: Digest | None, tree: MemoryTree | None, spelling: Spelling | None
    ) -> MemoryTree | None:
        """The tree with ``layer`` on it; None once a layer is broken: what comes later cannot be tried on anything."""
        new = (layer.digest, Kind.BLOB) not in self._read
        self._read.add((layer.digest, Kind.BLOB))
        try:
            with (
                self._reader.open_layer(layer) as file,
                BlobReader(
                    file,
                    compression=layer_compression(layer.media_type),
                    digest=layer.digest,
                    size=layer.size,
                    diff_id=diff_id,
                    progress=None if self._progress is None else self._progress.advance,
                    cancel=self._cancel,
                ) as blob,
            ):
                changes = _without_content(changes_of_blob(blob, spelling=spelling))
                if tree is not None:
                    apply(changes, MemorySink(tree), cancel=self._cancel)
                else:
                    for _ in changes:
                        pass
                blob.finish()
        except Cancelled:
            raise
        except NotFound as error:
            if layer.media_type in FOREIGN_LAYERS:
                self.found.foreign.append(layer.digest)
            else:
                self._record(layer, error)
            return None
        except LamellaError as error:
            self._record(layer, self._cause(layer, error))
            return None
        if new:
            self._count(layer)
        return tree

    def _cause(self, layer: Descriptor, error: LamellaError) -> LamellaError:
        """Where the blob's bytes are not the promised ones, that; nobody needs to hear what they look like."""
        try:
            self._digest(layer)
        except Cancelled:
            raise
        except LamellaError as deeper:
            return deeper
        return error

    def _digest(self, blob: Descriptor) -> None:
        state = hashlib.new(blob.digest.algorithm)
        with self._reader.open_layer(blob) as file:
            while chunk := file.read(_CHUNK):
                if self._cancel is not None:
                    self._cancel.check()
                state.update(chunk)
        actual = Digest.finish(state)
        if actual != blob.digest:
            raise DigestMismatch("its bytes", expected=blob.digest, actual=actual)

    def _record(self, blob: Descriptor, error: LamellaError) -> None:
        if isinstance(error, Cancelled):
            raise error
        self.found.problems.append(Problem(blob.digest, str(error)))

    def _count(self, blob: Descriptor) -> None:
        self.found.blobs += 1
        self.found.size += blob.size


def _spelling() -> Spelling:
    from lamella.layers.windows.casefold import Spelling

    return Spelling()


def _without_content(changes: Source) -> Iterator[Change]:
    """The same changes with files that take no memory; what a tar has of their content is passed over."""
    for change in changes:
        if type(change) is Put and change.content is not None:
            yield Put(change.entry, EMPTY)
        elif type(change) is Stream:
            yield Stream(change.path, change.name, EMPTY)
        else:
            yield change
