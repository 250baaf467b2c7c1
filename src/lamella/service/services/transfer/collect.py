# SPDX-License-Identifier: Apache-2.0
"""What an image consists of, as far as it is wanted, and what each of its documents needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lamella.errors import NotFound, Unsupported
from lamella.images.resolve import MAX_INDEX_DEPTH, read_manifest
from lamella.oci.index import decode_index
from lamella.oci.mediatypes import FOREIGN_LAYERS, INDEXES, MANIFESTS
from lamella.oci.platform import Platform, matches
from lamella.store.gc.labels import entry_key, parts_by_key

if TYPE_CHECKING:
    from lamella.digests import Digest
    from lamella.images.contract import ImageReader
    from lamella.oci.descriptor import Descriptor


class Parts:
    """What images consist of, parts before what names them, and what each document needs."""

    def __init__(self, reader: ImageReader, platforms: Sequence[Platform], *, documents: bool = False) -> None:
        """Of an index the images for ``platforms`` are taken, all where there are none.

        Of the others manifests and configs come along where ``documents`` says so.
        """
        self._reader = reader
        self._platforms = platforms
        self._documents = documents
        self.found: dict[Digest, Descriptor] = {}
        self.children: dict[Digest, dict[str, Digest]] = {}

    def suits(self, entry: Descriptor) -> bool:
        """Whether an entry of an index is taken."""
        offered = entry.platform
        return not self._platforms or offered is None or any(matches(one, offered) for one in self._platforms)

    def add(self, image: Descriptor, depth: int = 0, *, layers: bool = True) -> None:
        """Take a manifest or an index with what it leads to. Raises NotFound, InvalidInput, Unsupported."""
        if image.digest in self.found:
            return
        needs: dict[str, Digest] = {}
        if image.media_type in INDEXES:
            needs = self._entries(image, depth, layers=layers)
        elif image.media_type in MANIFESTS:
            manifest = read_manifest(self._reader, image).manifest
            for key, part in parts_by_key(manifest).items():
                if not layers and part is not manifest.config:
                    continue
                if part.media_type in FOREIGN_LAYERS and not self._reader.has_blob(part):
                    continue
                self.found.setdefault(part.digest, part)
                needs[key] = part.digest
        self.found[image.digest] = image
        self.children[image.digest] = needs

    def _entries(self, image: Descriptor, depth: int, *, layers: bool) -> dict[str, Digest]:
        if depth >= MAX_INDEX_DEPTH:
            raise Unsupported(f"{self._reader.where}: indexes are nested deeper than {MAX_INDEX_DEPTH} levels")
        what = f"{self._reader.where}: index {image.digest}"
        entries = decode_index(self._reader.read_document(image), image.media_type, what).manifests
        if entries and not any(map(self.suits, entries)) and layers:
            raise NotFound(f"{what}: there is no image for {', '.join(map(str, self._platforms))}")
        needs = {}
        numbered = list(enumerate(entries))
        # One manifest may be listed for several platforms: those that suit come first.
        for number, entry in sorted(numbered, key=lambda one: not self.suits(one[1])):
            suits = self.suits(entry)
            if suits or self._documents:
                self.add(entry, depth + 1, layers=layers and suits)
                needs[entry_key(number)] = entry.digest
        return needs
