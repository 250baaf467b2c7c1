# SPDX-License-Identifier: Apache-2.0
"""Import of archives into a namespace, with names by the rules of containerd's clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from lamella.changes.job import Job
from lamella.errors import InvalidInput, NotFound, Unsupported
from lamella.images.archive import Archive
from lamella.images.docker_archive import DockerArchiveReader
from lamella.images.graph import ImageGraph
from lamella.images.layout import LayoutReader, read_small
from lamella.oci.descriptor import Descriptor
from lamella.oci.docker import SAVED_FILE
from lamella.oci.documents import MAX_DOCUMENT, encode
from lamella.oci.index import new_index
from lamella.oci.layout import CONTAINERD_NAME, INDEX_FILE, LAYOUT_FILE, REF_NAME
from lamella.oci.mediatypes import OCI_INDEX, OCI_LAYER
from lamella.oci.platform import Platform
from lamella.operations.copy import put_missing
from lamella.service.services.transfer.destination import names_of, whole_names
from lamella.service.services.transfer.selection import Parts
from lamella.store.content.put import label_blob
from lamella.store.gc.labels import manifest_key, reference_labels
from lamella.store.image_writer import StoreWriter

if TYPE_CHECKING:
    from lamella.protocol.proto.transfers_pb2 import ImageStore
    from lamella.store.store import LocalNamespace

_WHERE: Final = "the archive"


def import_archive(
    space: LocalNamespace,
    file: int,
    destination: ImageStore,
    platforms: Sequence[Platform],
    *,
    compress: bool = False,
    job: Job | None = None,
) -> list[tuple[str, Descriptor]]:
    """Import the images of the archive in the open ``file`` into ``space``, which has a lease; they get no names yet.

    Returns the names to give, each with its image; never empty. Of an index, only the images for ``platforms`` are
    imported, or all; the archive may lack the others. Blobs are checked. Raises NotFound (a part, a platform, no
    requested name), InvalidInput, Unsupported (uncompressed layers with ``compress``), Integrity, Exhausted, Cancelled.
    """
    job = job or Job()
    archive = Archive(f"/proc/self/fd/{file}", _WHERE, job.cancel)
    with _reader(archive) as reader, StoreWriter(space) as writer:
        graph = ImageGraph(reader, cancel=job.cancel)
        entries, raw = _entries(reader, archive)
        if compress and isinstance(reader, DockerArchiveReader):
            _refuse_plain(graph, entries)
        parts = Parts(graph, platforms)
        named: list[tuple[str, Descriptor]] = []
        for entry in entries:
            if parts.suits(entry):
                full, tag = (entry.annotations.get(key, "") for key in (CONTAINERD_NAME, REF_NAME))
                named += [(name, entry) for name in names_of(destination.extra_references, full, tag, entry)]
        index = _index_of(raw)
        whole = whole_names(destination, index)
        if not named and not whole:
            raise NotFound("the archive has no image of a requested name and platform", hint=_hint(entries))
        listed = {manifest_key(number): entry for number, entry in enumerate(entries) if parts.suits(entry)}
        parts.add([entry for _, entry in named] + (list(listed.values()) if whole else []))
        put_missing(writer, [(reader, part) for part in parts.found.values()], job)
        if whole:
            if not writer.has_blob(index):
                writer.put_blob(index, [raw])
            parts.children[index.digest] = {key: entry.digest for key, entry in listed.items()}
        for digest, needs in parts.children.items():
            job.check()
            label_blob(space.content, digest, reference_labels(needs))
    return [*named, *((name, index) for name in whole)]


def _index_of(raw: bytes) -> Descriptor:
    """The descriptor of the index of an archive."""
    from lamella.digests import Digest

    return Descriptor(media_type=OCI_INDEX, digest=Digest.of(raw), size=len(raw))


def _reader(archive: Archive) -> LayoutReader | DockerArchiveReader:
    try:
        if LAYOUT_FILE in archive:
            return LayoutReader(archive)
        if SAVED_FILE in archive:
            return DockerArchiveReader(archive)
        raise InvalidInput(f"{_WHERE} is neither an OCI layout nor an archive of 'docker save'")
    except BaseException:
        archive.close()
        raise


def _entries(reader: LayoutReader | DockerArchiveReader, archive: Archive) -> tuple[list[Descriptor], bytes]:
    """The images of an archive, with their names in annotations, and its index."""
    if isinstance(reader, LayoutReader):
        return reader.index.manifests, read_small(archive, INDEX_FILE, MAX_DOCUMENT)
    entries: list[Descriptor] = []
    for image in reader.images():
        named = [{CONTAINERD_NAME: name} for name in image.names] or [{}]
        entries += [msgspec.structs.replace(image.descriptor, annotations=annotations) for annotations in named]
    return entries, encode(new_index(entries))


def _refuse_plain(graph: ImageGraph, entries: Sequence[Descriptor]) -> None:
    for entry in entries:
        if any(layer.media_type == OCI_LAYER for layer in graph.manifest(entry).layers):
            raise Unsupported("layers are kept as the archive has them", hint="import it without compressing blobs")


def _hint(entries: Sequence[Descriptor]) -> str | None:
    found = [entry.annotations.get(CONTAINERD_NAME) or entry.annotations.get(REF_NAME, "") for entry in entries]
    names = ", ".join(dict.fromkeys(name for name in found if name))
    return f"named there: {names[:500]}" if names else None
