# SPDX-License-Identifier: Apache-2.0
"""An index with some of its platforms only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct, field

from lamella.errors import InvalidInput, NotFound, Unsupported
from lamella.images.contract import ImageReader
from lamella.images.forms import open_reader, open_writer
from lamella.images.naming import ImageName, parse_image_name
from lamella.oci.descriptor import Descriptor
from lamella.oci.index import Index
from lamella.oci.mediatypes import INDEXES
from lamella.oci.platform import Platform, parse_platform
from lamella.operations.copy import move_blobs
from lamella.operations.indexes import one_image, platform_of, rewrite_index, selects

if TYPE_CHECKING:
    from lamella.progress import Cancellation, Progress


class Subset(Struct, frozen=True):
    """What came of an index."""

    descriptor: Descriptor
    """Of the new one, as the place lists it."""
    kept: tuple[Platform, ...]
    left_out: tuple[Platform, ...]


def subset(
    source: str | ImageName,
    target: str | ImageName,
    platforms: Sequence[str | Platform],
    *,
    replace: bool = False,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Subset:
    """Write the index ``source`` as ``target`` with the images for ``platforms`` only, which stay as they are.

    A platform without a variant means all variants of it. Attestations and the like stay with the image that they are
    about, and go with it; annotations and the order of what stays are kept. See `open_writer` for ``replace``.

    Raises NotFound where there is no image for one of the platforms, InvalidInput where ``source`` is no index.
    """
    if isinstance(platforms, (str, Platform)):
        platforms = [platforms]
    wanted = [parse_platform(one) if isinstance(one, str) else one for one in platforms]
    if not wanted:
        raise InvalidInput("no platform is given that should stay")
    source = parse_image_name(source) if isinstance(source, str) else source
    target = parse_image_name(target) if isinstance(target, str) else target
    with open_reader(source) as reader:
        index = one_image(reader, source.tag, source.position)
        if index.media_type not in INDEXES:
            raise InvalidInput(f"{source} is a single image, and no index of several platforms")
        with open_writer(target, replace=replace) as writer:
            if not writer.takes_indexes:
                raise Unsupported(f"{writer.where}: there is no place for an index", hint="copy one platform instead")
            choice = _Choice(reader, wanted)
            try:
                entry = rewrite_index(reader, writer, index, choice)
            except NotFound:
                choice.check(source)
                raise
            choice.check(source)
            move_blobs(reader, writer, choice.stays, progress=progress, cancel=cancel)
            return Subset(writer.commit(target.tag, entry), tuple(choice.kept), tuple(choice.left_out))


class _Choice(Struct):
    """Keeps what is wanted."""

    reader: ImageReader
    wanted: Sequence[Platform]
    stays: list[Descriptor] = field(default_factory=list)
    kept: list[Platform] = field(default_factory=list)
    left_out: list[Platform] = field(default_factory=list)

    def index(self, index: Index) -> Index:
        return index

    def image(self, entry: Descriptor) -> Descriptor | None:
        offered = platform_of(self.reader, entry)
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
        """Raise NotFound where a platform that is wanted is not there."""
        for one in self.wanted:
            if not any(selects(one, offered) for offered in self.kept):
                there = ", ".join(dict.fromkeys(str(offered) for offered in (*self.kept, *self.left_out)))
                raise NotFound(f"{source}: there is no image for {one}", hint=f"there are images for {there[:1000]}")
