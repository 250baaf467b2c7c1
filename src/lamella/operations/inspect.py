# SPDX-License-Identifier: Apache-2.0
"""Description of an image from its documents, without reading its layers."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from lamella.images.resolve import ImageLayer, PlatformImage
from lamella.oci.config import History
from lamella.oci.descriptor import Descriptor


class Step(Struct, frozen=True):
    """One step of an image's history, with the layer that it made."""

    history: History
    layer: int | None
    """The number of the layer, from 0; None for no layer, or if the history does not account for the layers."""


def steps(image: PlatformImage) -> tuple[Step, ...]:
    """The history, oldest first. Layers are matched only if the history accounts for all of them."""
    history = image.config.history
    matched = sum(not one.empty_layer for one in history) == len(image.layers)
    found: list[Step] = []
    number = 0
    for one in history:
        makes = matched and not one.empty_layer
        found.append(Step(one, number if makes else None))
        number += makes
    return tuple(found)


def describe(image: PlatformImage) -> dict[str, Any]:
    """The image as plain values: name, platform, the descriptors of manifest and layers, the config document.

    ``platforms`` are the choices of an index. ``size`` is the sum of the stored layers in bytes.
    """
    import json

    from lamella.oci.documents import encode

    document: dict[str, Any] = {
        "name": str(image.name) if image.name is not None else None,
        "platform": str(image.platform),
        **({"platforms": [str(one) for one in image.offers]} if image.offers else {}),
        "manifest": describe_descriptor(image.descriptor),
        "size": sum(layer.descriptor.size for layer in image.layers),
        "layers": [describe_layer(layer) for layer in image.layers],
        "config": json.loads(encode(image.config)),
    }
    if image.manifest.annotations:
        document["annotations"] = dict(image.manifest.annotations)
    return document


def describe_layer(layer: ImageLayer) -> dict[str, Any]:
    """A layer's descriptor with its diff id."""
    return {**describe_descriptor(layer.descriptor), "diff_id": layer.diff_id}


def describe_descriptor(descriptor: Descriptor) -> dict[str, Any]:
    """Media type, digest and size."""
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}
