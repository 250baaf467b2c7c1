# SPDX-License-Identifier: Apache-2.0
"""Recipes: restore the exact blob of a layer from its unpacked files, or from a blob of the same tar."""

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

from lamella.changes.apply import LinkBudget
from lamella.changes.job import Job
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
from lamella.streams.recompress.compressors import Recompressor
from lamella.streams.recompress.identify import identify_compressor

if TYPE_CHECKING:
    from lamella.streams.limits import BlobFacts, Buffer

_STEP: Final = 1 << 20


class UnpackedFiles:
    """Files in a directory, found by following the links of the layer, which never lead out of it."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._descriptors = Descriptors(open_root(root))
        self._resolved: dict[str, LayerPath] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._descriptors.close()

    def content(self, segment: FileSegment) -> Iterator[Buffer]:
        """The bytes of a file in the tar. Raises Integrity before the last piece if they differ from the layer."""
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
                raise Conflict(f"{path!r} is a regular file in the layer, but not here")
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
                        raise Integrity(f"file {path!r} differs from the file in the layer")
                    yield piece
        except OSError as error:
            raise from_os(error, f"read {path!r}") from error
        finally:
            os.close(file)

    def _open(self, path: str) -> int:
        parent, name = split(LayerPath(path))
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        directory = self._resolve(parent)
        return os.open(name, flags, dir_fd=self._descriptors.open(directory))

    def _resolve(self, spelled: LayerPath) -> LayerPath:
        """Resolve a directory within the root, by reading the links on the way."""
        try:
            self._descriptors.open(spelled)
        except OSError as error:  # a link on the way gives one of these
            if error.errno not in (errno.ENOTDIR, errno.ELOOP, errno.ENOENT):
                raise
        else:
            return spelled
        known = self._resolved.get(spelled)
        if known is not None:
            return known
        passed = LinkBudget()
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
                if error.errno != errno.EINVAL:  # EINVAL: not a link
                    raise
                at = join(at, name)
            else:
                at = passed.follow(join(at, name), target, at, todo)
        self._resolved[spelled] = at
        return at


class RecipeMade(Struct, frozen=True):
    """Summary of a recipe. Sizes are in bytes."""

    head: RecipeHead
    files: int
    """Files whose content is not in the recipe: the unpacked layer provides it."""
    file_bytes: int
    """Size of their content in the tar."""
    size: int
    """Size of the recipe."""


def make_recipe(
    blob: str | os.PathLike[str] | BinaryIO,
    output: str | os.PathLike[str] | BinaryIO,
    *,
    compression: str | None = None,
    job: Job | None = None,
) -> RecipeMade:
    """Write the recipe of the layer ``blob`` to ``output``: all that restores the blob, without the files' content.

    The blob is read several times; a stream that cannot seek is copied to an unnamed temporary file first. The
    compressor is found by trial, and its output is compared with the whole blob. A path ``output`` appears when the
    recipe is complete.

    The recipe keeps the content of entries that a later entry of the layer replaces, since no unpacked layer has it,
    and everything that is no file. Raises Unsupported if no known compressor gives the same bytes, and what reading
    the blob raises.
    """
    job = job or Job()
    with _seekable(blob) as source:
        spans, facts = _survey(source, compression, job)
        members = identify_compressor(
            source, facts.compression, facts.tar_size, progress=job.progress, cancel=job.cancel
        )
        head = RecipeHead(facts.digest, facts.size, facts.diff_id, facts.tar_size, facts.compression, tuple(members))
        source.seek(0)
        with (
            _opened_output(output) as file,
            BlobReader(
                source, compression=facts.compression, diff_id=facts.diff_id, hash_blob=False, cancel=job.cancel
            ) as reader,
        ):
            counted = _CountingWriter(file)
            writer = RecipeWriter(counted.write, head)
            _write_segments(reader, spans, writer)
            reader.finish()
            writer.finish()
    return RecipeMade(head, len(spans), sum(span.size for span in spans), counted.size)


def restore_blob(
    recipe: str | os.PathLike[str],
    place: str | os.PathLike[str],
    output: str | os.PathLike[str] | BinaryIO,
    *,
    job: Job | None = None,
) -> BlobFacts:
    """Write the exact blob that ``recipe`` was made from to ``output``.

    ``place`` is a directory that the layer was unpacked into, whose files are opened without leaving it, or a blob of
    the same tar in any compression. All digests are checked; a path ``output`` appears when they match.

    Raises Integrity if a file differs from the layer (the first one is named) or a digest does, NotFound and Conflict
    if a file is missing or not regular, FormatError for a damaged recipe.
    """
    job = job or Job()
    with open_for_reading(Path(recipe)) as file, _opened_output(output, place) as out:
        reader = RecipeReader(file)
        head = reader.head
        with job.step("restore", head.tar_size):
            blob = _RestoredBlob(head, out)
            if os.path.isdir(place):
                with UnpackedFiles(place) as files:
                    for piece in _tar_from_files(reader, files):
                        _restore(blob, piece, job)
            else:
                _restore_from_blob(blob, Path(place), job)
            return blob.finish()


def read_recipe(recipe: str | os.PathLike[str]) -> RecipeMade:
    """Read and check a whole recipe. Raises FormatError, NotFound."""
    with open_for_reading(Path(recipe)) as file:
        reader = RecipeReader(file)
        files = size = 0
        for segment in reader.segments():
            if isinstance(segment, FileSegment):
                files += 1
                size += segment.size
        return RecipeMade(reader.head, files, size, file.tell())


def open_for_reading(path: Path) -> BinaryIO:
    """Open the file ``path``. Raises NotFound, Denied and other errors of the file system."""
    try:
        return path.open("rb")
    except OSError as error:
        raise from_os(error, f"open {str(path)!r}") from error


# Making a recipe ---------------------------------------------------------------------------------------------------


class _Span(Struct):
    """Where the content of a file is in the tar."""

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


def _survey(file: BinaryIO, compression: str | None, job: Job) -> tuple[list[_Span], BlobFacts]:
    """The files whose content the unpacked layer has."""
    spans: list[_Span] = []
    names: list[str] = []
    links: set[str] = set()
    with BlobReader(file, compression=compression, cancel=job.cancel) as reader:
        for member in TarReader(reader.next_buffer, facet=_no_facet):
            try:
                path = parse_path(member.name)
            except InvalidInput:  # no unpacked layer has it: keep its bytes
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
    return [span for span in spans if _is_final(span.path, names, links)], facts


def _is_final(path: str, names: list[str], links: set[str]) -> bool:
    """Whether the unpacked layer has the file as the tar has it.

    It may not if the path occurs twice, if other entries lie beneath it, or if a link of the layer is on the way to it.
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
"""Path components; the recipe keeps the content of a file that is deeper."""
_MOST_EXTENTS: Final = 1 << 16


