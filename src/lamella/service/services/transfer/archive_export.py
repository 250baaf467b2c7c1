# SPDX-License-Identifier: Apache-2.0
"""Images of a namespace as an archive that is sent while it is made: an OCI layout that ``docker load`` takes too.

An index stays what it is, so that digests do, also where not all of its images come along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from lamella.errors import LamellaError, NotFound, SizeMismatch
from lamella.formats.tar.writer import TarWriter
from lamella.images.contract import Buffer
from lamella.images.graph import ImageGraph, Kind, Node
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
from lamella.oci.mediatypes import CONFIGS, FOREIGN_LAYERS
from lamella.oci.platform import Platform, best_match, host_platform
from lamella.oci.reference import parse_reference
from lamella.store.contract import Resource
from lamella.store.gc.labels import CONTENT
from lamella.store.image_reader import StoreReader

if TYPE_CHECKING:
    from lamella.digests import Digest
    from lamella.progress import Cancellation
    from lamella.store.store import LocalNamespace

_CHUNK: Final = 1 << 20


def export_archive(
    space: LocalNamespace,
    names: Iterable[str],
    write: Callable[[Buffer], object],
    platforms: Sequence[Platform | None] | None,
    *,
    saved_file: bool = True,
    foreign: bool = True,
    cancel: Cancellation | None = None,
) -> None:
    """Write an archive of the images ``names`` of ``space``, which has a lease, piece by piece.

    Of an index comes the best image for each of ``platforms``, this host's where none is given, and all where that is
    None. ``saved_file`` adds what ``docker load`` looks for; ``foreign`` takes layers that may not be passed on, as far
    as they are there. Nothing is written before all is found. The same images give the same bytes.
    Raises NotFound, Unsupported, Integrity, Cancelled, and whatever ``write`` raises.
    """
    wanted = platforms if platforms is None else [one or host_platform() for one in platforms or [None]]
    assert space.lease is not None  # noqa: S101  # what is being sent must not go meanwhile
    targets: dict[str, Descriptor] = {}
    for name in names:
        targets[name] = space.images.get(name).target
        space.leases.add(space.lease, Resource(CONTENT, targets[name].digest))
    selection = _Selection(ImageGraph(StoreReader(space), cancel=cancel), wanted, foreign=foreign)
    selection.add(targets.values())
    saved: dict[Digest, tuple[Descriptor, list[str]]] = {}
    for name, target in targets.items():
        image = selection.images[target.digest]
        if image is not None:
            saved.setdefault(image.digest, (image, []))[1].append(name)
    members: dict[str, bytes | Descriptor] = {
        LAYOUT_FILE: encode(OciLayout(image_layout_version=LAYOUT_VERSION)),
        INDEX_FILE: encode(new_index([_entry(name, target) for name, target in targets.items()])),
        f"{BLOBS}/": b"",
    }
    for blob in selection.blobs.values():
        members[f"{BLOBS}/{blob.digest.algorithm}/"] = b""
        members[blob_path(blob.digest)] = blob
    listed = [selection.saved(image, tags) for image, tags in saved.values()] if saved_file else []
    if any(listed):
        members[SAVED_FILE] = encode_json([one for one in listed if one])
    _write(space, members, write, cancel)


class _Selection:
    """The blobs of images for chosen platforms, and the manifest that stands for each image or index."""

    def __init__(self, graph: ImageGraph, platforms: Sequence[Platform] | None, *, foreign: bool) -> None:
        self._graph = graph
        self._platforms = platforms
        self._foreign = foreign
        self._chosen: dict[Digest, list[Descriptor]] = {}
        self.blobs: dict[Digest, Descriptor] = {}
        self.images: dict[Digest, Descriptor | None] = {}
        """By the digest of a manifest or index: the manifest that stands for it, None where there is none."""

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

    def saved(self, image: Descriptor, names: Sequence[str]) -> dict[str, object] | None:
        """The entry of an image for ``docker load``, if it can be run."""
        manifest = self._graph.manifest(image)
        if manifest.config.media_type not in CONFIGS or any(one.digest not in self.blobs for one in manifest.layers):
            return None
        return {
            "Config": blob_path(manifest.config.digest),
            "RepoTags": [name for name in names if _is_tagged(name)] or None,
            "Layers": [blob_path(layer.digest) for layer in manifest.layers],
        }

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
        for entry in entries:  # which may be for any platform
            if entry.platform is None and self._graph.reader.has_blob(entry):
                chosen.setdefault(entry.digest, entry)
        if not chosen:
            raise NotFound(f"{what}: there is no image for {', '.join(map(str, self._platforms))}")
        return list(chosen.values())

    def _representative(self, chosen: Sequence[Descriptor]) -> Descriptor | None:
        """The image of an index that stands for it: this host's among all platforms, else the first."""
        best = best_match(host_platform(), [(entry.platform, entry) for entry in chosen if entry.platform])
        if self._platforms is None and best is not None:
            return self.images[best.digest]
        return next((image for image in (self.images[one.digest] for one in chosen) if image is not None), None)


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


def _write(
    space: LocalNamespace,
    members: dict[str, bytes | Descriptor],
    write: Callable[[Buffer], object],
    cancel: Cancellation | None,
) -> None:
    writer = TarWriter(write)
    reader = StoreReader(space)
    room = memoryview(bytearray(_CHUNK))
    for name in sorted(members):
        content = members[name]
        if isinstance(content, bytes):
            mode, kind = (0o755, "5") if name.endswith("/") else (0o644, "0")
            writer.member(name, kind, mode=mode, uid=0, gid=0, size=len(content), mtime=0)
            writer.data(content)
            continue
        writer.member(name, "0", mode=0o644, uid=0, gid=0, size=content.size, mtime=0)
        left = content.size
        with reader.open_blob(content) as file:
            while left:
                if cancel is not None:
                    cancel.check()
                count = file.readinto(room[: min(left, _CHUNK)])  # type: ignore[attr-defined]
                if not count:
                    raise SizeMismatch(name, expected=content.size, actual=content.size - left)
                writer.data(room[:count])
                left -= count
    writer.close()
