# SPDX-License-Identifier: Apache-2.0
"""Writes trees as OCI layouts, with skopeo for the compression that most images in the wild have."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.corpus.packages import DAY, run

TAR = (
    *("tar", "--format=pax", "--sort=name", "--numeric-owner", "--clamp-mtime", f"--mtime=@{DAY}"),
    "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
)


def tar_tree(tree: Path, removes: tuple[str, ...], out: Path) -> None:
    """Write a tree as one layer's tar; the paths that it removes become whiteouts."""
    for path in removes:
        parent, _, name = path.rpartition("/")
        marker = tree / parent / f".wh.{name}"
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    names = sorted(path.name for path in tree.iterdir())
    run(*TAR, "-C", str(tree), "-cf", str(out), *names)


class Layout:
    """An OCI layout being written: blobs by digest, an index at the end."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self._blobs = where / "blobs/sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)

    def _document(self, media_type: str, document: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps(document, separators=(",", ":")).encode()
        digest = hashlib.sha256(body).hexdigest()
        (self._blobs / digest).write_bytes(body)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(body)}

    def add_blob(self, media_type: str, path: Path) -> dict[str, Any]:
        """Move a file in as a blob and return its descriptor."""
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        size = path.stat().st_size
        shutil.move(path, self._blobs / digest)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}

    def write_image(self, layers: list[dict[str, Any]], diff_ids: list[str], tag: str) -> None:
        """Write config, manifest and index for one image."""
        config = self._document(
            "application/vnd.oci.image.config.v1+json",
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"], "Cmd": ["/bin/bash"]},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            },
        )
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = self._document(kind, {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers})
        manifest["annotations"] = {"org.opencontainers.image.ref.name": tag}
        index = {"schemaVersion": 2, "manifests": [manifest]}
        (self._where / "index.json").write_text(json.dumps(index))
        (self._where / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


def compress(plain: Path, into: Path, how: str) -> None:
    """Copy the image `plain:plain` into another layout under the tag `how`, its layers compressed so."""
    run(
        *("skopeo", "--insecure-policy", "copy", "--quiet", "--dest-compress", "--dest-compress-format", how),
        *(f"oci:{plain}:plain", f"oci:{into}:{how}"),
    )


def layers_of(layout: Path, tag: str) -> list[Path]:
    """Return the paths of an image's layer blobs, base first."""
    index = json.loads((layout / "index.json").read_text())
    for manifest in index["manifests"]:
        if manifest.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag:
            document = json.loads(_blob(layout, manifest["digest"]).read_text())
            return [_blob(layout, layer["digest"]) for layer in document["layers"]]
    raise SystemExit(f"{layout} has no image {tag}")


def _blob(layout: Path, digest: str) -> Path:
    algorithm, _, encoded = digest.partition(":")
    return layout / "blobs" / algorithm / encoded
