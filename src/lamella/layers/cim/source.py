# SPDX-License-Identifier: Apache-2.0
"""The layer that an image holds, as a tar of Windows has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from lamella.changes.model import Change, Put
from lamella.layers.cim.files import CimLayer, OpenCim, parent_of
from lamella.layers.cim.special import HIVES
from lamella.layers.cim.tree import all_changes, changes_since
from lamella.paths import beneath

_DERIVED: Final = frozenset(f"HIVES/{stem}_BASE" for stem in HIVES.values())


def cim_changes(image: OpenCim, parent: OpenCim | None) -> Iterator[Change]:
    """The changes that a layer of Windows has in a tar: without what an import derives from them.

    Those are the cumulative hives, the file ``layout``, and in a base layer all of ``Hives``.
    """
    changes = all_changes(image) if parent is None else changes_since(image, parent)
    for change in changes:
        path = change.entry.path if isinstance(change, Put) else change.path
        upper = path.upper()
        if not path or upper in _DERIVED or upper == "LAYOUT" or (parent is None and beneath(upper, "HIVES")):
            continue
        yield change


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
