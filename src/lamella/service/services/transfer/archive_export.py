# SPDX-License-Identifier: Apache-2.0
"""Images of a namespace as an archive that is sent while it is made: an OCI layout that ``docker load`` takes too.

An index stays what it is, so that digests do, also where not all of its images come along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from lamella.errors import LamellaError, NotFound, SizeMismatch, Unsupported
from lamella.formats.tar.writer import TarWriter
from lamella.images.contract import Buffer
from lamella.images.resolve import MAX_INDEX_DEPTH, read_manifest
from lamella.oci.descriptor import Descriptor
from lamella.oci.docker import SAVED_FILE
from lamella.oci.documents import encode, encode_json
from lamella.oci.index import decode_index, new_index
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
from lamella.oci.mediatypes import CONFIGS, FOREIGN_LAYERS, INDEXES, MANIFESTS
from lamella.oci.platform import Platform, best_match, host_platform
from lamella.oci.reference import parse_reference
from lamella.store.contract import Resource
from lamella.store.gc.labels import CONTENT
from lamella.store.image_reader import StoreReader

if TYPE_CHECKING:
    from lamella.digests import Digest
    from lamella.oci.manifest import Manifest
    from lamella.store.store import Space

_CHUNK: Final = 1 << 20


def export_archive(
    space: Space,
    names: Iterable[str],
    write: Callable[[Buffer], object],
    platforms: Sequence[Platform | None] | None,
    *,
    saved_file: bool = True,
    foreign: bool = True,
) -> None:
    """Write an archive of the images ``names`` of ``space``, which has a lease, piece by piece.

    Of an index comes the best image for each of ``platforms``, this host's where none is given, and all where that is
    None. ``saved_file`` adds what ``docker load`` looks for; ``foreign`` takes layers that may not be passed on, as far
    as they are there. Nothing is written before all is found. The same images give the same bytes.
    Raises NotFound, Unsupported, Integrity, and whatever ``write`` raises.
    """
    wanted = platforms if platforms is None else [one or host_platform() for one in platforms or [None]]
    assert space.lease is not None  # noqa: S101  # what is being sent must not go meanwhile
    gathering = _Gathering(StoreReader(space), wanted, foreign=foreign)
    entries: list[Descriptor] = []
    saved: dict[Digest, list[str]] = {}
    for name in names:
        target = space.images.get(name).target
        space.leases.add(space.lease, Resource(CONTENT, target.digest))
        image = gathering.add(target)
        if image is not None:
            saved.setdefault(image.digest, []).append(name)
        entries.append(_entry(name, target))
    members: dict[str, bytes | Descriptor] = {
        LAYOUT_FILE: encode(OciLayout(image_layout_version=LAYOUT_VERSION)),
        INDEX_FILE: encode(new_index(entries)),
        f"{BLOBS}/": b"",
    }
    for blob in gathering.blobs.values():
        members[f"{BLOBS}/{blob.digest.algorithm}/"] = b""
        members[blob_path(blob.digest)] = blob
    listed = [gathering.saved(digest, tags) for digest, tags in saved.items()] if saved_file else []
    if any(listed):
        members[SAVED_FILE] = encode_json([one for one in listed if one])
    _write(space, members, write)


class _Gathering:
    """The blobs that images consist of."""

    def __init__(self, reader: StoreReader, platforms: Sequence[Platform] | None, *, foreign: bool) -> None:
        self._reader = reader
        self._platforms = platforms
        self._foreign = foreign
        self.blobs: dict[Digest, Descriptor] = {}
        self._manifests: dict[Digest, Manifest] = {}

    def add(self, image: Descriptor, depth: int = 0) -> Descriptor | None:
        """Take an image or an index with what it leads to; the manifest that stands for it, if there is one."""
        if image.media_type in INDEXES:
            if depth >= MAX_INDEX_DEPTH:
                raise Unsupported(f"indexes are nested deeper than {MAX_INDEX_DEPTH} levels")
            self._take(image)
            what = f"index {image.digest}"
            entries = decode_index(self._reader.read_document(image), image.media_type, what).manifests
            chosen = self._chosen(entries, what)
            found = {entry.digest: self.add(entry, depth + 1) for entry in chosen}
            best = best_match(host_platform(), [(entry.platform, entry) for entry in chosen if entry.platform])
            if self._platforms is None and best is not None:
                return found[best.digest]
            return next((one for one in found.values() if one is not None), None)
        self._take(image)
        if image.media_type not in MANIFESTS:
            return None
        manifest = self._manifests[image.digest] = read_manifest(self._reader, image).manifest
        for part in (manifest.config, *manifest.layers):
            if part.media_type in FOREIGN_LAYERS and not (self._foreign and self._reader.has_blob(part)):
                continue
            self._take(part)
        return image

    def saved(self, digest: Digest, names: Sequence[str]) -> dict[str, object] | None:
        """The entry of an image for ``docker load``, if it is one that could be run."""
        manifest = self._manifests[digest]
        if manifest.config.media_type not in CONFIGS or any(one.digest not in self.blobs for one in manifest.layers):
            return None
        return {
            "Config": blob_path(manifest.config.digest),
            "RepoTags": [name for name in names if _is_tagged(name)] or None,
            "Layers": [blob_path(layer.digest) for layer in manifest.layers],
        }

    def _chosen(self, entries: Sequence[Descriptor], what: str) -> list[Descriptor]:
        if self._platforms is None:
            return list(entries)
        offers = [(entry.platform, entry) for entry in entries if entry.platform is not None]
        best = [best_match(platform, offers) for platform in self._platforms]
        chosen = {one.digest: one for one in best if one is not None}
        for entry in entries:  # which may be for any platform
            if entry.platform is None and self._reader.has_blob(entry):
                chosen.setdefault(entry.digest, entry)
        if not chosen:
            raise NotFound(f"{what}: there is no image for {', '.join(map(str, self._platforms))}")
        return list(chosen.values())

    def _take(self, blob: Descriptor) -> None:
        self._reader.open_blob(blob).close()
        self.blobs.setdefault(blob.digest, blob)


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


def _write(space: Space, members: dict[str, bytes | Descriptor], write: Callable[[Buffer], object]) -> None:
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
                count = file.readinto(room[: min(left, _CHUNK)])  # type: ignore[attr-defined]
                if not count:
                    raise SizeMismatch(name, expected=content.size, actual=content.size - left)
                writer.data(room[:count])
                left -= count
    writer.close()
