# SPDX-License-Identifier: Apache-2.0
"""Test images made from changes written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lamella.changes.model import Change
from lamella.images.transports import open_writer, parse_image_name
from lamella.oci.config import ContainerConfig, History, ImageConfig, RootFs
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import encode
from lamella.oci.manifest import new_manifest
from lamella.oci.mediatypes import OCI_CONFIG, OCI_MANIFEST, oci_layer
from lamella.operations.layers.write import LayerOptions, write_layer

MakeImage = Callable[..., str]


@pytest.fixture
def make_image(tmp_path: Path) -> MakeImage:
    """Return a function that writes layers, base first, as an image and returns its name."""

    def make(
        *layers: Sequence[Change],
        name: str = f"oci:{tmp_path}/image:test",
        config: ContainerConfig | None = None,
        architecture: str = "amd64",
    ) -> str:
        parsed = parse_image_name(name)
        with open_writer(parsed) as writer:
            descriptors, diff_ids = [], []
            for changes in layers:
                with writer.stage() as blob:
                    facts = write_layer(changes, blob.file, LayerOptions(subsecond=True)).facts
                    blob.keep(facts.digest, facts.size)
                descriptors.append(Descriptor(media_type=oci_layer("gzip"), digest=facts.digest, size=facts.size))
                diff_ids.append(facts.diff_id)
            document = ImageConfig(
                architecture=architecture,
                os="linux",
                created="2024-01-02T03:04:05Z",
                rootfs=RootFs(diff_ids=diff_ids),
                config=config or ContainerConfig(),
                history=[History(created_by=f"step {number}") for number in range(len(layers))],
            )
            about = writer.put_document(OCI_CONFIG, encode(document))
            manifest = writer.put_document(OCI_MANIFEST, encode(new_manifest(about, descriptors)))
            writer.commit(parsed.tag, manifest)
        return name

    return make
