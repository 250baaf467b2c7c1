# SPDX-License-Identifier: Apache-2.0
"""Verification of images: sizes, digests, documents, diff ids and the tars of layers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from lamella.changes.apply import apply
from lamella.changes.contracts import Source
from lamella.changes.job import Job
from lamella.changes.model import EMPTY, Change, Put, Stream
from lamella.changes.tree import MemorySink, MemoryTree
from lamella.digests import Digest, parse_digest
from lamella.errors import Cancelled, DigestMismatch, LamellaError, NotFound
from lamella.images.contract import ImageReader
from lamella.images.graph import ImageGraph, Kind, Node, kind_of, only_entries
from lamella.images.resolve import find
from lamella.images.transports import ImageName, open_reader, parse_image_name
from lamella.oci.config import decode_config, pair_layers
from lamella.oci.descriptor import Descriptor
from lamella.oci.index import is_image_entry
from lamella.oci.mediatypes import CONFIGS, FOREIGN_LAYERS, layer_compression
from lamella.operations.layers.read import changes_of_blob
from lamella.streams.blob_reader import BlobReader

if TYPE_CHECKING:
    from lamella.layers.windows.names import Spelling
    from lamella.oci.manifest import Manifest

_CHUNK: Final = 1 << 20


class Problem(Struct, frozen=True):
    """One error that the verification found."""

    blob: Digest
    """The blob at which it was found."""
    why: str

    def __str__(self) -> str:
        return f"{self.blob}: {self.why}"


class Verified(Struct):
    """The result of a verification."""

    images: int = 0
    blobs: int = 0
    size: int = 0
    """Bytes of the blobs."""
    problems: list[Problem] = field(default_factory=list)
    foreign: list[Digest] = field(default_factory=list)
    """Missing non-distributable layers, which are no problem."""

    @property
    def sound(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


def verify(name: str | ImageName, *, job: Job | None = None) -> Verified:
    """Verify an image for all its platforms; without a tag, every image of the place, and in a layout every blob.

    Digest and size of each blob are compared, documents are decoded strictly, the diff id of each layer is compared,
    and its tar is applied to a tree in memory, without file content, on top of the layers below it; layers of Windows
    images as Windows layers. A problem is recorded and does not stop the verification. Raises as `open_reader`;
    Cancelled.
    """
    name = parse_image_name(name) if isinstance(name, str) else name
    with open_reader(name) as reader:
        check = _Verification(reader, job or Job())
        if name.tag is None and name.position is None:
            entries = [image.descriptor for image in reader.images()]
        else:
            entries = find(reader, name.tag, name.position)
        for entry in entries:
            check.check_entry(entry)
        if name.form == "oci" and name.tag is None and name.position is None:
            for blob in _stored_blobs(name.path):
                check.check_stored(blob)
        return check.found


def _stored_blobs(layout: str) -> Iterator[Descriptor]:
    """The blobs of a layout, referenced or not."""
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


class _Verification:
    """One run: its findings, and the blobs that have been checked."""

    def __init__(self, reader: ImageReader, job: Job) -> None:
        self.found = Verified()
        self._reader = reader
        self._job = job
        self._read: set[tuple[Digest, Kind]] = set()
        """The same bytes may be listed as a document and as a blob."""

    def check_entry(self, entry: Descriptor) -> None:
        """Check an entry of the place and all that it leads to, except what earlier entries led to."""
        if not self._is_new(entry):
            return
        fresh: set[tuple[Digest, Kind]] = set()

        def select(node: Node) -> Iterable[Descriptor]:
            fresh.add((node.digest, node.kind))
            if node.kind is Kind.MANIFEST:
                node.manifest  # noqa: B018  # its errors belong to the walk; `_check_image` checks config and layers
            return filter(self._is_new, only_entries(node))

        for node in ImageGraph(self._reader, cancel=self._job.cancel).walk([entry], select, self._record):
            if node.kind is Kind.BLOB:
                self._check_blob(node.descriptor)
                continue
            self._count(node.descriptor)
            if node.kind is Kind.MANIFEST:
                self._check_image(node.descriptor, node.manifest)
        self._read |= fresh

    def check_stored(self, blob: Descriptor) -> None:
        """Check the digest of a blob in the layout, unless an image led to it."""
        if not any((blob.digest, kind) in self._read for kind in Kind):
            self._check_blob(blob)

    def _is_new(self, descriptor: Descriptor) -> bool:
        return (descriptor.digest, kind_of(descriptor)) not in self._read

    def _check_blob(self, blob: Descriptor) -> None:
        if not self._is_new(blob):
            return
        self._read.add((blob.digest, kind_of(blob)))
        try:
            self._check_digest(blob)
        except LamellaError as error:
            self._record(blob, error)
        else:
            self._count(blob)

    def _check_image(self, entry: Descriptor, manifest: Manifest) -> None:
        image = is_image_entry(entry)  # attestations have the media types of images, too
        self.found.images += image
        raw = self._read_config(manifest.config)
        if manifest.config.media_type not in CONFIGS or not image:
            for layer in manifest.layers:  # an artifact: blobs of any type
                self._check_blob(layer)
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
        tree: MemoryTree | None = MemoryTree(streams=windows)
        spelling = _new_spelling() if windows else None
        with self._job.step("verify", sum(layer.size for layer, _ in pairs)):
            for layer, diff_id in pairs:
                tree = self._apply_layer(layer, diff_id, tree, spelling)

    def _read_config(self, config: Descriptor) -> bytes | None:
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

    def _apply_layer(
        self, layer: Descriptor, diff_id: Digest | None, tree: MemoryTree | None, spelling: Spelling | None
    ) -> MemoryTree | None:
        """The tree with ``layer`` on it; None after a broken layer, since later ones have no base to be applied to."""
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
                    progress=self._job.advance,
                    cancel=self._job.cancel,
                ) as blob,
            ):
                changes = _without_content(changes_of_blob(blob, spelling=spelling))
                if tree is not None:
                    apply(changes, MemorySink(tree), cancel=self._job.cancel)
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
            self._record(layer, self._find_cause(layer, error))
            return None
        if new:
            self._count(layer)
        return tree

    def _find_cause(self, layer: Descriptor, error: LamellaError) -> LamellaError:
        """A digest mismatch of the blob if there is one, else ``error``: damaged bytes make any error."""
        try:
            self._check_digest(layer)
        except Cancelled:
            raise
        except LamellaError as deeper:
            return deeper
        return error

    def _check_digest(self, blob: Descriptor) -> None:
        state = hashlib.new(blob.digest.algorithm)
        with self._reader.open_layer(blob) as file:
            while chunk := file.read(_CHUNK):
                self._job.check()
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


def _new_spelling() -> Spelling:
    from lamella.layers.windows.names import Spelling

    return Spelling()


def _without_content(changes: Source) -> Iterator[Change]:
    """The same changes with empty files, so that the tree takes little memory; the tar's content is skipped."""
    for change in changes:
        if type(change) is Put and change.content is not None:
            yield Put(change.entry, EMPTY)
        elif type(change) is Stream:
            yield Stream(change.path, change.name, EMPTY)
        else:
            yield change
