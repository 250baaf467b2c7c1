# SPDX-License-Identifier: Apache-2.0
"""The members of a tar archive as named files, read where they lie: nothing is unpacked."""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from typing import TYPE_CHECKING, BinaryIO, Final

from msgspec import Struct

from lamella.digests import Digest
from lamella.errors import Exhausted, FormatError, InvalidInput, LamellaError, NotFound, Unsupported, from_os
from lamella.host import flags
from lamella.images.parts import ArchiveSource, CompressedSource, PlainSource
from lamella.paths import LayerPath, parse_path

if TYPE_CHECKING:
    from lamella.images.layout import LayoutReader

MAX_MEMBERS: Final = 100_000
"""Members of one archive; an image has a few for each of its layers."""

MAX_LINKS: Final = 8
"""Links from one name to the file it means."""

_COMPRESSED: Final = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
_OTHERS: Final = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}


class _Member(Struct, frozen=True):
    kind: str
    """The typeflag."""
    offset: int
    size: int
    target: str
    """What a link says."""
    sparse: bool


class Archive:
    """A tar archive, plain or compressed as a whole, indexed by name when it is opened.

    Of a plain one only the headers are read then. Links are followed inside the archive alone. A name that is there
    twice with two contents is refused when it is used, since readers would differ about it. Usable from several
    threads.
    """

    def __init__(self, path: str, where: str) -> None:
        self.where = where
        self._source = _open_source(path, where)
        self.plain_files = isinstance(self._source, PlainSource)
        try:
            self._members = self._index()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the archive; windows that are open stay so."""
        self._source.close()

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
        return self._source.window(member.offset, member.size), member.size

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
        return sha256(self._source.window(member.offset, member.size))

    def _index(self) -> dict[str, list[_Member]]:
        from lamella.formats.tar.reader import TarReader

        members: dict[str, list[_Member]] = {}
        count = 0
        try:
            with self._source.stream() as stream:
                for member in TarReader(stream.next_buffer, facet=_no_facet):
                    stream.skip_to(member.data_offset + member.stored_size)
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


def _open_source(path: str, where: str) -> ArchiveSource:
    try:
        file = os.open(path, os.O_RDONLY | flags.O_NONBLOCK | flags.O_CLOEXEC)
    except OSError as problem:
        raise from_os(problem, f"open the archive {path!r}") from problem
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise InvalidInput(f"the archive {path!r} is not a regular file")
        start = os.pread(file, 6, 0)
        if start.startswith(_COMPRESSED):
            return CompressedSource(file)
        for magic, name in _OTHERS.items():
            if start.startswith(magic):
                raise Unsupported(f"{where}: the archive is compressed with {name}", hint="decompress it first")
        return PlainSource(file)
    except BaseException:
        os.close(file)
        raise


def _no_facet(_mode: int, _uid: int, _gid: int, _mtime: int) -> None:
    return None
