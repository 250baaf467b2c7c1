# SPDX-License-Identifier: Apache-2.0
"""Whatever can be looked into, as a tree: an image's merged view, a single layer, a directory on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lamella.changes.contracts import Tree
from lamella.errors import InvalidInput
from lamella.images.transports import TRANSPORTS
from lamella.layers import kinds
from lamella.streams.blob_reader import BlobReader, open_blob
from lamella.streams.seekable import SeekableBlob

if TYPE_CHECKING:
    from lamella.changes.tree import MemoryTree
    from lamella.images.resolve import PlatformImage
    from lamella.layers.windows.casefold import Spelling
    from lamella.oci.platform import Platform
    from lamella.progress import Cancellation, Progress


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
def open_tree(
    place: str,
    *,
    platform: str | Platform | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Iterator[Tree]:
    """The tree that ``place`` names, good until the block ends.

    That is ``dir:PATH``, ``blob:FILE``, ``erofs:FILE``, ``windows:PLACE`` (a layer for Windows: its folder or its
    blob), ``cim:DIR/NAME.cim`` or the name of an image.

    Raises InvalidInput, NotFound and what reading the place raises.
    """
    form, _, path = place.partition(":")
    kind = None if names_an_image(place) else kinds.kind_of_form(form)
    if (form == "blob" or kind is not None) and not path:
        raise InvalidInput(f"{place!r} has no path")
    if form == "windows" and os.path.isfile(path):
        with blob_tree(Path(path), windows=True, progress=progress, cancel=cancel) as seen:
            yield seen
    elif kind is not None:
        with closing(kinds.tree(kind, Path(path))) as found:
            yield found
    elif form == "blob":
        with blob_tree(Path(path), progress=progress, cancel=cancel) as tree:
            yield tree
    else:
        from lamella.images.resolve import open_platform_image

        refuse_path(place)
        with open_platform_image(place, platform) as image, image_tree(image, progress=progress, cancel=cancel) as tree:
            yield tree


def refuse_path(place: str) -> None:
    """Raise InvalidInput where ``place`` is a mere path, to say what to write before it."""
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
def image_tree(
    image: PlatformImage, *, progress: Progress | None = None, cancel: Cancellation | None = None
) -> Iterator[Tree]:
    """The merged view of an image, good until the block ends.

    The layers are read once, whole, and checked as they are when unpacked; the content of a file is read from its layer
    when it is asked for. That of a Windows image finds files in whatever case, and its entries have a POSIX facet too,
    as `posix_from_windows` makes it. Raises as unpacking does.
    """
    from lamella.changes.tree import MemoryTree
    from lamella.layers.windows.casefold import Spelling, WindowsTree
    from lamella.operations.layers.read import is_windows

    windows = is_windows(image)
    tree = MemoryTree(streams=windows)
    with ExitStack() as stack:
        if progress is not None:
            progress.start("read", sum(layer.descriptor.size for layer in image.layers))
        try:
            spelling = Spelling() if windows else None
            for layer in image.layers:
                stored = _stored(layer.open, layer.compression, stack)
                promised = layer.descriptor
                with (
                    layer.open() as file,
                    BlobReader(
                        file,
                        compression=layer.compression,
                        digest=promised.digest,
                        size=promised.size,
                        diff_id=layer.diff_id,
                        progress=None if progress is None else progress.advance,
                        cancel=cancel,
                    ) as reader,
                ):
                    _apply(reader, stored, tree, cancel, spelling)
        finally:
            if progress is not None:
                progress.finish()
        yield WindowsTree(tree) if windows else tree


@contextmanager
def blob_tree(
    blob: Path, *, windows: bool = False, progress: Progress | None = None, cancel: Cancellation | None = None
) -> Iterator[Tree]:
    """What a single layer comes to with nothing below it, good until the block ends. Raises as applying it does.

    Hard links to files that the layer does not have are as `links_shown` gives them. A ``windows`` layer is seen as
    `image_tree` shows those of an image; read as any other, its alternate data streams are files.
    """
    from lamella.changes.tree import MemoryTree
    from lamella.layers.windows.casefold import Spelling, WindowsTree

    tree, spelling = MemoryTree(streams=windows), Spelling() if windows else None
    with ExitStack() as stack:
        advance = None if progress is None else progress.advance
        with BlobReader(blob, hash_blob=False, hash_stream=False, progress=advance, cancel=cancel) as reader:
            _apply(reader, _stored(lambda: open_blob(blob), None, stack), tree, cancel, spelling, alone=True)
        yield WindowsTree(tree) if windows else tree


def _stored(opened: Callable[[], BinaryIO], compression: str | None, stack: ExitStack) -> SeekableBlob:
    stored = SeekableBlob(opened, compression)
    stack.callback(stored.close)
    return stored


def _apply(
    reader: BlobReader,
    stored: SeekableBlob,
    tree: MemoryTree,
    cancel: Cancellation | None,
    spelling: Spelling | None = None,
    *,
    alone: bool = False,
) -> None:
    from lamella.changes.apply import apply
    from lamella.changes.single_layer import links_shown
    from lamella.changes.tree import MemorySink
    from lamella.operations.layers.read import changes_of_blob

    changes = changes_of_blob(reader, stored=stored, spelling=spelling)
    apply(links_shown(changes, tree) if alone else changes, MemorySink(tree), cancel=cancel)
    reader.finish()
