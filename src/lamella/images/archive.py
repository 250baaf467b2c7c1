# SPDX-License-Identifier: Apache-2.0
"""The members of a tar archive as named files, read where they lie: nothing is unpacked."""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from lamella.digests import Digest
from lamella.errors import Exhausted, FormatError, InvalidInput, LamellaError, NotFound, Unsupported, from_os
from lamella.paths import LayerPath, parse_path

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from lamella.images.layout import LayoutReader

MAX_MEMBERS: Final = 100_000
"""Members of one archive; an image has a few for each of its layers."""

MAX_LINKS: Final = 8
"""Links from one name to the file it means."""

_BLOCK: Final = 512
_HEADERS: Final = 32 << 10
"""Bytes read at a time while indexing."""

_SKIPPED: Final = memoryview(bytes(1 << 20))
"""Stands for data that indexing passes over."""

_OTHER_MAGICS: Final = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b": "gzip"}


@dataclass(slots=True, frozen=True)
class _Member:
    kind: str
    """The typeflag."""
    offset: int
    size: int
    target: str
    """What a link says."""
    sparse: bool


class Archive:
    """A tar archive, indexed by name when it is opened: only its headers are read then.

    Links are followed inside the archive alone. A name that is there twice with two contents is refused when it is
    used, since readers would differ about it. Usable from several threads.
    """

    def __init__(self, path: str, where: str) -> None:
        self.where = where
        self._file = _open_regular(path)
        try:
            self._size = os.fstat(self._file).st_size
            self._refuse_compression()
            self._members = self._index()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the archive; windows that are open stay so."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def __contains__(self, path: str) -> bool:
        return path in self._members

    def open(self, path: LayerPath) -> tuple[BinaryIO, int]:
        """The regular file at ``path``, links followed, and its size. Raises NotFound, InvalidInput, Unsupported."""
        member = self._only(path)
        for _ in range(MAX_LINKS):
            if member.kind == "0":
                break
            if member.kind == "1":
                goal = member.target
            elif member.kind == "2":
                if member.target.startswith("/"):
                    raise InvalidInput(f"{self.where}: {path} is a link to {member.target[:200]!r}, out of the archive")
                goal = posixpath.normpath(posixpath.join(posixpath.dirname(path), member.target))
            else:
                raise InvalidInput(f"{self.where}: {path} is not a regular file")
            try:
                path = parse_path(goal)
            except InvalidInput as problem:
                raise InvalidInput(f"{self.where}: {path} is a link out of the archive: {problem}") from None
            member = self._only(path)
        else:
            raise InvalidInput(f"{self.where}: {path}: more than {MAX_LINKS} links from name to name")
        if member.sparse:
            raise Unsupported(f"{self.where}: {path} is stored as a sparse file")
        return cast("BinaryIO", Window(os.dup(self._file), member.offset, member.size)), member.size

    def _only(self, path: str) -> _Member:
        found = self._members.get(path)
        if not found:
            raise NotFound(f"{self.where}: {path[:300]} is not there")
        first = found[0]
        for other in found[1:]:
            if (other.kind, other.size, other.target) != (first.kind, first.size, first.target) or (
                first.kind == "0" and self._hash(other) != self._hash(first)
            ):
                raise InvalidInput(f"{self.where}: {path[:300]} is there twice, and the two differ")
        return first

    def _hash(self, member: _Member) -> Digest:
        return sha256(cast("BinaryIO", Window(os.dup(self._file), member.offset, member.size)))

    def _refuse_compression(self) -> None:
        start = os.pread(self._file, 6, 0)
        for magic, name in _OTHER_MAGICS.items():
            if start.startswith(magic):
                raise Unsupported(f"{self.where}: the archive is compressed with {name}", hint="decompress it first")

    def _index(self) -> dict[str, list[_Member]]:
        from lamella.formats.tar.reader import TarReader

        members: dict[str, list[_Member]] = {}
        count = 0
        headers = _Headers(self._file, self._size)
        try:
            for member in TarReader(headers.next_buffer, facet=_no_facet):
                headers.skip_to = (member.data_offset + member.stored_size) & -_BLOCK
                count += 1
                if count > MAX_MEMBERS:
                    raise Exhausted(f"{self.where}: more than {MAX_MEMBERS} members")
                if member.typeflag == "5":
                    continue
                found = _Member(
                    member.typeflag, member.data_offset, member.size, member.linkname, member.extents is not None
                )
                members.setdefault(parse_path(member.name), []).append(found)
        except FormatError as problem:
            raise InvalidInput(f"{self.where}: not a tar archive, or a damaged one: {problem}") from problem
        except InvalidInput as problem:
            raise InvalidInput(f"{self.where}: {problem}") from problem
        return members


class _Headers:
    """Gives a tar reader the bytes of a file, and others in place of the data it will not look at."""

    def __init__(self, file: int, size: int) -> None:
        self._file = file
        self._size = size
        self._at = 0
        self.skip_to = 0

    def next_buffer(self) -> memoryview:
        skip = min(self.skip_to, self._size) - self._at
        if skip > 0:
            self._at += min(skip, len(_SKIPPED))
            return _SKIPPED[:skip]
        got = os.pread(self._file, _HEADERS, self._at)
        self._at += len(got)
        return memoryview(got)


class Window(io.RawIOBase):
    """A part of a file as a file of its own. Owns the descriptor it is given, and shares no position with others."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position in the window."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("negative position")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The position in the window."""
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read what fits of what is left."""
        left = self._size - self._position
        if left <= 0:
            return 0
        view = memoryview(buffer).cast("B")
        if len(view) > left:
            view = view[:left]
        count = os.preadv(self._descriptor, [view], self._offset + self._position)
        self._position += count
        return count

    def close(self) -> None:
        """Close the window and its descriptor."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def open_oci_archive(path: str) -> LayoutReader:
    """A reader of the OCI layout in the archive at ``path``."""
    from lamella.images.layout import LayoutReader

    archive = Archive(path, f"oci-archive:{path}")
    try:
        return LayoutReader(archive)
    except BaseException as problem:
        archive.close()
        if isinstance(problem, LamellaError) and "manifest.json" in archive:
            problem.hint = problem.hint or f"it looks like docker-archive:{path}"
        raise


def sha256(file: BinaryIO) -> Digest:
    """The digest of what is left of a file, which is closed then."""
    state = hashlib.sha256()
    with file:
        while chunk := file.read(1 << 20):
            state.update(chunk)
    return Digest.finish(state)


def _open_regular(path: str) -> int:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as problem:
        raise from_os(problem, f"open the archive {path!r}") from problem
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise InvalidInput(f"the archive {path!r} is not a regular file")
    return file


def _no_facet(_mode: int, _uid: int, _gid: int, _mtime: int) -> None:
    return None
