# SPDX-License-Identifier: Apache-2.0
"""Composite images (CIM) looked into, checked, extracted, and written out as layers."""

from __future__ import annotations

import hashlib
import os
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from lamella.changes.apply import Counts, apply
from lamella.changes.contracts import Source
from lamella.changes.losses import Losses
from lamella.changes.model import Content, Entry, Link, Put, Stream, Windows, dense
from lamella.errors import AlreadyExists, FormatError, from_os
from lamella.formats.ntfs import extended_attributes, filetime
from lamella.formats.ntfs.extended_attributes import ExtendedAttribute
from lamella.layers.cim.image import CimLayer, OpenCim
from lamella.layers.cim.source import all_changes, as_base_layer, cim_changes, opened
from lamella.layers.cim.tree import CimTree
from lamella.paths import LayerPath

if TYPE_CHECKING:
    from lamella.progress import Cancellation, Progress


def cim_place(place: str | os.PathLike[str]) -> Path | None:
    """The path of the image that ``place`` names: as ``cim:DIR/NAME.cim``, or as what ends so and is no directory."""
    text = os.fspath(place)
    if text.startswith("cim:"):
        return Path(text[4:])
    return Path(text) if text.lower().endswith(".cim") and not os.path.isdir(text) else None


def cim_listing(path: Path, *, cancel: Cancellation | None = None) -> Iterator[dict[str, Any]]:
    """A document for each name, in the order of a walk: a file with all that it has, or a link with its target.

    Times are FILETIMEs, contents SHA-256, and what is binary is base64. Raises as `verify_cim` does.
    """
    waiting: dict[str, Any] | None = None
    with OpenCim(CimLayer(path)) as image:
        for change in all_changes(image):
            if cancel is not None:
                cancel.check()
            if isinstance(change, Stream):
                assert waiting is not None  # noqa: S101  # streams follow their file
                waiting["streams"][change.name] = _sum(change.content)
                continue
            if waiting is not None:
                yield waiting
                waiting = None
            match change:
                case Put(entry, content):
                    waiting = _document(entry, content)
                case Link(link, target):
                    yield {"path": f"/{link}", "kind": "link", "target": f"/{target}"}
    if waiting is not None:
        yield waiting


def _document(entry: Entry, content: Content | None) -> dict[str, Any]:
    facet = entry.windows
    assert facet is not None  # noqa: S101  # a CIM's files have that one
    document: dict[str, Any] = {"path": f"/{entry.path}", "kind": entry.kind.value, "attributes": facet.attributes}
    for name in ("creation_time", "access_time", "write_time", "change_time"):
        document[name] = filetime.ticks_from_ns(getattr(facet, name))
    document["security"] = b64encode(facet.security_descriptor or b"").decode()
    document["reparse"] = b64encode(facet.reparse or b"").decode()
    document["extended_attributes"] = b64encode(_chain(facet)).decode()
    document["streams"] = {}
    if content is not None:
        document |= {"size": entry.size, "sha256": _sum(content)}
    return document


def _chain(facet: Windows) -> bytes:
    if not facet.extended_attributes:
        return b""
    return extended_attributes.encode(
        [
            ExtendedAttribute(name.encode("utf-8", "surrogateescape"), value)
            for name, value in facet.extended_attributes.items()
        ]
    )


def _sum(content: Content) -> str:
    digest = hashlib.sha256()
    for chunk in dense(content):
        digest.update(chunk)
    return digest.hexdigest()


class Verified(Struct, frozen=True):
    """What an image was found to hold."""

    files: int
    directories: int
    streams: int
    """Alternate data streams."""
    size: int
    """Bytes of all contents that were read, each once for each of its names."""


@contextmanager
def cim_as_base_layer(path: Path) -> Iterator[tuple[Source, Callable[[LayerPath], Entry | None]]]:
    """See `as_base_layer`; with what tells of the targets of hard links. Good until the block ends."""
    with OpenCim(CimLayer(path)) as image:
        yield as_base_layer(image), CimTree(image).lookup


