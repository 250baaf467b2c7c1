# SPDX-License-Identifier: Apache-2.0
"""Reads an OCI image layout, in a directory or in an archive (image-spec, image-layout.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO, Final

from lamella.errors import InvalidInput, NotFound, SizeMismatch
from lamella.images.contract import ImageReader, StoredImage
from lamella.images.places import DirectoryPlace, Place, read_small
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import MAX_DOCUMENT
from lamella.oci.index import Index, decode_index
from lamella.oci.layout import CONTAINERD_NAME, INDEX_FILE, LAYOUT_FILE, REF_NAME, blob_path, decode_layout
from lamella.oci.mediatypes import OCI_INDEX
from lamella.paths import LayerPath

_NAMES: Final = (REF_NAME, CONTAINERD_NAME)


class LayoutReader(ImageReader):
    """The images of a layout; its index is read once, at the start."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.where = place.where
        self.plain_files = place.plain_files
        self.index = read_index(place)

    def images(self) -> Sequence[StoredImage]:
        """The entries of index.json, with their tags and the references that Docker notes beside them."""
        return [
            StoredImage(tuple(entry.annotations[key] for key in _NAMES if key in entry.annotations), entry)
            for entry in self.index.manifests
        ]

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """The file of the blob."""
        file, size = self._place.open(LayerPath(blob_path(descriptor.digest)))
        if size != descriptor.size:
            file.close()
            raise SizeMismatch(f"{self.where}: {descriptor.digest}", expected=descriptor.size, actual=size)
        return file

    def close(self) -> None:
        """Let go of the layout."""
        super().close()
        self._place.close()


def read_index(place: Place) -> Index:
    """index.json of the layout in ``place``, whose marker is checked first. Raises InvalidInput, Unsupported."""
    try:
        marker = read_small(place, LAYOUT_FILE, MAX_DOCUMENT)
        raw = read_small(place, INDEX_FILE, MAX_DOCUMENT)
    except NotFound as problem:
        raise InvalidInput(f"{problem}, so this is no OCI image layout") from None
    decode_layout(marker, f"{place.where}: {LAYOUT_FILE}")
    return decode_index(raw, OCI_INDEX, f"{place.where}: {INDEX_FILE}")


def open_directory(path: str) -> LayoutReader:
    """A reader of the layout in the directory ``path``."""
    place = DirectoryPlace(path, f"oci:{path}")
    try:
        return LayoutReader(place)
    except BaseException:
        place.close()
        raise
