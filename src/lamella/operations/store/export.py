# SPDX-License-Identifier: Apache-2.0
"""Images from a store to anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lamella.changes.job import Job
from lamella.images.transports import STORE, ImageName, Syntax, parse_image_name
from lamella.oci.platform import Platform, parse_platform
from lamella.operations.copy import Copied, copy_image
from lamella.store.contract import Resource
from lamella.store.gc.labels import CONTENT
from lamella.store.image_reader import StoreReader
from lamella.store.metadata.leases import under_lease

if TYPE_CHECKING:
    from lamella.store.store import LocalNamespace


def export_image(
    space: LocalNamespace,
    name: str,
    target: str | ImageName,
    *,
    platform: str | Platform | None = None,
    all_platforms: bool = False,
    replace: bool = False,
    job: Job | None = None,
) -> Copied:
    """Copy the image ``name`` (``busybox`` will do) of a namespace to any form of place.

    A layout or an archive notes it by its full name, unless ``target`` says a tag. Raises as `copy_image` does.
    """
    from lamella.images.transports import open_writer

    job = job or Job()
    target = parse_image_name(target) if isinstance(target, str) else target
    source = parse_image_name(f"{STORE}:{name}")
    tag = target.tag
    if tag is None and target.syntax is Syntax.PATH and source.tag is not None:
        tag = f"{source.path}:{source.tag}"
    with (
        StoreReader(space, source) as reader,
        _kept(space, reader),
        open_writer(target, replace=replace) as writer,
    ):
        return copy_image(
            reader,
            writer,
            tag=source.tag,
            new_tag=tag,
            platform=parse_platform(platform) if isinstance(platform, str) else platform,
            all_platforms=all_platforms,
            progress=job.progress,
            cancel=job.cancel,
        )


@contextmanager
def _kept(space: LocalNamespace, reader: StoreReader) -> Iterator[None]:
    """Let the image stay as long as the block lasts, even if its name goes; in a store that can be written to."""
    if space.store.readonly:
        yield
        return
    with under_lease(space) as held:
        for image in reader.images():
            assert held.lease is not None  # noqa: S101  # that is what `under_lease` is for
            held.leases.add(held.lease, Resource(CONTENT, image.descriptor.digest))
        yield
