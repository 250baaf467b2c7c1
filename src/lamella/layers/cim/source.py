# SPDX-License-Identifier: Apache-2.0
"""The layer that an image holds, as a tar of Windows has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from lamella.changes.model import Change, Kind, Put
from lamella.formats.ntfs.attributes import NORMAL
from lamella.layers.cim.host_files import CONFIG, HIVES
from lamella.layers.cim.image_files import CimLayer, OpenCim, parent_of
from lamella.layers.cim.import_rules import NO_DESCRIPTOR
from lamella.layers.cim.tree import CimContent, CimTree, all_changes, changes_since
from lamella.paths import LayerPath, beneath

_DERIVED: Final = frozenset(f"HIVES/{stem}_BASE" for stem in HIVES.values())


def cim_changes(image: OpenCim, parent: OpenCim | None) -> Iterator[Change]:
    """The changes that a layer of Windows has in a tar: without what an import derives from them.

    Those are the cumulative hives, the file ``layout``, and in a base layer all of ``Hives``. A descriptor that the
    import has made up is left out again, and a file without attributes is a normal one, as Windows says of it.
    """
    changes = all_changes(image) if parent is None else changes_since(image, parent)
    for change in changes:
        path = change.entry.path if isinstance(change, Put) else change.path
        upper = path.upper()
        if not path or upper in _DERIVED or upper == "LAYOUT" or (parent is None and beneath(upper, "HIVES")):
            continue
        yield _as_in_a_tar(change)


def _as_in_a_tar(change: Change) -> Change:
    if isinstance(change, Put) and (facet := change.entry.windows) is not None:
        if facet.security_descriptor == NO_DESCRIPTOR:
            facet = replace(facet, security_descriptor=None)
        if not facet.attributes and change.entry.kind is Kind.FILE:
            facet = replace(facet, attributes=NORMAL)
        if facet is not change.entry.windows:
            return Put(replace(change.entry, windows=facet), change.content)
    return change


def stated_files(image: OpenCim) -> Iterator[Change]:
    """All files of an image, those of the images that it is forked from included, less what imports derive."""
    has_deltas = False
    with_deltas = CimTree(image)
    hives = with_deltas.lookup(LayerPath("Hives"))
    if hives is not None and hives.kind is Kind.DIRECTORY:
        has_deltas = any(entry.path.upper() not in _DERIVED for entry in with_deltas.entries(hives.path))
    for change in all_changes(image):
        path = change.entry.path if isinstance(change, Put) else change.path
        upper = path.upper()
        if path and upper not in _DERIVED and upper != "LAYOUT" and (has_deltas or upper != "HIVES"):
            yield _as_in_a_tar(change)


def as_base_layer(image: OpenCim) -> Iterator[Change]:
    """All files of an image as one base layer states them: its hives have all deltas in them, and there is no `Hives`.

    The hives are the cumulative ones that the import of each layer has derived.
    """
    tree = CimTree(image)
    hives: dict[str, CimContent] = {}
    for name, stem in HIVES.items():
        path = LayerPath(f"Hives/{stem}_BASE")
        entry = tree.lookup(path)
        if entry is not None and entry.kind is Kind.FILE:
            hives[f"{CONFIG}/{name}".upper()] = CimContent(tree.reader, tree.reader.record(tree.find(path) or 0).data)
    for change in all_changes(image):
        path = change.entry.path if isinstance(change, Put) else change.path
        upper = path.upper()
        if not path or upper == "LAYOUT" or beneath(upper, "HIVES"):
            continue
        cumulative = hives.get(upper)
        if cumulative is not None and isinstance(change, Put) and change.content is not None:
            change = Put(replace(change.entry, size=cumulative.size), cumulative)
        yield _as_in_a_tar(change)


@contextmanager
def opened(path: Path, parent: Path | None = None) -> Iterator[tuple[OpenCim, OpenCim | None]]:
    """An image, and the one that it is forked from, which need not be given where it lies beside it.

    Raises NotFound where it does not, and as `OpenCim` does.
    """
    layer = CimLayer(path)
    found = parent_of(layer) if parent is None else CimLayer(parent)
    with ExitStack() as stack:
        image = stack.enter_context(OpenCim(layer))
        yield image, None if found is None else stack.enter_context(OpenCim(found))
