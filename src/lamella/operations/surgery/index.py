# SPDX-License-Identifier: Apache-2.0
"""Indexes: make one from images, take a subset, and rewrite the images and referrers of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol

import msgspec
from msgspec import Struct, field

from lamella.changes.job import Job
from lamella.digests import Digest
from lamella.errors import Conflict, InvalidInput, NotFound, Unsupported
from lamella.images.contract import ImageWriter
from lamella.images.graph import SUBJECT, ImageGraph, Kind, Node, kind_of, subject_of
from lamella.images.resolve import choose_platform, find_one
from lamella.images.transports import ImageName, open_reader, open_writer, parse_image_name
from lamella.oci.descriptor import Descriptor, bare
from lamella.oci.documents import encode
from lamella.oci.index import Index, is_image_entry, new_index
from lamella.oci.layout import CONTAINERD_NAME, REF_NAME
from lamella.oci.mediatypes import INDEXES, OCI_INDEX
from lamella.oci.platform import Platform, matches, parse_platform
from lamella.operations.copy import Copied, move_blobs
from lamella.operations.surgery.mutate import checked_pairs, merge_pairs


def index(
    sources: Sequence[str | ImageName | tuple[str | ImageName, str | Platform]],
    target: str | ImageName,
    *,
    annotations: Mapping[str, str] | None = None,
    replace: bool = False,
    job: Job | None = None,
) -> Copied:
    """Write an index of the images ``sources`` as ``target``, in their order.

    A source that is an index contributes all of its images and the entries that refer to them, such as attestations.
    With a platform beside its name, an index contributes the image for that platform, and a single image is listed for
    it; otherwise the platform is that of the image's config. The images stay unchanged. ``replace`` is as for
    `open_writer`.

    Raises Conflict if two different images are for one platform, NotFound, InvalidInput, Unsupported.
    """
    job = job or Job()
    chosen = [_parsed(one) for one in sources]
    if not chosen:
        raise InvalidInput("an index needs at least one image")
    target = parse_image_name(target) if isinstance(target, str) else target
    wanted = merge_pairs({}, checked_pairs("annotations", annotations or {}))
    with ExitStack() as stack, open_writer(target, replace=replace) as writer:
        if not writer.takes_indexes:
            raise Unsupported(f"{writer.where}: the place cannot hold an index")
        listed: list[tuple[ImageGraph, Descriptor]] = []
        for name, platform in chosen:
            graph = ImageGraph(stack.enter_context(open_reader(name)), cancel=job.cancel)
            listed += [(graph, entry) for entry in _entries(graph, name, platform)]
        entries = _unique(entry for _, entry in listed)
        kept = {entry.digest for entry in entries}
        moved: list[Copied] = []
        for graph in dict.fromkeys(graph for graph, _ in listed):
            images = [entry for other, entry in listed if other is graph and entry.digest in kept]
            if images:
                moved.append(move_blobs(graph, writer, images, job))
        document = msgspec.structs.replace(new_index(entries), annotations=wanted)
        entry = writer.commit(target.tag, writer.put_document(OCI_INDEX, encode(document)))
        return Copied(
            entry,
            sum(one.blobs for one in moved),
            sum(one.size for one in moved),
            sum(one.present for one in moved),
            sum(one.left for one in moved),
        )


def _parsed(
    source: str | ImageName | tuple[str | ImageName, str | Platform],
) -> tuple[ImageName, Platform | None]:
    name, platform = source if isinstance(source, tuple) else (source, None)
    return (
        parse_image_name(name) if isinstance(name, str) else name,
        parse_platform(platform) if isinstance(platform, str) else platform,
    )


def _entries(graph: ImageGraph, name: ImageName, platform: Platform | None) -> list[Descriptor]:
    """The entries that a source contributes; each image has its platform."""
    image = find_one(graph.reader, name.tag, name.position)
    if image.media_type not in INDEXES:
        return [_entry(image, platform or graph.platform(bare(image)))]  # the platform of the config
    if platform is not None:
        found = choose_platform(graph, name.tag, platform, name.position).descriptor
        return [_entry(found, graph.platform(found))]
    return [
        _entry(entry, graph.platform(entry)) if is_image_entry(entry) else entry for entry in graph.entries([image])
    ]


def _entry(image: Descriptor, platform: Platform) -> Descriptor:
    entry: Descriptor = msgspec.structs.replace(without_names(image), platform=platform)
    return entry


def _unique(entries: Iterable[Descriptor]) -> list[Descriptor]:
    """The entries without repetitions. Raises Conflict if two images are for one platform."""
    by_platform: dict[str, Descriptor] = {}
    by_digest: dict[tuple[Digest, str], Descriptor] = {}
    for entry in entries:
        key = (entry.digest, str(entry.platform))
        if key in by_digest:
            continue
        by_digest[key] = entry
        if is_image_entry(entry):
            other = by_platform.setdefault(str(entry.platform), entry)
            if other is not entry:
                raise Conflict(
                    f"{other.digest} and {entry.digest} are both for {entry.platform}",
                    hint="give one of them another platform, as in IMAGE::linux/arm/v6",
                )
    return list(by_digest.values())


class Subset(Struct, frozen=True):
    """A subset of an index that was written."""

    descriptor: Descriptor
    """The descriptor of the new index, as the target lists it."""
    kept: tuple[Platform, ...]
    left_out: tuple[Platform, ...]


def subset(
    source: str | ImageName,
    target: str | ImageName,
    platforms: Sequence[str | Platform],
    *,
    replace: bool = False,
    job: Job | None = None,
) -> Subset:
    """Write the index ``source`` as ``target`` with the images for ``platforms`` only, which stay unchanged.

    A platform without a variant selects all of its variants. Entries that refer to an image, such as attestations, are
    kept or dropped with it. Annotations and the order stay. ``replace`` is as for `open_writer`.

    Raises NotFound if a platform has no image, InvalidInput if ``source`` is not an index.
    """
    job = job or Job()
    if isinstance(platforms, (str, Platform)):
        platforms = [platforms]
    wanted = [parse_platform(one) if isinstance(one, str) else one for one in platforms]
    if not wanted:
        raise InvalidInput("no platforms to keep")
    source = parse_image_name(source) if isinstance(source, str) else source
    target = parse_image_name(target) if isinstance(target, str) else target
    with open_reader(source) as reader:
        graph = ImageGraph(reader, cancel=job.cancel)
        index = find_one(reader, source.tag, source.position)
        if index.media_type not in INDEXES:
            raise InvalidInput(f"{source} is a single image, not an index")
        with open_writer(target, replace=replace) as writer:
            if not writer.takes_indexes:
                raise Unsupported(f"{writer.where}: the place cannot hold an index", hint="copy one platform instead")
            choice = _Choice(graph, wanted)
            try:
                entry = rewrite_index(graph, writer, index, choice)
            except NotFound:
                choice.check(source)
                raise
            choice.check(source)
            move_blobs(graph, writer, choice.stays, job)
            return Subset(writer.commit(target.tag, entry), tuple(choice.kept), tuple(choice.left_out))


class _Choice(Struct):
    """A rewriting that keeps the images for the wanted platforms."""

    graph: ImageGraph
    wanted: Sequence[Platform]
    stays: list[Descriptor] = field(default_factory=list)
    kept: list[Platform] = field(default_factory=list)
    left_out: list[Platform] = field(default_factory=list)

    def index(self, index: Index) -> Index:
        return index

    def image(self, entry: Descriptor) -> Descriptor | None:
        offered = self.graph.platform(entry)
        if not any(selects(one, offered) for one in self.wanted):
            self.left_out.append(offered)
            return None
        self.kept.append(offered)
        self.stays.append(entry)
        return entry

    def other(self, entry: Descriptor) -> bool:
        self.stays.append(entry)
        return True

    def check(self, source: ImageName) -> None:
        """Raise NotFound if a wanted platform has no image."""
        for one in self.wanted:
            if not any(selects(one, offered) for offered in self.kept):
                there = ", ".join(dict.fromkeys(str(offered) for offered in (*self.kept, *self.left_out)))
                raise NotFound(f"{source}: no image for {one}", hint=f"there are images for {there[:1000]}")


class Rewriting(Protocol):
    """Decides for each entry of an index. Its user puts the blobs of all entries that stay into the writer."""

    def index(self, index: Index) -> Index:
        """Return the index that replaces ``index``; its entries are ignored."""
        ...

    def image(self, entry: Descriptor) -> Descriptor | None:
        """Return the entry that replaces an image; None drops it. Called once for each image and platform."""
        ...

    def other(self, entry: Descriptor) -> bool:
        """Whether to keep an entry that is not an image. Not called for referrers of an image that is dropped."""
        ...


def rewrite_index(graph: ImageGraph, writer: ImageWriter, index: Descriptor, rewriting: Rewriting) -> Descriptor:
    """Rewrite ``index``, put the result into ``writer`` and return its descriptor.

    Entries keep their order, platforms and annotations; referrers follow their image. Nested indexes are rewritten
    first, and dropped if they become empty. An index without changes keeps its bytes. Raises NotFound if no entry is
    left at all, and as `ImageGraph.walk` does.
    """
    rewritten: dict[Digest, Descriptor | None] = {}
    images: dict[tuple[Digest, str], Descriptor | None] = {}

    def replace(entry: Descriptor) -> Descriptor | None:
        if kind_of(entry) is Kind.INDEX:
            return rewritten[entry.digest]
        key = entry.digest, str(entry.platform)
        if key not in images:
            images[key] = rewriting.image(entry)
        return images[key]

    for node in graph.walk([index], _nested):
        old = node.index
        entries = _rewrite_entries(old, replace, rewriting)
        new: Index = msgspec.structs.replace(rewriting.index(old), manifests=entries)
        if not entries:
            rewritten[node.digest] = None
        elif new != old:
            rewritten[node.digest] = writer.put_document(new.media_type or node.descriptor.media_type, encode(new))
        else:
            if not writer.has_blob(node.descriptor):
                writer.put_blob(node.descriptor, [node.raw])
            rewritten[node.digest] = bare(node.descriptor)
    result = rewritten[index.digest]
    if result is None:
        raise NotFound(f"{graph.where}: nothing is left of index {index.digest}")
    return result


def _nested(node: Node) -> Iterable[Descriptor]:
    """The nested indexes of an index."""
    return (entry for entry in node.index.manifests if kind_of(entry) is Kind.INDEX)


def _rewrite_entries(
    old: Index, replace: Callable[[Descriptor], Descriptor | None], rewriting: Rewriting
) -> list[Descriptor]:
    """The entries of ``old`` with images replaced, and their referrers kept or dropped with them."""
    replaced = [replace(entry) if is_image_entry(entry) else None for entry in old.manifests]
    subjects: dict[str, Descriptor | None] = {}
    for entry, new in zip(old.manifests, replaced, strict=True):
        if is_image_entry(entry):
            subjects[entry.digest] = subjects.get(entry.digest) or new
    entries: list[Descriptor] = []
    for entry, new in zip(old.manifests, replaced, strict=True):
        if is_image_entry(entry):
            if new is not None:
                entries.append(_replaced(entry, new))
            continue
        about = subject_of(entry)
        subject = subjects.get(about, entry) if about is not None else entry
        if subject is None or not rewriting.other(entry):
            continue
        if subject is not entry and subject.digest != about:
            annotations = {**entry.annotations, SUBJECT: str(subject.digest)}
            entry = msgspec.structs.replace(entry, annotations=annotations)
        entries.append(entry)
    return entries


def _replaced(entry: Descriptor, new: Descriptor) -> Descriptor:
    if new.digest == entry.digest and new.media_type == entry.media_type:
        return entry
    replaced: Descriptor = msgspec.structs.replace(
        entry, media_type=new.media_type, digest=new.digest, size=new.size, data="", urls=[]
    )
    return replaced


def selects(wanted: Platform, offered: Platform) -> bool:
    """Whether ``wanted`` selects images for ``offered``; running there is not enough.

    Without a variant, ``wanted`` selects all variants. A default variant, such as v8 of arm64, may be given or not.
    """
    if not wanted.variant:
        return matches(msgspec.structs.replace(wanted, variant=offered.variant), offered)
    plain = Platform(os=wanted.os, architecture=wanted.architecture, variant=wanted.variant)
    other = Platform(os=wanted.os, architecture=wanted.architecture, variant=offered.variant.lower())
    return matches(wanted, offered) and matches(other, plain)


def without_names(entry: Descriptor) -> Descriptor:
    """``entry`` of a layout's index.json without the annotations that name it there."""
    annotations = {key: to for key, to in entry.annotations.items() if key not in (REF_NAME, CONTAINERD_NAME)}
    plain: Descriptor = msgspec.structs.replace(entry, annotations=annotations)
    return plain
