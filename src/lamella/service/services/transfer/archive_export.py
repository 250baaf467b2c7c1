# SPDX-License-Identifier: Apache-2.0
"""Export of images as an archive that is streamed to the client: an OCI layout that ``docker load`` reads too.

An index is exported unchanged, so that its digest stays, even if some of its images are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from lamella.changes.job import Job
from lamella.errors import LamellaError
from lamella.images.archive_writer import Member, write_tar
from lamella.images.contract import Buffer
from lamella.images.graph import ImageGraph
from lamella.oci.descriptor import Descriptor
from lamella.oci.docker import SAVED_FILE
from lamella.oci.documents import encode, encode_json
from lamella.oci.index import new_index
from lamella.oci.layout import (
    BLOBS,
    CONTAINERD_NAME,
    INDEX_FILE,
    LAYOUT_FILE,
    LAYOUT_VERSION,
    REF_NAME,
    OciLayout,
    blob_path,
)
from lamella.oci.mediatypes import CONFIGS
from lamella.oci.platform import Platform, host_platform
from lamella.oci.reference import parse_reference
from lamella.service.services.transfer.selection import ExportSelection
from lamella.store.contract import Resource
from lamella.store.gc.labels import CONTENT
from lamella.store.image_reader import StoreReader

if TYPE_CHECKING:
    from lamella.digests import Digest
    from lamella.store.store import LocalNamespace


def export_archive(
    space: LocalNamespace,
    names: Iterable[str],
    write: Callable[[Buffer], object],
    platforms: Sequence[Platform] | None,
    *,
    saved_file: bool = True,
    foreign: bool = True,
    job: Job | None = None,
) -> None:
    """Write an archive of the images ``names`` of ``space``, which has a lease, piece by piece.

    Of an index, the best image for each of ``platforms`` is exported: all images for None, this host's for an empty
    sequence. ``saved_file`` adds manifest.json for ``docker load``; ``foreign`` includes non-distributable layers that
    the store holds. Nothing is written before all blobs are found. The same images give the same bytes.
    Raises NotFound, Unsupported, Integrity, Cancelled, and whatever ``write`` raises.
    """
    job = job or Job()
    wanted = platforms if platforms is None else platforms or [host_platform()]
    assert space.lease is not None  # noqa: S101  # the images must not be collected meanwhile
    targets: dict[str, Descriptor] = {}
    for name in names:
        job.check()
        targets[name] = space.images.get(name).target
        space.leases.add(space.lease, Resource(CONTENT, targets[name].digest))
    reader = StoreReader(space)
    graph = ImageGraph(reader, cancel=job.cancel)
    selection = ExportSelection(graph, wanted, foreign=foreign)
    selection.add(targets.values())
    saved: dict[Digest, tuple[Descriptor, list[str]]] = {}
    for name, target in targets.items():
        image = selection.images[target.digest]
        if image is not None:
            saved.setdefault(image.digest, (image, []))[1].append(name)
    members: dict[str, Member | bytes] = {
        LAYOUT_FILE: encode(OciLayout(image_layout_version=LAYOUT_VERSION)),
        INDEX_FILE: encode(new_index([_entry(name, target) for name, target in targets.items()])),
        f"{BLOBS}/": b"",
    }
    for blob in selection.blobs.values():
        members[f"{BLOBS}/{blob.digest.algorithm}/"] = b""
        members[blob_path(blob.digest)] = Member(blob.size, partial(reader.open_blob, blob))
    listed = [_saved_image(graph, image, tags, selection.blobs) for image, tags in saved.values()] if saved_file else []
    if any(listed):
        members[SAVED_FILE] = encode_json([one for one in listed if one])
    write_tar(write, members, cancel=job.cancel)


def _saved_image(
    graph: ImageGraph, image: Descriptor, names: Sequence[str], blobs: Container[Digest]
) -> dict[str, object] | None:
    """The entry of an image in manifest.json, for ``docker load``; None for an image that cannot run."""
    manifest = graph.manifest(image)
    if manifest.config.media_type not in CONFIGS or any(one.digest not in blobs for one in manifest.layers):
        return None
    return {
        "Config": blob_path(manifest.config.digest),
        "RepoTags": [name for name in names if _is_tagged(name)] or None,
        "Layers": [blob_path(layer.digest) for layer in manifest.layers],
    }


def _entry(name: str, target: Descriptor) -> Descriptor:
    annotations = {**target.annotations, CONTAINERD_NAME: name, REF_NAME: _tag(name) or name}
    return Descriptor(
        media_type=target.media_type,
        digest=target.digest,
        size=target.size,
        annotations=annotations,
        platform=target.platform,
    )


def _tag(name: str) -> str | None:
    try:
        return parse_reference(name).tag
    except LamellaError:
        return None


def _is_tagged(name: str) -> bool:
    return _tag(name) is not None and "@" not in name
