# SPDX-License-Identifier: Apache-2.0
"""A tar of a Windows layer as a source of changes: go-winio's dialect, and what other tools write of it.

``docs/formats/windows.md`` lists the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from lamella.changes.model import NO_XATTRS, Change, Content, Entry, Kind, Link, Put, Stream, Whiteout, Windows
from lamella.errors import FormatError, InvalidInput, UnsafePath
from lamella.formats.ntfs import filetime, names, reparse
from lamella.formats.ntfs.attributes import DIRECTORY
from lamella.formats.tar.reader import TarLimits, TarMember, TarReader
from lamella.formats.tar.windows import MOUNT_POINT, RecordReader
from lamella.layers.tarball import WHITEOUT, BlobExtent
from lamella.layers.windows_names import Directory, LayerNames, NameRules
from lamella.paths import LayerPath, join, parse_path

if TYPE_CHECKING:
    from lamella.streams.seekable import SeekableBlob

_STRUCTURE: Final = "tar header"
_DATA_TYPE: Final = ":$DATA"


def windows_tar_changes(
    next_buffer: Callable[[], memoryview],
    *,
    limits: TarLimits | None = None,
    stored: SeekableBlob | None = None,
    end: Callable[[], object] | None = None,
    rules: NameRules | None = None,
    unwrap_times: bool = True,
) -> Iterator[Change]:
    """The changes that the tar of a Windows layer states, in its order. Entries have a Windows facet and no other.

    ``next_buffer``, ``stored`` and ``end`` are those of `lamella.layers.tarball.tar_changes`. Alternate data streams
    follow their file. Links and mount points have their reparse buffer, made of the target. Times that the tar does
    not state are None; the write time is always stated. ``rules`` says which odd names are taken. ``unwrap_times``
    takes back the overflow of go-winio's times, which gives a FILETIME of 0 as the year 2185.

    Raises FormatError, UnsafePath, InvalidInput (names that differ in case only), Unsupported (a security descriptor
    in words about a domain's accounts), Exhausted.
    """
    write_time = _unwrapped_mtime if unwrap_times else _mtime
    reader = TarReader(next_buffer, facet=write_time, limits=limits or TarLimits())
    source = _Members(LayerNames(rules or NameRules()), RecordReader(unwrap=unwrap_times), stored)
    for member in reader:
        yield source.change(member)
    if end is not None:
        end()


def _mtime(mode: int, uid: int, gid: int, mtime: int) -> int:  # noqa: ARG001
    return mtime


def _unwrapped_mtime(mode: int, uid: int, gid: int, mtime: int) -> int:  # noqa: ARG001
    return filetime.unwrap(mtime) if mtime % filetime.TICK else mtime


class _Members:
    """Turns members into changes. A stream belongs to the file right before it, so the last one is remembered."""

    __slots__ = ("_names", "_owner", "_records", "_stored")

    def __init__(self, layer_names: LayerNames, records: RecordReader, stored: SeekableBlob | None) -> None:
        self._names = layer_names
        self._records = records
        self._stored = stored
        self._owner: LayerPath | None = None

    def change(self, member: TarMember[int]) -> Change:
        head, _, base = member.name.rpartition("/")
        if not base or base == "." or base == "..":
            path = parse_path(member.name)
            if not path:
                return self._root(member)
            head, _, base = path.rpartition("/")
        directory = self._names.directory(head)
        if base[:4] == WHITEOUT:
            return self._whiteout(directory, base)
        if ":" in base:
            return self._stream(member, directory, base)
        self._names.claim(directory, base)
        where = directory.path
        path = LayerPath(f"{where}/{base}" if where else base)
        flag = member.typeflag
        if flag == "1":
            self._owner = None
            return self._link(member, path)
        windows = self._facet(member)
        self._owner = path
        if flag == "0":
            if windows.attributes & DIRECTORY:
                raise FormatError(
                    _STRUCTURE,
                    member.header_offset,
                    f"{path!r} is a file by its type and a directory by its attributes",
                )
            return Put(Entry(path, Kind.FILE, None, member.size, "", windows), self._content(member))
        if flag == "5":
            windows.attributes |= DIRECTORY
            return Put(Entry(path, Kind.DIRECTORY, None, 0, "", windows), None)
        if flag == "2":
            return self._symlink(member, path, windows)
        raise FormatError(
            _STRUCTURE, member.header_offset, f"{path!r} has the type {flag!r}, which no Windows layer may have"
        )

    def _facet(self, member: TarMember[int]) -> Windows:
        if member.records is None:
            return Windows(0, write_time=member.facet)
        attributes, creation, access, change, descriptor, extended = self._records.read(
            member.records, member.header_offset
        )
        return Windows(
            attributes or 0,
            creation,
            access,
            member.facet,
            change,
            descriptor,
            NO_XATTRS if extended is None else extended,
        )

    def _content(self, member: TarMember[int]) -> Content:
        if self._stored is None:
            return member
        return BlobExtent(self._stored, member.size, member.data_offset, member.stored_size, member.extents)

    def _root(self, member: TarMember[int]) -> Change:
        if member.typeflag != "5":
            raise UnsafePath(member.name, "the root can be a directory only")
        windows = self._facet(member)
        windows.attributes |= DIRECTORY
        self._owner = None
        return Put(Entry(LayerPath(""), Kind.DIRECTORY, None, 0, "", windows), None)

    def _whiteout(self, directory: Directory, base: str) -> Change:
        self._owner = None
        name = base[len(WHITEOUT) :]
        if name in ("", ".", ".."):
            raise UnsafePath(join(directory.path, base), "this whiteout names its own directory or the one above")
        path = join(directory.path, name)
        self._names.check(path, name)
        return Whiteout(path)

    def _stream(self, member: TarMember[int], directory: Directory, base: str) -> Change:
        path = join(directory.path, base)
        owner = self._owner
        if owner is None or not path.startswith(owner + ":"):
            raise UnsafePath(path, "it reads as an alternate data stream, but does not follow the file that has it")
        name = path[len(owner) + 1 :]
        if name[-len(_DATA_TYPE) :].upper() == _DATA_TYPE:
            name = name[: -len(_DATA_TYPE)]
        problem = names.illegal_stream(name)
        if problem is not None:
            raise UnsafePath(path, f"no alternate data stream can be called {name!r}: {problem}")
        if member.typeflag != "0":
            raise FormatError(
                _STRUCTURE, member.header_offset, f"the alternate data stream {path!r} has the type {member.typeflag!r}"
            )
        return Stream(owner, name, self._content(member))

    def _link(self, member: TarMember[int], path: LayerPath) -> Change:
        target = self._names.resolve(member.linkname)
        if not target:
            raise UnsafePath(member.linkname, f"{path!r} is a hard link to the root")
        return Link(path, target)

    def _symlink(self, member: TarMember[int], path: LayerPath, windows: Windows) -> Change:
        target = member.linkname.replace("/", "\\")
        mounted = member.records is not None and MOUNT_POINT in member.records
        if "\0" in target or not (target or mounted):
            raise FormatError(_STRUCTURE, member.header_offset, f"the symbolic link {path!r} has no valid target")
        made: reparse.Reparse = reparse.symlink(target)
        if mounted:
            made = reparse.mount_point(target)
            windows.attributes |= DIRECTORY
        try:
            windows.reparse = reparse.encode(made)
        except InvalidInput as error:
            raise FormatError(_STRUCTURE, member.header_offset, f"{path!r}: {error}") from None
        return Put(Entry(path, Kind.SYMLINK, None, 0, target, windows), None)
