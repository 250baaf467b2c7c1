# SPDX-License-Identifier: Apache-2.0
"""Small images built with the standard library alone, independent of the code under test."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from lamella.digests import parse_digest
from lamella.oci.descriptor import Descriptor
from lamella.store.image_writer import StoreWriter

if TYPE_CHECKING:
    from lamella.store.store import LocalNamespace

OCI = "application/vnd.oci.image."


def digest(raw: bytes) -> str:
    """Return the sha256 digest of ``raw``."""
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def compact(value: object) -> bytes:
    """Encode ``value`` as compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def tar_of(files: Mapping[str, bytes | tuple[bytes, str]]) -> bytes:
    """Return a tar archive of ``files``, content by name; a pair is a typeflag and the target of a link."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                member.type, member.linkname = content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return raw.getvalue()


class SmallImage(Struct):
    """Manifest, config and blobs, by digest, of an image for one platform."""

    manifest: dict[str, Any]
    config: dict[str, Any]
    blobs: dict[str, bytes] = field(default_factory=dict)

    @property
    def descriptor(self) -> dict[str, Any]:
        """Descriptor of the manifest."""
        raw = compact(self.manifest)
        return {"mediaType": self.manifest["mediaType"], "digest": digest(raw), "size": len(raw)}

    @property
    def layers(self) -> list[bytes]:
        """Blobs of the layers, base first."""
        return [self.blobs[layer["digest"]] for layer in self.manifest["layers"]]


def small_image(
    *layers: Mapping[str, bytes], platform: str = "linux/amd64", compress: bool = True, **config: object
) -> SmallImage:
    """Return an OCI image whose ``layers`` hold the given files, base first."""
    return image_of_tars([tar_of(files) for files in layers], platform, compress=compress, **config)


def image_of_tars(
    tars: Sequence[bytes], platform: str = "linux/amd64", *, compress: bool = True, **config: object
) -> SmallImage:
    """Return an OCI image of the layers ``tars``, base first."""
    system, architecture, variant = (*platform.split("/"), "")[:3]
    blobs = [gzip.compress(tar, mtime=0) if compress else tar for tar in tars]
    document = {
        "architecture": architecture,
        "os": system,
        **({"variant": variant} if variant else {}),
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar in tars]},
    }
    raw_config = compact(document)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI + "manifest.v1+json",
        "config": {"mediaType": OCI + "config.v1+json", "digest": digest(raw_config), "size": len(raw_config)},
        "layers": [
            {
                "mediaType": OCI + ("layer.v1.tar+gzip" if compress else "layer.v1.tar"),
                "digest": digest(blob),
                "size": len(blob),
            }
            for blob in blobs
        ],
    }
    everything = [raw_config, compact(manifest), *blobs]
    return SmallImage(manifest, document, {digest(raw): raw for raw in everything})


def index_of(*images: SmallImage) -> tuple[dict[str, Any], bytes]:
    """Return the descriptor and bytes of an index that lists each image under the platform of its config."""
    entries = [
        {
            **image.descriptor,
            "platform": {key: image.config[key] for key in ("architecture", "os", "variant") if key in image.config},
        }
        for image in images
    ]
    raw = compact({"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": entries})
    return {"mediaType": OCI + "index.v1+json", "digest": digest(raw), "size": len(raw)}, raw


def index_lattice(
    width: int, levels: int, *images: SmallImage, about: str = "", leaves: Sequence[Mapping[str, Any]] = ()
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return an index of ``levels`` levels, each ``width`` wide, whose indexes list all indexes of the next level.

    The lowest level lists ``images``, then the descriptors ``leaves``. Returns the descriptor of the top and all blobs.
    A walk that does not remember visited digests reads ``width ** levels`` documents instead of ``width * levels``.
    ``about`` makes the digests of one lattice differ from those of another.
    """
    blobs = {name: raw for image in images for name, raw in image.blobs.items()}
    entries = [*json.loads(index_of(*images)[1])["manifests"], *leaves]
    for level in reversed(range(levels)):
        documents = [
            compact(
                {
                    "schemaVersion": 2,
                    "mediaType": OCI + "index.v1+json",
                    "manifests": entries,
                    "annotations": {"place": f"{about}{level}.{number}"},
                }
            )
            for number in range(width if level else 1)
        ]
        blobs.update((digest(raw), raw) for raw in documents)
        entries = [{"mediaType": OCI + "index.v1+json", "digest": digest(raw), "size": len(raw)} for raw in documents]
    return entries[0], blobs


def tagged(descriptor: Mapping[str, Any], tag: str) -> dict[str, Any]:
    """Return the entry of index.json that tags ``descriptor``."""
    return {**descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}}


def layout_files(entries: Iterable[Mapping[str, Any]], blobs: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files of an OCI layout by name."""
    return {
        "oci-layout": compact({"imageLayoutVersion": "1.0.0"}),
        "index.json": compact({"schemaVersion": 2, "manifests": list(entries)}),
        **{f"blobs/{name.replace(':', '/')}": raw for name, raw in blobs.items()},
    }


def write_layout(path: str, entries: Iterable[Mapping[str, Any]], blobs: Mapping[str, bytes]) -> str:
    """Write an OCI layout into the directory ``path`` and return ``path``."""
    for name, raw in layout_files(entries, blobs).items():
        target = os.path.join(path, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(raw)
    return path


def descriptor_of(image: SmallImage) -> Descriptor:
    """Return the descriptor of the manifest of an image."""
    named = image.descriptor
    return Descriptor(media_type=named["mediaType"], digest=parse_digest(named["digest"]), size=named["size"])


def put_image(space: LocalNamespace, image: SmallImage, name: str) -> Descriptor:
    """Store an image in a namespace under a name, without checking its bytes; return the descriptor of its manifest."""
    manifest = descriptor_of(image)
    with StoreWriter(space) as writer:
        for digest, raw in image.blobs.items():
            blob = Descriptor(media_type="", digest=parse_digest(digest), size=len(raw))
            if not writer.has_blob(blob):
                writer.put_blob(blob, [raw])
        writer.give_name(name, manifest)
    return manifest
