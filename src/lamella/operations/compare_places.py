# SPDX-License-Identifier: Apache-2.0
"""Places that are no images, as a comparison of files takes them: directories, layers, EROFS and composite images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lamella.changes.alone import links_shown
from lamella.changes.apply import apply
from lamella.changes.contracts import Source
from lamella.changes.tree import MemorySink, MemoryTree, walk
from lamella.errors import InvalidInput
from lamella.images.image import open_image
from lamella.images.naming import ImageName
from lamella.layers import kinds
from lamella.layers.facets import posix_from_windows
from lamella.operations.fingerprints import fingerprinted
from lamella.operations.layer_reading import changes_of_blob, is_windows, layer_changes
from lamella.operations.trees import names_a_place, open_tree
from lamella.streams.reading import BlobReader

if TYPE_CHECKING:
    from lamella.layers.windows_view import Spelling
    from lamella.oci.platform import Platform
    from lamella.progress import Cancellation, Progress


def fingerprinted_place(
    place: str | ImageName,
    spelling: Spelling,
    *,
    platform: str | Platform | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> tuple[MemoryTree, bool]:
    """What ``place`` comes to, with a fingerprint in place of each file's content, and whether that is of Windows.

    A place is what `open_tree` takes. Files of Windows are spelled as ``spelling`` has it from what went before; what
    the import of a layer derives is left out of a composite image. Raises as reading the place does.
    """
    if isinstance(place, str) and names_a_place(place):
        form, _, path = place.partition(":")
        of_windows = _OF_WINDOWS.get(form)
        windows = of_windows is not None
        tree = MemoryTree(streams=windows)
        if windows and not path:
            raise InvalidInput(f"{place!r} has no path")
        with _walked(place, cancel) if of_windows is None else of_windows(Path(path), spelling) as changes:
            apply(fingerprinted(links_shown(changes, tree)), MemorySink(tree), cancel=cancel)
        return tree, windows
    with open_image(place, platform) as image, ExitStack() as stack:
        windows = is_windows(image)
        tree = MemoryTree(streams=windows)
        if progress is not None:
            progress.start("read", sum(layer.descriptor.size for layer in image.layers))
            stack.callback(progress.finish)
        for layer in image.layers:
            with layer_changes(layer, None, progress, cancel, spelling if windows else None) as stated:
                apply(fingerprinted(stated), MemorySink(tree), cancel=cancel)
    return tree, windows


@contextmanager
def _walked(place: str, cancel: Cancellation | None) -> Iterator[Source]:
    with open_tree(place, cancel=cancel) as tree:
        yield walk(tree)


@contextmanager
def _of_cim(path: Path, spelling: Spelling) -> Iterator[Source]:
    from lamella.layers.cim.files import CimLayer, OpenCim
    from lamella.layers.cim.source import stated_files

    with OpenCim(CimLayer(path)) as image:
        yield posix_from_windows(spelling.respelled(stated_files(image)))


@contextmanager
def _of_windows_layer(path: Path, spelling: Spelling) -> Iterator[Source]:
    if path.is_file():
        with BlobReader(path, hash_blob=False, hash_stream=False) as reader:
            yield changes_of_blob(reader, spelling=spelling)
            reader.finish()
        return
    with kinds.source("windows", path) as (changes, _):
        yield posix_from_windows(spelling.respelled(changes))


_OF_WINDOWS: Final = {"cim": _of_cim, "windows": _of_windows_layer}
"""What places that hold files of Windows state, by their forms."""
