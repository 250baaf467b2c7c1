# SPDX-License-Identifier: Apache-2.0
"""The changes of a layer in an image, and all files of an image, read from its file tables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from lamella.changes.model import (
    Change,
    Kind,
    Link,
    Put,
    Stream,
    Whiteout,
)
from lamella.errors import Exhausted, InvalidInput
from lamella.formats.cim.reader import CimReader
from lamella.formats.cim.structures import RECORDS_IN_TABLE
from lamella.formats.ntfs.basic_information import NORMAL
from lamella.layers.cim.host_files import CONFIG, HIVES
from lamella.layers.cim.image import CimLayer, OpenCim, parent_of
from lamella.layers.cim.import_rules import NO_DESCRIPTOR
from lamella.layers.cim.tree import CimContent, CimTree, Links, duplicate_directory, entry_of
from lamella.paths import ROOT, LayerPath, beneath, join

_DEEPEST: Final = 300
"""The deepest directory that is walked; Windows' own programs stop at paths of 260 characters."""

_DERIVED: Final = frozenset(f"HIVES/{stem}_BASE" for stem in HIVES.values())


def cim_changes(image: OpenCim, parent: OpenCim | None) -> Iterator[Change]:
    """The changes of a layer as a Windows tar has them: without files and metadata that the import generated.

    Left out are the merged hives, the file ``layout``, and in a base layer all of ``Hives``. A generated descriptor is
    dropped, and a file without attributes gets NORMAL, as Windows reports it.
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
    """All files of an image, including those of its parents, without those that imports generated."""
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
    """All files of an image as one base layer: its hives include all deltas, and it has no `Hives`.

    The hives are the merged ones that the import of each layer generated.
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
def open_with_parent(path: Path, parent: Path | None = None) -> Iterator[tuple[OpenCim, OpenCim | None]]:
    """An image, and the one that it is forked from, which is searched in the same directory if ``parent`` is None.

    Raises NotFound if the directory does not have it, and what `OpenCim` raises.
    """
    layer = CimLayer(path)
    found = parent_of(layer) if parent is None else CimLayer(parent)
    with ExitStack() as stack:
        image = stack.enter_context(OpenCim(layer))
        yield image, None if found is None else stack.enter_context(OpenCim(found))


def all_changes(image: OpenCim) -> Iterator[Change]:
    """Every file of an image as a layer without parents has it: parents first, names by their bytes."""
    yield from _Walk(image.reader, None).changes()


def changes_since(image: OpenCim, parent: OpenCim) -> Iterator[Change]:
    """The changes from ``parent`` to ``image``, which is forked from it, read from the file tables alone.

    No content is read: a file with the parent's record is unchanged. Whiteouts follow their directory and precede its
    files. A directory with changes inside gets an entry itself, which imports need. Raises InvalidInput if ``image`` is
    not forked from ``parent``, directly or indirectly.
    """
    below = parent.reader.filesystem.sets
    if below != image.reader.filesystem.sets[: len(below)]:
        raise InvalidInput(
            f"{os.fspath(image.layer.path)!r} is not forked from {os.fspath(parent.layer.path)!r}",
            hint="'lamella cim info' lists the images that an image is forked from",
        )
    yield from _Walk(image.reader, parent.reader).changes()


