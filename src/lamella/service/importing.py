# SPDX-License-Identifier: Apache-2.0
"""Archives of images into a namespace, by the rules by which containerd's clients name what they bring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from lamella.errors import InvalidInput, NotFound, Unsupported
from lamella.images.archive import Archive
from lamella.images.docker_archive import DockerArchiveReader
from lamella.images.layout import LayoutReader
from lamella.images.places import read_small
from lamella.images.resolve import MAX_INDEX_DEPTH, read_manifest
from lamella.oci.descriptor import Descriptor
from lamella.oci.docker import SAVED_FILE
from lamella.oci.documents import MAX_DOCUMENT, encode
from lamella.oci.index import decode_index, new_index
from lamella.oci.layout import CONTAINERD_NAME, INDEX_FILE, LAYOUT_FILE, REF_NAME
from lamella.oci.mediatypes import FOREIGN_LAYERS, INDEXES, MANIFESTS, OCI_INDEX, OCI_LAYER
from lamella.oci.platform import Platform, host_platform, matches
from lamella.operations.copy import put_missing
from lamella.service.transfer import names_of, whole_names
from lamella.store.image_writer import StoreWriter
from lamella.store.references import REF_CONTENT

if TYPE_CHECKING:
    from lamella.digests import Digest
    from lamella.images.contract import ImageReader
    from lamella.progress import Cancellation
    from lamella.protocol.proto.transfers_pb2 import ImageStore
    from lamella.store.store import Space

_WHERE: Final = "the archive"


def import_archive(
    space: Space,
    file: int,
    destination: ImageStore,
    platforms: Sequence[Platform | None],
    *,
    compress: bool = False,
    cancel: Cancellation | None = None,
) -> list[tuple[str, Descriptor]]:
    """Put the images of the archive in the open ``file`` into ``space``, which has a lease; no name is given yet.

    The result is which names are to be given to what, never empty. Of an index only the images for ``platforms`` are
    taken, all where there are none; its other parts need not be in the archive. Blobs are checked. Raises NotFound
    (a part, a platform, no name that is wanted), InvalidInput, Unsupported (``compress`` and layers that are not),
    Integrity, Exhausted, Cancelled.
    """
    wanted = [platform or host_platform() for platform in platforms]
    archive = Archive(f"/proc/self/fd/{file}", _WHERE)
    with _reader(archive) as reader, StoreWriter(space) as writer:
        entries, raw = _entries(reader, archive)
        if compress and isinstance(reader, DockerArchiveReader):
            _refuse_plain(reader, entries)
        parts = _Parts(reader, wanted)
        named: list[tuple[str, Descriptor]] = []
        for entry in entries:
            if parts.suits(entry):
                full, tag = (entry.annotations.get(key, "") for key in (CONTAINERD_NAME, REF_NAME))
                named += [(name, entry) for name in names_of(destination.extra_references, full, tag, entry)]
        index = _index_of(raw)
        whole = whole_names(destination, index)
        if not named and not whole:
            raise NotFound("the archive has no image of a name and platform that is wanted", hint=_hint(entries))
        for entry in {entry.digest: entry for _, entry in named}.values():
            parts.add(entry)
        children: dict[str, Digest] = {}
        if whole:
            for number, entry in enumerate(entries):
                if parts.suits(entry):
                    parts.add(entry)
                    children[f"m.{number}"] = entry.digest
        put_missing(writer, [(reader, part) for part in parts.found.values()], cancel=cancel)
        if whole:
            if not writer.has_blob(index):
                writer.put_blob(index, [raw])
            parts.children[index.digest] = children
        for digest, needs in parts.children.items():
            _label(space, digest, needs)
    return [*named, *((name, index) for name in whole)]


def _index_of(raw: bytes) -> Descriptor:
    """The index of an archive, as a blob."""
    from lamella.digests import Digest

    return Descriptor(media_type=OCI_INDEX, digest=Digest.of(raw), size=len(raw))


class _Parts:
    """What images consist of, parts before what names them, and what each document needs."""

    def __init__(self, reader: ImageReader, platforms: Sequence[Platform]) -> None:
        self._reader = reader
        self._platforms = platforms
        self.found: dict[Digest, Descriptor] = {}
        self.children: dict[Digest, dict[str, Digest]] = {}

    def suits(self, entry: Descriptor) -> bool:
        """Whether an entry of an index is taken."""
        offered = entry.platform
        return not self._platforms or offered is None or any(matches(one, offered) for one in self._platforms)

    def add(self, image: Descriptor, depth: int = 0) -> None:
        """Take a manifest or an index with what it leads to."""
        if image.digest in self.found:
            return
        needs: dict[str, Digest] = {}
        if image.media_type in INDEXES:
            if depth >= MAX_INDEX_DEPTH:
                raise Unsupported(f"{_WHERE}: indexes are nested deeper than {MAX_INDEX_DEPTH} levels")
            what = f"{_WHERE}: index {image.digest}"
            entries = decode_index(self._reader.read_document(image), image.media_type, what).manifests
            for number, entry in enumerate(entries):
                if self.suits(entry):
                    self.add(entry, depth + 1)
                    needs[f"m.{number}"] = entry.digest
            if entries and not needs:
                raise NotFound(f"{what}: there is no image for {', '.join(map(str, self._platforms))}")
        elif image.media_type in MANIFESTS:
            manifest = read_manifest(self._reader, image).manifest
            for key, part in [
                ("config", manifest.config),
                *((f"l.{at}", one) for at, one in enumerate(manifest.layers)),
            ]:
                if part.media_type in FOREIGN_LAYERS and not self._is_there(part):
                    continue
                self.found.setdefault(part.digest, part)
                needs[key] = part.digest
        self.found[image.digest] = image
        self.children[image.digest] = needs

    def _is_there(self, part: Descriptor) -> bool:
        try:
            self._reader.open_blob(part).close()
        except NotFound:
            return False
        return True


def _reader(archive: Archive) -> LayoutReader | DockerArchiveReader:
    try:
        if LAYOUT_FILE in archive:
            return LayoutReader(archive)
        if SAVED_FILE in archive:
            return DockerArchiveReader(archive)
        raise InvalidInput(f"{_WHERE} is neither an OCI layout nor what 'docker save' writes")
    except BaseException:
        archive.close()
        raise


def _entries(reader: LayoutReader | DockerArchiveReader, archive: Archive) -> tuple[list[Descriptor], bytes]:
    """The images that an archive lists, with their names in annotations, and the document that does so."""
    if isinstance(reader, LayoutReader):
        return reader.index.manifests, read_small(archive, INDEX_FILE, MAX_DOCUMENT)
    entries: list[Descriptor] = []
    for image in reader.images():
        named = [{CONTAINERD_NAME: name} for name in image.names] or [{}]
        entries += [msgspec.structs.replace(image.descriptor, annotations=annotations) for annotations in named]
    return entries, encode(new_index(entries))


def _refuse_plain(reader: DockerArchiveReader, entries: Sequence[Descriptor]) -> None:
    for entry in entries:
        if any(layer.media_type == OCI_LAYER for layer in read_manifest(reader, entry).manifest.layers):
            raise Unsupported("layers are kept as the archive has them", hint="import it without compressing blobs")


def _label(space: Space, digest: Digest, needs: dict[str, Digest]) -> None:
    """Have a blob keep what it needs."""
    labels = {f"{REF_CONTENT}.{key}": str(child) for key, child in needs.items()}
    present = space.content.info(digest).labels
    missing = {key: value for key, value in labels.items() if present.get(key) != value}
    if missing:
        space.content.update(digest, missing, [f"labels.{key}" for key in missing])


def _hint(entries: Sequence[Descriptor]) -> str | None:
    found = [entry.annotations.get(CONTAINERD_NAME) or entry.annotations.get(REF_NAME, "") for entry in entries]
    names = ", ".join(dict.fromkeys(name for name in found if name))
    return f"named there: {names[:500]}" if names else None
