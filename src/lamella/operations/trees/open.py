# SPDX-License-Identifier: Apache-2.0
"""Open a place as a tree: the merged view of an image, a single layer, or a directory on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.changes.contracts import Tree
from lamella.changes.job import Job
from lamella.errors import InvalidInput
from lamella.images.transports import TRANSPORTS
from lamella.layers import kinds
from lamella.streams.blob_reader import BlobReader, open_blob
from lamella.streams.seekable import SeekableBlob

if TYPE_CHECKING:
    from lamella.images.resolve import PlatformImage
    from lamella.oci.platform import Platform


def names_a_tree(text: str) -> bool:
    """Whether ``text`` begins with a form that `open_tree` takes."""
    return names_an_image(text) or names_a_place(text)


def names_an_image(text: str) -> bool:
    """Whether ``text`` begins with a form of images."""
    form, colon, _ = text.partition(":")
    if not colon or form == "blob" or kinds.kind_of_form(form, installed=False) is not None:
        return False
    return form in TRANSPORTS


def names_a_place(text: str) -> bool:
    """Whether ``text`` begins with a form of `open_tree` that does not name an image."""
    form, colon, _ = text.partition(":")
    if not colon or form in TRANSPORTS.built_in:
        return False
    return form == "blob" or kinds.kind_of_form(form) is not None


@contextmanager
def open_tree(place: str, *, platform: str | Platform | None = None, job: Job | None = None) -> Iterator[Tree]:
    """The tree at ``place``, valid until the block ends.

    A place is ``dir:PATH``, ``blob:FILE``, ``erofs:FILE``, ``windows:PLACE`` (the folder or the blob of a Windows
    layer), ``cim:DIR/NAME.cim``, or the name of an image.

    Raises InvalidInput, NotFound and what reading the place raises.
    """
    form, _, path = place.partition(":")
    kind = None if names_an_image(place) else kinds.kind_of_form(form)
    if (form == "blob" or kind is not None) and not path:
        raise InvalidInput(f"{place!r} has no path")
    if form == "blob" or (form == "windows" and os.path.isfile(path)):
        with blob_tree(Path(path), windows=form == "windows", job=job) as tree:
            yield tree
    elif kind is not None:
        with closing(kinds.tree(kind, Path(path))) as opened:
            yield opened
    else:
        from lamella.images.resolve import open_platform_image

        refuse_path(place)
        with open_platform_image(place, platform) as image, image_tree(image, job=job) as tree:
            yield tree


def refuse_path(place: str) -> None:
    """Raise InvalidInput if ``place`` is a path without a form; the hint names the forms that fit."""
    if names_a_tree(place):
        return
    if os.path.isdir(place):
        layout = os.path.isfile(os.path.join(place, "oci-layout"))
        hint = f"write oci:{place} for the images in it" if layout else f"write dir:{place} for the directory"
    elif os.path.isfile(place) and not place.lower().endswith(".cim"):
        hint = f"write blob:{place} for a layer, oci-archive:{place} or docker-archive:{place} for the images in it"
    else:
        return
    raise InvalidInput(f"{place!r} does not say what kind of place it is", hint=hint)


@contextmanager
def image_tree(image: PlatformImage, *, job: Job | None = None) -> Iterator[Tree]:
    """The merged view of an image, valid until the block ends.

    Each layer is read once and checked as unpacking checks it; file content is read from the layers on demand. The tree
    of a Windows image ignores case in names, and its entries also have a POSIX facet, as `posix_from_windows` makes it.
    Raises what unpacking raises.
    """
    from lamella.operations.layers.read import is_windows, lower_and_upper

    job = job or Job()
    if is_windows(image):
        from lamella.layers.windows.names import Spelling
        from lamella.layers.windows.tree import WindowsTree

        with lower_and_upper(image.layers, 0, job, spelling=Spelling()) as (_, tree):
            yield WindowsTree(tree)
    else:
        with lower_and_upper(image.layers, 0, job) as (_, tree):
            yield tree


@contextmanager
def blob_tree(blob: Path, *, windows: bool = False, job: Job | None = None) -> Iterator[Tree]:
    """The tree of a single layer without any below it, valid until the block ends. Raises what applying it raises.

    Hard links to files of lower layers are as `show_links` gives them. With ``windows`` the tree is as `image_tree`
    gives it; without it, alternate data streams of a Windows layer are files.
    """
    from lamella.changes.apply import apply
    from lamella.changes.single_layer import show_links
    from lamella.changes.tree import MemorySink, MemoryTree
    from lamella.layers.windows.names import Spelling
    from lamella.layers.windows.tree import WindowsTree
    from lamella.operations.layers.read import changes_of_blob

    job = job or Job()
    tree, spelling = MemoryTree(streams=windows), Spelling() if windows else None
    with closing(SeekableBlob(lambda: open_blob(blob), None)) as stored:
        with BlobReader(blob, hash_blob=False, hash_stream=False, progress=job.advance, cancel=job.cancel) as reader:
            changes = changes_of_blob(reader, stored=stored, spelling=spelling)
            apply(show_links(changes, tree), MemorySink(tree), cancel=job.cancel)
            reader.finish()
        yield WindowsTree(tree) if windows else tree
