# SPDX-License-Identifier: Apache-2.0
"""Results as plain values for --json, in the names of the image specification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.changes.losses import Losses
    from lamella.images.image import Image
    from lamella.operations.apply import Applied
    from lamella.operations.unpack import Unpacked


def losses_document(losses: Losses) -> dict[str, Any]:
    """What was lost, where something was: the first ones in full, and the count of all."""
    if not len(losses):
        return {}
    return {
        "losses": [{"path": loss.path, "what": loss.what, "why": loss.why} for loss in losses],
        "losses_count": len(losses),
    }


def applied_document(applied: Applied) -> dict[str, Any]:
    """What came of one layer."""
    facts = applied.facts
    return {
        "digest": facts.digest,
        "size": facts.size,
        "diff_id": facts.diff_id,
        "tar_size": facts.tar_size,
        "entries": applied.entries,
    }


def unpacked_document(image: Image, unpacked: Unpacked) -> dict[str, Any]:
    """What came of an image: its manifest and layers, the base first."""
    from lamella.operations.inspect import describe_descriptor

    return {
        "directory": str(unpacked.directory),
        "manifest": describe_descriptor(image.descriptor),
        "layers": [
            {"mediaType": layer.descriptor.media_type, **applied_document(applied)}
            for layer, applied in zip(image.layers, unpacked.layers, strict=True)
        ],
        **losses_document(unpacked.losses),
    }
