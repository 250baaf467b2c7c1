# SPDX-License-Identifier: Apache-2.0
"""The graph of documents and blobs that make up an image: index, manifests, configs, layers, referrers.

Every operation that follows descriptors walks this graph, so that each document is read and decoded once, whatever
the number of paths that lead to it, and so that a hostile index cannot hang a command or the daemon. Resolution of a
name (`images.resolve`) runs one way: name -> `ImageReader` -> `ImageGraph` -> chosen platform -> `PlatformImage`.

Referrers (signatures, attestations) are entries of an index that `subject_of` connects with the image they describe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from lamella.digests import Digest
from lamella.errors import Cancelled, Conflict, InvalidInput, LamellaError, Unsupported
from lamella.oci.config import ImageConfig, decode_config
from lamella.oci.descriptor import Descriptor
from lamella.oci.index import Index, decode_index
from lamella.oci.manifest import Manifest, decode_manifest
from lamella.oci.mediatypes import CONFIGS, FOREIGN_LAYERS, INDEXES, MANIFESTS
from lamella.oci.platform import Platform

if TYPE_CHECKING:
    from lamella.images.contract import ImageReader
    from lamella.progress import Cancellation

SUBJECT: Final = "vnd.docker.reference.digest"
"""Annotation of a referrer in an index: the digest of the manifest that it describes."""


class Limits(Struct, frozen=True):
    """Bounds of one graph."""

    depth: int = 8
    """Levels of indexes."""
    documents: int = 50_000
    """Indexes and manifests."""
    size: int = 64 << 20
    """Bytes of all indexes and manifests."""


LIMITS: Final = Limits()


class GraphLimit(Unsupported):
    """An image graph has a cycle or exceeds its limits."""


class Kind(Enum):
    """How a blob is read."""

    INDEX = "an index"
    MANIFEST = "a manifest"
    BLOB = "a blob"


def kind_of(descriptor: Descriptor) -> Kind:
    """How the blob is read, by its media type."""
    if descriptor.media_type in INDEXES:
        return Kind.INDEX
    return Kind.MANIFEST if descriptor.media_type in MANIFESTS else Kind.BLOB


def subject_of(entry: Descriptor) -> str | None:
    """The digest of the image that an entry of an index describes; None for an entry that is no such referrer."""
    return entry.annotations.get(SUBJECT)


class Node(Struct, frozen=True):
    """A blob of the graph. Its document is read when it is first asked for, and raises as `ImageGraph.index` does."""

    graph: ImageGraph
    descriptor: Descriptor
    """As the first index or manifest lists it."""
    platform: Platform | None = None
    """The platform of the entry, or else of the index that contains it."""

    @property
    def digest(self) -> Digest:
        """The digest of the blob."""
        return self.descriptor.digest

    @property
    def kind(self) -> Kind:
        """How the blob is read."""
        return kind_of(self.descriptor)

    @property
    def raw(self) -> bytes:
        """The bytes of the index or manifest."""
        return self.graph.raw(self.descriptor)

    @property
    def index(self) -> Index:
        """The decoded index."""
        return self.graph.index(self.descriptor)

    @property
    def manifest(self) -> Manifest:
        """The decoded manifest."""
        return self.graph.manifest(self.descriptor)

    @property
    def parts(self) -> Sequence[Descriptor]:
        """The entries of an index, or the config and then the layers of a manifest; empty for any other blob."""
        match self.kind:
            case Kind.INDEX:
                return self.index.manifests
            case Kind.MANIFEST:
                return [self.manifest.config, *self.manifest.layers]
            case Kind.BLOB:
                return ()


def all_parts(node: Node) -> Iterable[Descriptor]:
    """Follow every descriptor."""
    return node.parts


def only_entries(node: Node) -> Iterable[Descriptor]:
    """Follow the entries of indexes; manifests are not read."""
    return node.index.manifests if node.kind is Kind.INDEX else ()


class ImageGraph:
    """The indexes and manifests of one `ImageReader`, each read and decoded once. Not thread-safe.

    Its methods raise GraphLimit beyond ``limits``, and Cancelled through ``cancel``.
    """

    def __init__(self, reader: ImageReader, *, limits: Limits = LIMITS, cancel: Cancellation | None = None) -> None:
        self.reader = reader
        self._limits = limits
        self._cancel = cancel
        self._documents: dict[Digest, tuple[bytes, Index | Manifest]] = {}
        self._size = 0

    @property
    def where(self) -> str:
        """The place, for messages."""
        return self.reader.where

    def index(self, descriptor: Descriptor) -> Index:
        """The index that ``descriptor`` names. Raises as `ImageReader.read_document`; InvalidInput, GraphLimit."""
        document = self._read(descriptor)[1]
        if not isinstance(document, Index):
            raise self._contradiction(descriptor, document)
        return document

    def manifest(self, descriptor: Descriptor) -> Manifest:
        """The manifest that ``descriptor`` names. Raises as `index` does."""
        document = self._read(descriptor)[1]
        if not isinstance(document, Manifest):
            raise self._contradiction(descriptor, document)
        return document

    def raw(self, descriptor: Descriptor) -> bytes:
        """The bytes of an index or manifest. Raises as `index` does."""
        return self._read(descriptor)[0]

    def config(self, manifest: Manifest) -> ImageConfig:
        """The image config of ``manifest``, not cached. Raises Unsupported for another kind of config."""
        descriptor = manifest.config
        if descriptor.media_type not in CONFIGS:
            raise Unsupported(f"{self.where}: a config of type {descriptor.media_type!r} is not one of an image")
        return decode_config(self.reader.read_document(descriptor), f"{self.where}: config {descriptor.digest}")

    def platform(self, image: Descriptor) -> Platform:
        """The platform in the descriptor of an image, or else in its config."""
        return image.platform or self.config(self.manifest(image)).platform

    def walk(
        self,
        roots: Iterable[Descriptor],
        select: Callable[[Node], Iterable[Descriptor]] = all_parts,
        problem: Callable[[Descriptor, LamellaError], object] | None = None,
    ) -> Iterator[Node]:
        """Yield all blobs reachable from ``roots``, each once, in post-order: parts before what lists them.

        ``select`` returns the descriptors to follow from a node; a document is read only if ``select`` asks for it.
        ``problem`` receives the errors of single nodes, and the walk goes on without these; GraphLimit ends it in any
        case. Raises InvalidInput if descriptors of one digest disagree on its size or `kind_of`.
        """
        for node, step in self._steps(roots, select, problem):
            if step is _Step.LEAVE:
                yield node

    def entries(self, roots: Iterable[Descriptor]) -> Iterator[Descriptor]:
        """Yield the manifests and other blobs that ``roots`` list, through nested indexes but without these, in order.

        An entry without a platform inherits that of its index. An image that is listed twice is yielded twice.
        """
        for node, step in self._steps(roots, only_entries, None):
            if step is not _Step.LEAVE and node.kind is not Kind.INDEX:
                entry = node.descriptor
                inherits = entry.platform is not node.platform
                yield msgspec.structs.replace(entry, platform=node.platform) if inherits else entry

    def check_complete(
        self,
        image: Descriptor,
        has_blob: Callable[[Descriptor], bool],
        select: Callable[[Node], Iterable[Descriptor]] = only_entries,
    ) -> list[Node]:
        """Check that ``has_blob`` is true for all that ``image`` needs; return the nodes of `walk`, in its order.

        Non-distributable layers may be missing. Entries of an index that ``select`` leaves out must exist, but are not
        read. Raises Conflict for a missing blob, and as `walk`.
        """

        def complete(node: Node) -> Iterable[Descriptor]:
            if node.digest == image.digest and not has_blob(image):
                raise Conflict(f"{self.where}: {image.digest} was not put")
            for part in node.parts:
                if part.media_type not in FOREIGN_LAYERS and not has_blob(part):
                    raise Conflict(f"{self.where}: {part.digest}, a part of {node.digest}, was not put")
            return select(node)

        return list(self.walk([image], complete))

    def _steps(
        self,
        roots: Iterable[Descriptor],
        select: Callable[[Node], Iterable[Descriptor]],
        problem: Callable[[Descriptor, LamellaError], object] | None,
    ) -> Iterator[tuple[Node, _Step]]:
        """Depth-first, without recursion: each edge as ENTER (first visit of its node) or AGAIN, each node as LEAVE."""
        seen: dict[Digest, Descriptor] = {}
        heights: dict[Digest, int] = {}
        """Levels of indexes in a node and below. Set when the node is left: a node in `seen` alone is on the path."""
        path = [_Frame(None, iter(roots))]
        while path:
            frame = path[-1]
            listed = next(frame.todo, None)
            if listed is None:
                path.pop()
                if frame.node is not None:
                    height = heights[frame.node.digest] = frame.height
                    path[-1].height = max(path[-1].height, height + path[-1].is_index)
                    yield frame.node, _Step.LEAVE
                continue
            node = Node(
                self,
                listed,
                listed.platform or (frame.node.platform if frame.node is not None and frame.is_index else None),
            )
            again = node.digest in heights
            try:
                if self._cancel is not None:
                    self._cancel.check()
                self._check(node, seen, heights, frame.level)
                parts = () if again else tuple(select(node))
            except Cancelled:
                raise
            except LamellaError as error:
                if problem is None:
                    raise
                problem(listed, error)
                if isinstance(error, GraphLimit):
                    return
                heights.setdefault(node.digest, 0)
                continue
            if again:
                frame.height = max(frame.height, heights[node.digest] + frame.is_index)
                yield node, _Step.AGAIN
            else:
                is_index = node.kind is Kind.INDEX
                path.append(_Frame(node, iter(parts), is_index, frame.level + is_index, int(is_index)))
                yield node, _Step.ENTER

    def _check(self, node: Node, seen: dict[Digest, Descriptor], heights: dict[Digest, int], level: int) -> None:
        """Check the node ``level`` indexes below a root. Raises InvalidInput, GraphLimit (a cycle, or too deep)."""
        first = seen.get(node.digest)
        height = heights.get(node.digest)
        if first is None:
            seen[node.digest] = node.descriptor
        elif kind_of(first) is not node.kind:
            raise InvalidInput(
                f"{self.where}: {node.digest} is listed as {kind_of(first).value} and as {node.kind.value}"
            )
        elif first.size != node.descriptor.size:
            sizes = f"{first.size} and with {node.descriptor.size} bytes"
            raise InvalidInput(f"{self.where}: {node.digest} is listed with {sizes}")
        elif height is None:
            raise GraphLimit(f"{self.where}: index {node.digest} contains itself")
        if level + (int(node.kind is Kind.INDEX) if height is None else height) > self._limits.depth:
            raise GraphLimit(f"{self.where}: indexes are nested deeper than {self._limits.depth} levels")

    def _read(self, descriptor: Descriptor) -> tuple[bytes, Index | Manifest]:
        known = self._documents.get(descriptor.digest)
        if known is None:
            if self._cancel is not None:
                self._cancel.check()
            self._size += descriptor.size
            if len(self._documents) >= self._limits.documents:
                raise GraphLimit(f"{self.where}: more than {self._limits.documents} indexes and manifests")
            if self._size > self._limits.size:
                raise GraphLimit(f"{self.where}: more than {self._limits.size} bytes of indexes and manifests")
            raw = self.reader.read_document(descriptor)
            known = self._documents[descriptor.digest] = (raw, self._decode(descriptor, raw))
        return known

    def _decode(self, descriptor: Descriptor, raw: bytes) -> Index | Manifest:
        if kind_of(descriptor) is Kind.INDEX:
            return decode_index(raw, descriptor.media_type, f"{self.where}: index {descriptor.digest}")
        return decode_manifest(raw, descriptor.media_type, f"{self.where}: manifest {descriptor.digest}")

    def _contradiction(self, descriptor: Descriptor, document: Index | Manifest) -> InvalidInput:
        kind = "an index" if isinstance(document, Index) else "a manifest"
        return InvalidInput(
            f"{self.where}: {descriptor.digest} is {kind}, and is listed as {kind_of(descriptor).value}"
        )


class _Step(Enum):
    ENTER = 1
    AGAIN = 2
    LEAVE = 3


class _Frame(Struct):
    """A node on the path from a root, with the parts not visited yet."""

    node: Node | None
    """None above the roots."""
    todo: Iterator[Descriptor]
    is_index: bool = False
    level: int = 0
    """Indexes on the path down to here."""
    height: int = 0
    """Depth of the visited indexes from here down."""
