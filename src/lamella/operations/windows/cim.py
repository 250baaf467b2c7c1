# SPDX-License-Identifier: Apache-2.0
"""Composite images (CIM) described, verified, extracted, and read as layers."""

from __future__ import annotations

import hashlib
import os
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from lamella.changes.apply import Counts, apply
from lamella.changes.contracts import Source
from lamella.changes.job import Job
from lamella.changes.model import Content, Entry, Kind, Link, Put, Stream, Windows, dense
from lamella.errors import AlreadyExists, FormatError, from_os
from lamella.formats.ntfs import basic_information, extended_attributes
from lamella.formats.ntfs.extended_attributes import ExtendedAttribute
from lamella.layers.cim.image import CimLayer, OpenCim
from lamella.layers.cim.source import all_changes, as_base_layer, cim_changes, open_with_parent
from lamella.layers.cim.tree import CimTree
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.windows.transforms import posix_from_windows, subtree_changes
from lamella.paths import LayerPath


def cim_listing(path: Path, job: Job | None = None) -> Iterator[dict[str, Any]]:
    """A JSON document for each path, in the order of a walk: the metadata of a file, or the target of a hard link.

    Times are FILETIMEs, contents SHA-256 digests, binary values base64. Raises what `verify_cim` raises.
    """
    job = job or Job()
    waiting: dict[str, Any] | None = None
    with OpenCim(CimLayer(path)) as image:
        for change in all_changes(image):
            job.check()
            if isinstance(change, Stream):
                assert waiting is not None  # noqa: S101  # streams follow their file
                waiting["streams"][change.name] = _sha256(change.content)
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
    assert facet is not None  # noqa: S101  # files of a CIM have one
    document: dict[str, Any] = {"path": f"/{entry.path}", "kind": entry.kind.value, "attributes": facet.attributes}
    times = facet.creation_time, facet.access_time, facet.write_time, facet.change_time
    for name, time in zip(("creation_time", "access_time", "write_time", "change_time"), times, strict=True):
        assert time is not None  # noqa: S101  # file records have all four
        document[name] = basic_information.ticks_from_ns(time)
    document["security"] = b64encode(facet.security_descriptor or b"").decode()
    document["reparse"] = b64encode(facet.reparse or b"").decode()
    document["extended_attributes"] = b64encode(_encode_attributes(facet)).decode()
    document["streams"] = {}
    if content is not None:
        document |= {"size": entry.size, "sha256": _sha256(content)}
    return document


def _encode_attributes(facet: Windows) -> bytes:
    return extended_attributes.encode(
        [
            ExtendedAttribute(name.encode("utf-8", "surrogateescape"), value)
            for name, value in facet.extended_attributes.items()
        ]
    )


def _sha256(content: Content) -> str:
    digest = hashlib.sha256()
    for chunk in dense(content):
        digest.update(chunk)
    return digest.hexdigest()


class Verified(Struct):
    """The number of files in an image."""

    files: int = 0
    directories: int = 0
    streams: int = 0
    """Alternate data streams."""
    size: int = 0
    """Bytes of all contents; those of a file count for each of its hard links."""


@contextmanager
def cim_as_base_layer(path: Path) -> Iterator[tuple[Source, Callable[[LayerPath], Entry | None]]]:
    """`as_base_layer` of an image, and a lookup for the targets of hard links; valid until the block ends."""
    with OpenCim(CimLayer(path)) as image:
        yield as_base_layer(image), CimTree(image).lookup


def describe(path: Path) -> dict[str, Any]:
    """The header of an image as a JSON document. Raises what `OpenCim` raises."""
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


def verify_cim(path: Path, job: Job | None = None) -> Verified:
    """Read every structure and content of an image, including its parents' regions.

    Raises FormatError, which names the structure and the offset; NotFound for a missing region.
    """
    job = job or Job()
    found = Verified()
    with job.step("verify", None), OpenCim(CimLayer(path)) as image:
        for change in all_changes(image):
            job.check()
            match change:
                case Put(entry, None):
                    found.directories += entry.kind is Kind.DIRECTORY
                    found.files += entry.kind is not Kind.DIRECTORY
                case Put(_, content) if content is not None:
                    found.files += 1
                    found.size += _read(content, job)
                case Stream(_, _, content):
                    found.streams += 1
                    found.size += _read(content, job)
                case _:
                    pass
    return found


def _read(content: Content, job: Job) -> int:
    done = 0
    for chunk in content.chunks():
        done += len(chunk)
    if content.extents is None and done != content.size:
        raise FormatError("CIM stream", 0, f"{done} bytes of {content.size} could be read")
    if job.advance is not None:
        job.advance(done)
    return done


@contextmanager
def cim_trees(path: Path, parent: Path | None = None) -> Iterator[tuple[CimTree, CimTree | None]]:
    """The image at ``path`` and the one that it is forked from, as trees."""
    with open_with_parent(path, parent) as (image, below):
        yield CimTree(image), None if below is None else CimTree(below)


def list_cim_changes(path: Path, parent: Path | None = None) -> list[tuple[str, LayerPath]]:
    """The changes of `cim_changes`: A (added), M (modified) or D (deleted), and the path."""
    with open_with_parent(path, parent) as (image, below):
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


def extract_cim(path: Path, directory: Path, *, below: str = "", job: Job | None = None) -> int:
    """Write the files of an image to the new directory ``directory``; return the number of entries.

    ``below`` takes only what is in that directory, such as ``Files``, drive C of a container. What POSIX file systems
    cannot hold is a loss of the job. Raises AlreadyExists, NotFound, FormatError, Denied.
    """
    job = job or Job()
    losses = job.losses
    counts = Counts()
    with OpenCim(CimLayer(path)) as image:
        try:
            directory.mkdir()
        except FileExistsError:
            raise AlreadyExists(f"{os.fspath(directory)!r} exists", hint="choose a new directory") from None
        except OSError as problem:
            raise from_os(problem, f"make {os.fspath(directory)!r}") from problem
        changes: Source = posix_from_windows(all_changes(image), losses=losses)
        if below:
            changes = subtree_changes(changes, LayerPath(below), losses=losses)
        apply(changes, DirectorySink(directory, losses=losses), cancel=job.cancel, counts=counts)
    return counts.changes
