# SPDX-License-Identifier: Apache-2.0
"""The differ of mounts with POSIX files: directories, overlays and EROFS images.

If possible, nothing is mounted: a layer is applied to, or read from, the upper directory of an overlay. Otherwise the
mounts are mounted for the call, at a temporary directory that other users cannot reach.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lamella.changes.contracts import Source
from lamella.changes.losses import Losses
from lamella.errors import Unsupported, from_os
from lamella.layers.overlay.layer import OverlayLayer
from lamella.layers.overlay.sink import OverlaySink
from lamella.layers.stack import LayerStack
from lamella.service.differs.contract import Lookup, MakeLayer, Mounts, Target, WriteLayer
from lamella.store.contract import BindMount, ErofsMount, OverlayMount

if TYPE_CHECKING:
    from lamella.operations.layers.write import Written
    from lamella.streams.blob_reader import BlobReader

LOG = logging.getLogger("lamella.service")


class WalkingDiffer:
    """Differ of layers with POSIX metadata (`Differ`)."""

    name: Final = "walking"
    layers: Final = ("directory", "overlay", "erofs")

    def supports(self, mounts: Mounts) -> bool:
        return all(isinstance(mount, (BindMount, OverlayMount, ErofsMount)) for mount in mounts)

    @contextmanager
    def open_target(self, mounts: Mounts, losses: Losses) -> Iterator[Target]:
        from lamella.layers.directory.sink import DirectorySink

        match mounts:
            case (OverlayMount(lower, Path() as upper, _, options),) if _is_empty(upper):
                # Without lower directories the parents are unknown: a client may rebase the snapshot when it commits.
                below = [_overlay_layer(path, options) for path in lower]
                parents = LayerStack.from_nearest(below) if below else None
                yield Target(
                    OverlaySink(_overlay_layer(upper, options), parents=parents, losses=losses), upper, _changes
                )
            case (BindMount(source, False),):
                yield Target(DirectorySink(source, losses=losses), source, _changes)
            case _:
                from lamella.store.mounting import mounted

                with mounted(mounts) as root:
                    yield Target(DirectorySink(root, losses=losses), root, _changes)

    def plan_diff(self, left: Mounts, right: Mounts) -> MakeLayer:
        return partial(_write, left, right)


def _changes(reader: BlobReader) -> Source:
    from lamella.layers.tar.source import tar_changes

    return tar_changes(reader.next_buffer, end=reader.finish)


def _overlay_layer(path: Path, options: tuple[str, ...]) -> OverlayLayer:
    return OverlayLayer(path, user_xattrs="userxattr" in options)


def _is_empty(directory: Path) -> bool:
    try:
        with os.scandir(directory) as found:
            return next(found, None) is None
    except OSError as error:
        raise from_os(error, f"open the upper directory {os.fspath(directory)!r}") from error


def _write(left: Mounts, right: Mounts, write: WriteLayer) -> Written:
    upper = added_layer(left, right)
    if upper is not None:
        from lamella.layers.overlay.tree import OverlayChanges

        try:
            with OverlayChanges(upper) as stated:
                return write(stated, stated.lookup)
        except Unsupported as problem:  # redirects, which only the kernel follows
            LOG.debug("%s: mount the overlay", problem)
    with _trees(left, right) as (changes, lookup):
        return write(changes, lookup)


def added_layer(left: Mounts, right: Mounts) -> OverlayLayer | None:
    """The topmost layer of the overlay ``right``, if the layers below it are exactly those of ``left``; else None."""
    match right:
        case (OverlayMount(lower, upper, _, options),):
            layers = lower if upper is None else (upper, *lower)
        case _:
            return None
    match left:
        case (OverlayMount(below, None, _, _),):
            pass
        case (BindMount(source, _),):
            below = (source,)
        case _:
            return None
    return _overlay_layer(layers[0], options) if layers[1:] == below else None


@contextmanager
def _trees(left: Mounts, right: Mounts) -> Iterator[tuple[Source, Lookup]]:
    from lamella.changes.diff import diff
    from lamella.layers.directory.tree import DirectoryTree

    with ExitStack() as stack:
        below = None if not left else stack.enter_context(DirectoryTree(stack.enter_context(_readable(left))))
        tree = stack.enter_context(DirectoryTree(stack.enter_context(_readable(right))))
        yield (tree.changes() if below is None else diff(below, tree)), tree.lookup


@contextmanager
def _readable(mounts: Mounts) -> Iterator[Path]:
    """A directory that shows the files of ``mounts``, for reading."""
    match mounts:
        case (BindMount(source, _),):
            yield source
            return
        case (OverlayMount(lower, Path() as upper, _, options),):
            # As a lower directory: another mount may use it as its upper directory.
            mounts = (OverlayMount((upper, *lower), options=options),)
        case _:
            pass
    from lamella.store.mounting import mounted

    with mounted(mounts) as root:
        yield root
