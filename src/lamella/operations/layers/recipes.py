# SPDX-License-Identifier: Apache-2.0
"""Recipes that give back the very blob of a layer, from what it was unpacked or converted to."""

from __future__ import annotations

import binascii
import errno
import hashlib
import os
import stat
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Self

from msgspec import Struct

from lamella.changes.apply import LinksPassed
from lamella.digests import Digest
from lamella.errors import (
    Conflict,
    DigestMismatch,
    Integrity,
    InvalidInput,
    SizeMismatch,
    from_os,
)
from lamella.formats.recipe import FileSegment, RecipeHead, RecipeReader, RecipeWriter
from lamella.formats.tar import TarReader
from lamella.layers.directory.dirfd_cache import Descriptors, open_root
from lamella.layers.tar.source import WHITEOUT
from lamella.operations.atomic_file import refuse_within, replacing
from lamella.paths import ROOT, LayerPath, join, parse_path, split
from lamella.streams.blob_reader import BlobReader
from lamella.streams.recompress.compressors import Recompressor, identify_compressor

if TYPE_CHECKING:
    from lamella.progress import Cancellation, Progress
    from lamella.streams.limits import BlobFacts, Buffer

_STEP: Final = 1 << 20


class UnpackedFiles:
    """The files beneath a directory, reached as the layer's own links lead, and never out of it."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._descriptors = Descriptors(open_root(root))
        self._places: dict[str, LayerPath] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._descriptors.close()

    def content(self, segment: FileSegment) -> Iterator[Buffer]:
        """The bytes that stand in the tar. Raises Integrity where they are not the right ones, with the last piece."""
        path = segment.path
        try:
            file = self._open(path)
        except OSError as error:
            raise from_os(error, f"read {path!r}") from error
        crc = 0
        left = segment.size
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise Conflict(f"{path!r} is a file in the layer, and none here")
            if segment.extents is None and status.st_size != segment.size:
                raise SizeMismatch(f"file {path!r}", expected=segment.size, actual=status.st_size)
            for offset, length in segment.extents or ((0, segment.size),):
                end = offset + length
                while offset < end:
                    piece = os.pread(file, min(_STEP, end - offset), offset)
                    if not piece:
                        raise SizeMismatch(f"file {path!r}", expected=end, actual=offset)
                    crc = binascii.crc32(piece, crc)
                    offset += len(piece)
                    left -= len(piece)
                    if not left and crc != segment.crc32:
                        raise Integrity(f"file {path!r} is not what it was in the layer")
                    yield piece
        except OSError as error:
            raise from_os(error, f"read {path!r}") from error
        finally:
            os.close(file)

    def _open(self, path: str) -> int:
        parent, name = split(LayerPath(path))
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        where = self._place(parent)
        return os.open(name, flags, dir_fd=self._descriptors.open(where))

    def _place(self, spelled: LayerPath) -> LayerPath:
        """The directory that ``spelled`` leads to within the root, by reading the links on the way."""
        try:
            self._descriptors.open(spelled)
        except OSError as error:  # a link on the way may show as any of these
            if error.errno not in (errno.ENOTDIR, errno.ELOOP, errno.ENOENT):
                raise
        else:
            return spelled
        known = self._places.get(spelled)
        if known is not None:
            return known
        passed = LinksPassed()
        at = ROOT
        todo = list(reversed(spelled.split("/")))
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                at = split(at)[0] if at else ROOT
                continue
            parent = self._descriptors.open(at)
            try:
                target = os.readlink(name, dir_fd=parent)
            except OSError as error:
                if error.errno != errno.EINVAL:  # EINVAL says that it is no link
                    raise
                at = join(at, name)
            else:
                at = passed.follow(join(at, name), target, at, todo)
        self._places[spelled] = at
        return at


class RecipeMade(Struct, frozen=True):
    """What came of making a recipe. Sizes are in bytes."""

    head: RecipeHead
    files: int
    """Files whose content is taken from where the layer was unpacked."""
    file_bytes: int
    """Of the tar, that stand for these."""
    size: int
    """Of the recipe."""


def make_recipe(
    blob: str | os.PathLike[str] | BinaryIO,
    output: str | os.PathLike[str] | BinaryIO,
    *,
    compression: str | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> RecipeMade:
    """Write the recipe of a layer's ``blob`` to ``output``: all that it takes to make it again but its files' content.

    The blob is read several times; an open file that cannot go back is copied to an unnamed temporary file first. The
    compressor is found by trying, and that it gives all bytes again is checked here. A path ``output`` gets its name
    when the recipe is complete.

    What a later entry of the layer replaces is kept in the recipe, since nothing that it is unpacked to has it; so is
    what stands for no file. Raises Unsupported where no compressor known gives the bytes again, and what reading the
    blob raises.
    """
    with _seekable(blob) as source:
        spans, facts = _survey(source, compression, cancel)
        members = identify_compressor(source, facts.compression, facts.tar_size, progress=progress, cancel=cancel)
        head = RecipeHead(facts.digest, facts.size, facts.diff_id, facts.tar_size, facts.compression, tuple(members))
        source.seek(0)
        with (
            _written(output) as file,
            BlobReader(
                source, compression=facts.compression, diff_id=facts.diff_id, hash_blob=False, cancel=cancel
            ) as reader,
        ):
            counted = _Counted(file)
            writer = RecipeWriter(counted.write, head)
            _cut(reader, spans, writer)
            reader.finish()
            writer.finish()
    return RecipeMade(head, len(spans), sum(span.size for span in spans), counted.size)


def restore_blob(
    recipe: str | os.PathLike[str],
    place: str | os.PathLike[str],
    output: str | os.PathLike[str] | BinaryIO,
    *,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> BlobFacts:
    """Write the very blob that ``recipe`` was made of to ``output``, from ``place``.

    That is a directory which the layer was unpacked into, whose files are read beneath it without leaving it, or a
    blob of the same tar, compressed in whatever way. All digests are checked; a path ``output`` gets its name once
    they are right.

    Raises Integrity where a file is not as in the layer (the first such is named) or the digests differ, NotFound and
    Conflict where it is missing or no file, FormatError for a damaged recipe.
    """
    with open_for_reading(Path(recipe)) as file, _written(output, place) as out:
        reader = RecipeReader(file)
        head = reader.head
        if progress is not None:
            progress.start("restore", head.tar_size)
        try:
            blob = _Blob(head, out)
            if os.path.isdir(place):
                with UnpackedFiles(place) as files:
                    pieces = _from_files(reader, files)
                    for piece in pieces:
                        _step(blob, piece, progress, cancel)
            else:
                _from_blob(blob, Path(place), progress, cancel)
            return blob.finish()
        finally:
            if progress is not None:
                progress.finish()


def read_recipe(recipe: str | os.PathLike[str]) -> RecipeMade:
    """What a recipe says, all of it read and checked. Raises FormatError, NotFound."""
    with open_for_reading(Path(recipe)) as file:
        reader = RecipeReader(file)
        files = size = 0
        for segment in reader.segments():
            if isinstance(segment, FileSegment):
                files += 1
                size += segment.size
        return RecipeMade(reader.head, files, size, file.tell())


def open_for_reading(path: Path) -> BinaryIO:
    """The file ``path``. Raises NotFound, Denied and the like."""
    try:
        return path.open("rb")
    except OSError as error:
        raise from_os(error, f"open {str(path)!r}") from error


# Making ----------------------------------------------------------------------------------------------------------


class _Span(Struct):
    """Where the data of a file stands in the tar."""

    path: str
    start: int
    size: int
    extents: tuple[tuple[int, int], ...] | None


@contextmanager
def _seekable(blob: str | os.PathLike[str] | BinaryIO) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        if isinstance(blob, (str, os.PathLike)):
            blob = stack.enter_context(open_for_reading(Path(blob)))
        if not blob.seekable():
            from shutil import copyfileobj
            from tempfile import TemporaryFile

            try:
                copy = stack.enter_context(TemporaryFile())
                copyfileobj(blob, copy, _STEP)
            except OSError as error:
                raise from_os(error, "keep the blob in a temporary file") from error
            blob = copy
        blob.seek(0)
        yield blob


def _survey(file: BinaryIO, compression: str | None, cancel: Cancellation | None) -> tuple[list[_Span], BlobFacts]:
    """The files whose data is there when the layer is unpacked."""
    spans: list[_Span] = []
    names: list[str] = []
    links: set[str] = set()
    with BlobReader(file, compression=compression, cancel=cancel) as reader:
        for member in TarReader(reader.next_buffer, facet=_no_facet):
            try:
                path = parse_path(member.name)
            except InvalidInput:  # nothing that unpacks layers takes it; its bytes are kept
                continue
            names.append(path)
            if member.typeflag != "0":
                if member.typeflag == "2":
                    links.add(path)
            elif member.stored_size and path and WHITEOUT not in path and path.count("/") < _DEEPEST:
                extents = None if member.extents is None else tuple(member.extents)
                if extents is None or len(extents) <= _MOST_EXTENTS:
                    spans.append(_Span(path, member.data_offset, member.stored_size, extents))
        facts = reader.finish()
    names.sort()
    return [span for span in spans if _stays(span.path, names, links)], facts


def _stays(path: str, names: list[str], links: set[str]) -> bool:
    """Whether what unpacks the layer has the file as it was put, for all that the layer itself says.

    It may not have where the path is there twice, has something beneath it, or comes through a link of the layer.
    """
    at = bisect_left(names, path)
    if at + 1 < len(names) and names[at + 1] == path:
        return False
    inside = path + "/"
    at = bisect_left(names, inside)
    if at < len(names) and names[at].startswith(inside):
        return False
    if links:
        while path:
            path = split(path)[0]
            if path in links:
                return False
    return True


_DEEPEST: Final = 256
"""Components of a path; the data of a file that is deeper is kept."""
_MOST_EXTENTS: Final = 1 << 16


def _no_facet(mode: int, uid: int, gid: int, mtime: int) -> None:  # noqa: ARG001 - of the contract
    return None


def _cut(reader: BlobReader, spans: list[_Span], writer: RecipeWriter) -> None:
    """The tar as segments."""
    position = 0
    waiting = iter(spans)
    span = next(waiting, None)
    crc = 0
    while buffer := reader.next_buffer():
        at, end = 0, len(buffer)
        while at < end:
            here = position + at
            if span is None or here < span.start:
                stop = end if span is None else min(end, span.start - position)
                writer.raw(buffer[at:stop])
            else:
                stop = min(end, span.start + span.size - position)
                crc = binascii.crc32(buffer[at:stop], crc)
                if position + stop == span.start + span.size:
                    writer.file(FileSegment(span.path, span.size, crc, span.extents))
                    span, crc = next(waiting, None), 0
            at = stop
        position += end


class _Counted:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = 0

    def write(self, data: Buffer) -> None:
        self._file.write(data)
        self.size += len(data)


@contextmanager
def _written(
    output: str | os.PathLike[str] | BinaryIO, place: str | os.PathLike[str] | None = None
) -> Iterator[BinaryIO]:
    if not isinstance(output, (str, os.PathLike)):
        yield output
        return
    if place is not None and os.path.isdir(place):
        refuse_within(place, output, "the blob")
    with replacing(Path(output)) as file:
        yield file


# Restoring -------------------------------------------------------------------------------------------------------


class _Blob:
    """The blob that comes to be, compared with what the recipe says of it."""

    def __init__(self, head: RecipeHead, out: BinaryIO) -> None:
        self._head = head
        self._out = out
        self._tar = hashlib.new(head.diff_id.algorithm)
        self._digest = hashlib.new(head.digest.algorithm)
        self._tar_size = self._size = 0
        self._compressor = Recompressor(head.compression, head.members)

    def write(self, data: Buffer) -> None:
        self._tar_size += len(data)
        if self._tar_size > self._head.tar_size:
            raise SizeMismatch("uncompressed layer", expected=self._head.tar_size, actual="more")
        self._tar.update(data)
        self._put(self._compressor.compress(data))

    def finish(self) -> BlobFacts:
        from lamella.streams.limits import BlobFacts

        head = self._head
        if self._tar_size != head.tar_size:
            raise SizeMismatch("uncompressed layer", expected=head.tar_size, actual=self._tar_size)
        diff_id = Digest.finish(self._tar)
        if diff_id != head.diff_id:
            raise DigestMismatch("uncompressed layer (diff id)", expected=head.diff_id, actual=diff_id)
        self._put(self._compressor.finish())
        digest = Digest.finish(self._digest)
        if digest != head.digest:
            raise Integrity(
                f"layer blob: expected digest {head.digest}, got {digest}, though its tar is the same",
                hint="the compressor here gives other bytes than where the recipe was made; try it there",
            )
        return BlobFacts(digest, self._size, diff_id, self._tar_size, head.compression)

    def _put(self, data: Buffer) -> None:
        if data:
            self._digest.update(data)
            self._size += len(data)
            self._out.write(data)


def _step(blob: _Blob, piece: Buffer, progress: Progress | None, cancel: Cancellation | None) -> None:
    if cancel is not None:
        cancel.check()
    blob.write(piece)
    if progress is not None:
        progress.advance(len(piece))


def _from_blob(blob: _Blob, path: Path, progress: Progress | None, cancel: Cancellation | None) -> None:
    with open_for_reading(path) as file, BlobReader(file, hash_blob=False, hash_stream=False, cancel=cancel) as reader:
        while buffer := reader.next_buffer():
            _step(blob, buffer, progress, cancel)
        reader.finish()


def _from_files(reader: RecipeReader, files: UnpackedFiles) -> Iterator[Buffer]:
    for segment in reader.segments():
        if isinstance(segment, bytes):
            yield segment
        else:
            yield from files.content(segment)