def describe(path: Path) -> dict[str, Any]:
    """What the structures of an image say error_context it, for people and as JSON. Raises as `OpenCim` does."""
    with OpenCim(CimLayer(path)) as image:
        reader = image.reader
        filesystem = reader.filesystem
        return {
            "name": image.layer.name,
            "version": ".".join(map(str, filesystem.version)),
            "guid": str(filesystem.own.guid),
            "regions": filesystem.own.count,
            "parents": [{"guid": str(each.guid), "regions": each.count} for each in filesystem.parents],
            "file_tables": reader.table_count,
            "file_ids": reader.count,
            "root": reader.root,
        }


def verify_cim(path: Path, *, progress: Progress | None = None, cancel: Cancellation | None = None) -> Verified:
    """Read all that an image leads to, its parents' regions included.

    Raises FormatError, which names the structure and the offset, NotFound for a region that is missing.
    """
    files = directories = streams = size = 0
    if progress is not None:
        progress.start("verify", None)
    try:
        with OpenCim(CimLayer(path)) as image:
            for change in all_changes(image):
                if cancel is not None:
                    cancel.check()
                match change:
                    case Put(entry, None):
                        directories += entry.kind.value == "directory"
                        files += entry.kind.value != "directory"
                        continue
                    case Put(_, content) if content is not None:
                        files += 1
                    case _:
                        content = getattr(change, "content", None)
                        if content is None:
                            continue
                        streams += 1
                done = 0
                for chunk in content.chunks():
                    done += len(chunk)
                if content.extents is None and done != content.size:
                    raise FormatError("CIM stream", 0, f"{done} bytes of {content.size} could be read")
                size += done
                if progress is not None:
                    progress.advance(done)
    finally:
        if progress is not None:
            progress.finish()
    return Verified(files, directories, streams, size)


@contextmanager
def cim_trees(path: Path, parent: Path | None = None) -> Iterator[tuple[CimTree, CimTree | None]]:
    """The image at ``path`` and the one that it is forked from, as trees."""
    with opened(path, parent) as (image, below):
        yield CimTree(image), None if below is None else CimTree(below)


def list_cim_changes(path: Path, parent: Path | None = None) -> list[tuple[str, LayerPath]]:
    """What `cim_changes` tells, each as A for added, M for modified or D for deleted, and a path."""
    with opened(path, parent) as (image, below):
        before = None if below is None else CimTree(below)
        found: list[tuple[str, LayerPath]] = []
        for change in cim_changes(image, below):
            match change:
                case Put(entry):
                    found.append(("M" if before is not None and before.lookup(entry.path) else "A", entry.path))
                case Stream(owner, name):
                    found.append(("A", LayerPath(f"{owner}:{name}")))
                case Link(link):
                    found.append(("A", link))
                case _:
                    found.append(("D", change.path))
        return found


def extract_cim(
    path: Path,
    directory: Path,
    *,
    below: str = "",
    losses: Losses | None = None,
    cancel: Cancellation | None = None,
) -> int:
    """Write an image's files to the new directory ``directory``, as far as a POSIX file system can hold them.

    ``below`` takes only what is in that directory, as ``Files``, which a container sees as its drive C. The result is
    the number of entries. Raises AlreadyExists, NotFound, FormatError, Denied.
    """
    from lamella.layers.directory.sink import DirectorySink
    from lamella.layers.windows.transforms import posix_from_windows, subtree_changes

    losses = losses if losses is not None else Losses()
    counts = Counts()
    with OpenCim(CimLayer(path)) as image:
        try:
            directory.mkdir()
        except FileExistsError:
            raise AlreadyExists(f"{os.fspath(directory)!r} exists", hint="choose a new directory") from None
        except OSError as problem:
            raise from_os(problem, f"make {os.fspath(directory)!r}") from problem
        changes = posix_from_windows(all_changes(image), losses=losses)
        if below:
            changes = subtree_changes(changes, LayerPath(below), losses=losses)
        apply(changes, DirectorySink(directory, losses=losses), cancel=cancel, counts=counts)
    return counts.changes