class _Walk:
    def __init__(self, image: CimReader, parent: CimReader | None) -> None:
        self._image = image
        self._parent = parent
        self._paths: dict[int, LayerPath] = {}
        """File id -> the first path of the file in the changes."""
        self._unchanged: dict[int, LayerPath] | None = None
        self._entered = {image.root}
        """The visited directories; each may be reached by one path only."""

    def changes(self) -> Iterator[Change]:
        image, parent = self._image, self._parent
        if parent is None:
            yield from self._added(ROOT, image.root)
        else:
            if self._differs(image.root, parent.root):
                yield from self._one(ROOT, image.root)
            yield from self._inside(ROOT, image.root, parent.root, stated=True)

    def _added(self, path: LayerPath, file: int) -> Iterator[Change]:
        yield from self._one(path, file)
        record = self._image.record(file)
        if record.is_directory:
            for name, child in self._links(path, file):
                yield from self._added(join(path, name), child)

    def _inside(self, path: LayerPath, file: int, old: int, *, stated: bool) -> Iterator[Change]:
        """The changes in a directory that both sides have; the directory itself comes first."""
        changes = self._changed(path, file, old)
        first = next(changes, None)
        if first is None:
            return
        if not stated:
            yield from self._one(path, file)
        yield first
        yield from changes

    def _changed(self, path: LayerPath, file: int, old: int) -> Iterator[Change]:
        assert self._parent is not None  # noqa: S101  # called with a parent only
        image, parent = self._image, self._parent
        here, there = image.children(image.record(file)), parent.children(parent.record(old))
        for key in sorted(there.keys() - here.keys()):
            yield Whiteout(join(path, there[key][0]))
        fold = self._image.upcase.fold
        for name, child in self._links(path, file):
            inner = join(path, name)
            before = there.get(fold(name))
            if before is None:
                yield from self._added(inner, child)
                continue
            was, is_now = self._parent.record(before[1]), self._image.record(child)
            stated = before[0] != name or child != before[1] or self._differs(child, before[1])
            if stated:
                yield from self._one(inner, child)
            if is_now.is_directory and not is_now.reparse:
                if was.is_directory and not was.reparse:
                    yield from self._inside(inner, child, before[1], stated=stated)
                else:
                    for other, grandchild in self._links(inner, child):
                        yield from self._added(join(inner, other), grandchild)

    def _one(self, path: LayerPath, file: int) -> Iterator[Change]:
        image = self._image
        record = image.record(file)
        if not record.is_directory:
            first = self._paths.get(file) or self._kept(file)
            if first is not None and first != path:
                yield Link(path, first)
                return
            self._paths[file] = path
        entry = entry_of(image, path, record)
        yield Put(entry, CimContent(image, record.data) if entry.kind is Kind.FILE else None)
        for name, stream in image.streams(record):
            yield Stream(path, name, CimContent(image, stream))

    def _differs(self, file: int, old: int) -> bool:
        """Whether the records of a file differ between the two images; of a directory, without its names."""
        image, parent = self._image, self._parent
        assert parent is not None  # noqa: S101  # called with a parent only
        number = (file - 1) // RECORDS_IN_TABLE
        kept = file == old and number < min(image.table_count, parent.table_count)
        if kept and image.table(number) == parent.table(number):
            return False
        new, before = image.record(file), parent.record(old)
        if new.is_directory and before.is_directory:
            new.data = before.data
        return new != before

    def _kept(self, file: int) -> LayerPath | None:
        """The path of an unchanged file of the parent, for a file that gets another hard link."""
        parent = self._parent
        if parent is None or file > parent.count or self._differs(file, file):
            return None
        if self._unchanged is None:
            self._unchanged = {}
            self._collect_unchanged(ROOT, self._image.root, parent.root, self._unchanged, {self._image.root})
        return self._unchanged.get(file)

    def _collect_unchanged(
        self, path: LayerPath, file: int, old: int, found: dict[int, LayerPath], entered: set[int]
    ) -> None:
        assert self._parent is not None  # noqa: S101  # called with a parent only
        there = self._parent.children(self._parent.record(old))
        fold = self._image.upcase.fold
        for name, child in self._links(path, file, entered):
            before = there.get(fold(name))
            if before is None or before[1] != child:
                continue
            inner = join(path, name)
            if self._image.record(child).is_directory:
                self._collect_unchanged(inner, child, before[1], found, entered)
            else:
                found.setdefault(child, inner)

    def _links(self, path: LayerPath, file: int, entered: set[int] | None = None) -> Iterator[tuple[str, int]]:
        """The names in a directory, by their bytes. Raises FormatError for a directory in two places, Exhausted."""
        if path.count("/") >= _DEEPEST:
            raise Exhausted(f"the directory {path[:200]!r} is more than {_DEEPEST} levels deep")
        entered = self._entered if entered is None else entered
        image = self._image
        for name, child in _sorted(image.children(image.record(file))):
            if image.is_directory(child):
                if child in entered:
                    raise duplicate_directory(image, child, file)
                entered.add(child)
            yield name, child


def _sorted(links: Links) -> list[tuple[str, int]]:
    return sorted(links.values(), key=lambda link: link[0].encode("utf-8", "surrogatepass"))
