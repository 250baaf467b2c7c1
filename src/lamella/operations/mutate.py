# SPDX-License-Identifier: Apache-2.0
"""An image with another config or other annotations, its layers as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace as replaced

from lamella.images.forms import open_writer
from lamella.images.image import open_image
from lamella.images.naming import ImageName, parse_image_name
from lamella.oci.platform import Platform
from lamella.operations.draft import Draft, Finished, draft_of, write_draft
from lamella.operations.settings import Pairs, Settings, configured, merged, pairs

if TYPE_CHECKING:
    from lamella.progress import Cancellation, Progress

NOTHING: Final = Settings()


def mutate(
    source: str | ImageName,
    target: str | ImageName,
    settings: Settings = NOTHING,
    *,
    annotations: Pairs | None = None,
    platform: str | Platform | None = None,
    replace: bool = False,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Finished:
    """Write the image ``source`` as ``target`` with what ``settings`` say of its config.

    ``annotations`` are those of the manifest. Fields of the documents that are not known stay, and where nothing
    changes the digest stays. ``platform`` chooses from an index; see `open_writer` for ``replace``. Only the documents
    of ``source`` are read, unless the target lacks its layers. Raises InvalidInput, NotFound, AlreadyExists.
    """
    target = parse_image_name(target) if isinstance(target, str) else target
    with open_image(source, platform) as image:
        draft = with_annotations(with_settings(draft_of(image), settings), annotations or {})
        with open_writer(target, replace=replace) as writer:
            return write_draft(draft, writer, tag=target.tag, progress=progress, cancel=cancel)


def with_settings(draft: Draft, settings: Settings) -> Draft:
    """``draft`` with another config."""
    return replaced(draft, config=configured(draft.config, settings))


def with_annotations(draft: Draft, annotations: Pairs) -> Draft:
    """``draft`` with these annotations set or, where the value is None, taken away."""
    changed = merged(draft.manifest.annotations, pairs("annotations", annotations))
    return replaced(draft, manifest=msgspec.structs.replace(draft.manifest, annotations=changed))
