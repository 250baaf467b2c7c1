# SPDX-License-Identifier: Apache-2.0
"""Selection of the blobs of images by platform, for import, pull and push, and for export."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lamella.errors import NotFound
from lamella.images.graph import ImageGraph, Kind, Node
from lamella.oci.mediatypes import FOREIGN_LAYERS
from lamella.oci.platform import Platform, best_match, host_platform, matches
from lamella.store.gc.labels import manifest_key, manifest_parts

if TYPE_CHECKING:
    from lamella.digests import Digest
    from lamella.oci.descriptor import Descriptor


class Parts:
    """The blobs of images, parts before what lists them, and what each document needs by the key of its label."""

    def __init__(self, graph: ImageGraph, platforms: Sequence[Platform], *, documents: bool = False) -> None:
        """Take the images of an index for ``platforms``, or all without any.

        ``documents`` adds the manifests and configs of the other images.
        """
        self._graph = graph
        self._platforms = platforms
        self._documents = documents
        self._there: dict[Digest, bool] = {}
        self.found: dict[Digest, Descriptor] = {}
        self.children: dict[Digest, dict[str, Digest]] = {}

    def suits(self, entry: Descriptor) -> bool:
        """Whether an entry of an index is for one of the platforms, or states none."""
        offered = entry.platform
        return not self._platforms or offered is None or any(matches(one, offered) for one in self._platforms)

    def add(self, images: Sequence[Descriptor]) -> None:
        """Take manifests and indexes with all that they lead to. Raises NotFound, and as `ImageGraph.walk` does."""
        wanted = {node.digest for node in self._graph.walk(images, self._suiting)}

        def select(node: Node) -> Iterable[Descriptor]:
            if node.kind is Kind.BLOB:
                return ()
            has_entries = node.kind is Kind.INDEX
            parts = self._entries(node) if has_entries else self._parts(node, layers=node.digest in wanted)
            self.children[node.digest] = {key: part.digest for key, part in parts.items()}
            return parts.values()

        for node in self._graph.walk(images, select):
            self.found[node.digest] = node.descriptor

    def _suiting(self, node: Node) -> Iterable[Descriptor]:
        if node.kind is not Kind.INDEX:
            return ()
        suiting = [entry for entry in node.index.manifests if self.suits(entry)]
        if node.index.manifests and not suiting:
            wanted = ", ".join(map(str, self._platforms))
            raise NotFound(f"{self._graph.where}: index {node.digest}: there is no image for {wanted}")
        return suiting

    def _entries(self, node: Node) -> dict[str, Descriptor]:
        entries = enumerate(node.index.manifests)
        return {manifest_key(number): entry for number, entry in entries if self._documents or self.suits(entry)}

    def _parts(self, node: Node, *, layers: bool) -> dict[str, Descriptor]:
        config = node.manifest.config
        return {
            key: part
            for key, part in manifest_parts(node.manifest).items()
            if part is config or (layers and (part.media_type not in FOREIGN_LAYERS or self._has(part)))
        }

    def _has(self, part: Descriptor) -> bool:
        if part.digest not in self._there:
            self._there[part.digest] = self._graph.reader.has_blob(part)
        return self._there[part.digest]


class ExportSelection:
    """The blobs of images for chosen platforms, and the representative manifest of each image or index."""

    def __init__(self, graph: ImageGraph, platforms: Sequence[Platform] | None, *, foreign: bool) -> None:
        self._graph = graph
        self._platforms = platforms
        self._foreign = foreign
        self._chosen: dict[Digest, list[Descriptor]] = {}
        self.blobs: dict[Digest, Descriptor] = {}
        self.images: dict[Digest, Descriptor | None] = {}
        """Representative manifest by the digest of a manifest or index; None if there is none."""

    def add(self, images: Iterable[Descriptor]) -> None:
        """Take images and indexes with all that they lead to."""
        for node in self._graph.walk(images, self._select):
            self._graph.reader.open_blob(node.descriptor).close()
            self.blobs[node.digest] = node.descriptor
            match node.kind:
                case Kind.INDEX:
                    self.images[node.digest] = self._representative(self._chosen[node.digest])
                case Kind.MANIFEST:
                    self.images[node.digest] = node.descriptor
                case Kind.BLOB:
                    self.images[node.digest] = None

    def _select(self, node: Node) -> Iterable[Descriptor]:
        reader = self._graph.reader
        match node.kind:
            case Kind.INDEX:
                self._chosen[node.digest] = self._choose(node.index.manifests, f"index {node.digest}")
                return self._chosen[node.digest]
            case Kind.MANIFEST:
                return (
                    part
                    for part in node.parts
                    if part.media_type not in FOREIGN_LAYERS or (self._foreign and reader.has_blob(part))
                )
            case Kind.BLOB:
                return ()

    def _choose(self, entries: Sequence[Descriptor], what: str) -> list[Descriptor]:
        if self._platforms is None:
            return list(entries)
        offers = [(entry.platform, entry) for entry in entries if entry.platform is not None]
        best = [best_match(platform, offers) for platform in self._platforms]
        chosen = {one.digest: one for one in best if one is not None}
        for entry in entries:  # without a platform, it may be for any
            if entry.platform is None and self._graph.reader.has_blob(entry):
                chosen.setdefault(entry.digest, entry)
        if not chosen:
            raise NotFound(f"{what}: there is no image for {', '.join(map(str, self._platforms))}")
        return list(chosen.values())

    def _representative(self, chosen: Sequence[Descriptor]) -> Descriptor | None:
        """Return the representative image of an index: the one for this host among all platforms, else the first."""
        best = best_match(host_platform(), [(entry.platform, entry) for entry in chosen if entry.platform])
        if self._platforms is None and best is not None:
            return self.images[best.digest]
        return next((image for image in (self.images[one.digest] for one in chosen) if image is not None), None)