def _no_facet(mode: int, uid: int, gid: int, mtime: int) -> None:  # noqa: ARG001 - the signature of a facet
    return None


def _write_segments(reader: BlobReader, spans: list[_Span], writer: RecipeWriter) -> None:
    position = 0
    remaining = iter(spans)
    span = next(remaining, None)
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
                    span, crc = next(remaining, None), 0
            at = stop
        position += end


class _CountingWriter:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = 0

    def write(self, data: Buffer) -> None:
        self._file.write(data)
        self.size += len(data)


@contextmanager
def _opened_output(
    output: str | os.PathLike[str] | BinaryIO, place: str | os.PathLike[str] | None = None
) -> Iterator[BinaryIO]:
    if not isinstance(output, (str, os.PathLike)):
        yield output
        return
    if place is not None and os.path.isdir(place):
        refuse_within(place, output, "the blob")
    with replacing(Path(output)) as file:
        yield file


# Restoring a blob --------------------------------------------------------------------------------------------------


class _RestoredBlob:
    """Compresses the restored tar and compares both with the digests of the recipe."""

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
                f"layer blob: expected digest {head.digest}, got {digest}, from the same tar",
                hint="the compressor of this machine differs from the one that made the recipe; restore it there",
            )
        return BlobFacts(digest, self._size, diff_id, self._tar_size, head.compression)

    def _put(self, data: Buffer) -> None:
        if data:
            self._digest.update(data)
            self._size += len(data)
            self._out.write(data)


def _restore(blob: _RestoredBlob, piece: Buffer, job: Job) -> None:
    job.check()
    blob.write(piece)
    if job.progress is not None:
        job.progress.advance(len(piece))


def _restore_from_blob(blob: _RestoredBlob, path: Path, job: Job) -> None:
    with (
        open_for_reading(path) as file,
        BlobReader(file, hash_blob=False, hash_stream=False, cancel=job.cancel) as reader,
    ):
        while buffer := reader.next_buffer():
            _restore(blob, buffer, job)
        reader.finish()


def _tar_from_files(reader: RecipeReader, files: UnpackedFiles) -> Iterator[Buffer]:
    for segment in reader.segments():
        if isinstance(segment, bytes):
            yield segment
        else:
            yield from files.content(segment)
