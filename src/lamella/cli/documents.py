# SPDX-License-Identifier: Apache-2.0
"""Results of verbs: as JSON documents with the names of the image specification, and as summaries for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamella.cli.console import Console, counted, human_size

if TYPE_CHECKING:
    from lamella.changes.losses import Losses
    from lamella.images.resolve import PlatformImage
    from lamella.operations.copy import Copied
    from lamella.operations.layers.apply import Applied
    from lamella.operations.layers.write import Written
    from lamella.operations.pack import Packed
    from lamella.operations.surgery.draft import StoredLayer, WrittenImage
    from lamella.operations.unpack import Unpacked
    from lamella.streams.blob_reader import BlobFacts


def losses_document(losses: Losses) -> dict[str, Any]:
    """The first losses in full and the count of all; empty without losses."""
    if not len(losses):
        return {}
    return {
        "losses": [{"path": loss.path, "what": loss.what, "why": loss.why} for loss in losses],
        "losses_count": len(losses),
    }


def applied_document(applied: Applied) -> dict[str, Any]:
    """A layer that was applied."""
    facts = applied.facts
    return {
        "digest": facts.digest,
        "size": facts.size,
        "diff_id": facts.diff_id,
        "tar_size": facts.tar_size,
        "entries": applied.entries,
    }


def written_document(written: Written) -> dict[str, Any]:
    """A layer that was written."""
    from lamella.oci.mediatypes import oci_layer

    facts = written.facts
    return {
        "mediaType": oci_layer(facts.compression),
        "digest": facts.digest,
        "size": facts.size,
        "diff_id": facts.diff_id,
        "tar_size": facts.tar_size,
        "entries": written.entries,
    }


def print_written(console: Console, written: Written, output: str) -> None:
    """Report a layer that was written to ``output`` (``-``: standard output), and its losses."""
    console.losses(written.losses)
    if console.json:
        console.document({**written_document(written), **losses_document(written.losses)})
    elif output != "-":
        print_blob(console, written.facts, written.entries)


def print_blob(console: Console, facts: BlobFacts, entries: int) -> None:
    """Print size, digest and diff id of a layer blob."""
    console.summary(
        f"{counted(entries, 'entry', 'entries')}, {human_size(facts.size)} ({human_size(facts.tar_size)} of tar)"
    )
    console.summary(f"digest   {facts.digest}")
    console.summary(f"diff id  {facts.diff_id}")


def layer_document(layer: StoredLayer) -> dict[str, Any]:
    """A new layer of an image."""
    from lamella.operations.inspect import describe_descriptor

    facts = layer.facts
    document = {**describe_descriptor(layer.descriptor), "diff_id": facts.diff_id, "tar_size": facts.tar_size}
    return document if layer.entries is None else {**document, "entries": layer.entries}


def print_layer(console: Console, layer: StoredLayer) -> None:
    """Print size and diff id of a new layer."""
    console.summary(f"layer of {human_size(layer.facts.size)}, diff id {layer.facts.diff_id}")


def finished_document(image: str, finished: WrittenImage) -> dict[str, Any]:
    """An image that was written, with its new layers."""
    from lamella.operations.inspect import describe_descriptor

    document = {"image": image, **describe_descriptor(finished.descriptor)}
    if finished.new_layers:
        document["layers"] = [layer_document(layer) for layer in finished.new_layers]
    return document


def print_finished(console: Console, image: str, finished: WrittenImage) -> None:
    """Print the digest of an image and its new layers."""
    console.summary(f"{image}: {finished.descriptor.digest}")
    for layer in finished.new_layers:
        print_layer(console, layer)


def packed_document(image: str, packed: Packed) -> dict[str, Any]:
    """An image of one layer that was written."""
    from lamella.operations.inspect import describe_descriptor

    return {
        "image": image,
        **describe_descriptor(packed.descriptor),
        "layers": [written_document(packed.written)],
        **losses_document(packed.written.losses),
    }


def print_packed(console: Console, image: str, packed: Packed) -> None:
    """Print the digest of an image and its one layer."""
    facts = packed.written.facts
    console.summary(f"{image}: {packed.descriptor.digest}")
    console.summary(
        f"{counted(packed.written.entries, 'entry', 'entries')}, {human_size(facts.size)} "
        f"({human_size(facts.tar_size)} of tar), "
        f"diff id {facts.diff_id}"
    )


def unpacked_document(image: PlatformImage, unpacked: Unpacked) -> dict[str, Any]:
    """An unpacked image: its manifest and layers, base first."""
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


def print_copied(console: Console, target: str, copied: Copied) -> None:
    """Report an image that was copied to ``target``."""
    if console.json:
        from lamella.operations.inspect import describe_descriptor

        totals = {"blobs": copied.blobs, "bytes": copied.size, "left": copied.left}
        console.document({"image": target, **describe_descriptor(copied.entry), **totals})
        return
    console.summary(f"{target}: {copied.entry.digest}")
    console.summary(copied_summary(copied))


def copied_summary(copied: Copied) -> str:
    """The blobs that were written, those that the target held before, and layers that no registry may hand on."""
    left = ""
    if copied.left:
        layers = "layer left where it is" if copied.left == 1 else "layers left where they are"
        left = f"; {copied.left} non-distributable {layers}"
    blobs = f"{counted(copied.blobs, 'blob', 'blobs')} written, {human_size(copied.size)}"
    return f"{blobs}; {copied.present} {'was' if copied.present == 1 else 'were'} there already{left}"
