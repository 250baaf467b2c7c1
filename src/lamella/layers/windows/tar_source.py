# SPDX-License-Identifier: Apache-2.0
"""Reads the tar of a Windows layer: go-winio's dialect, and the variants of other tools.

``docs/formats/windows.md`` lists the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal

from lamella.changes.model import (
    NO_XATTRS,
    Buffer,
    Change,
    Content,
    Entry,
    Kind,
    Link,
    Put,
    Stream,
    Whiteout,
    Windows,
)
from lamella.errors import FormatError, InvalidInput, UnsafePath
from lamella.formats.ntfs import names, reparse
from lamella.formats.ntfs.basic_information import DIRECTORY
from lamella.formats.tar.reader import TarLimits, TarMember, TarReader
from lamella.formats.tar.windows import MOUNT_POINT, RecordReader
from lamella.layers.tar.source import WHITEOUT, BlobExtent
from lamella.layers.windows.names import Directory, LayerNames, NameRules, StreamNames
from lamella.paths import LayerPath, join, parse_path

if TYPE_CHECKING:
    from lamella.streams.seekable import SeekableBlob

_STRUCTURE: Final = "tar header"
_DATA_TYPE: Final = ":$DATA"
_DATA_MODE: Final = 0o100000


class EmptyData(Content):
    """The content of an empty file that has a data stream, which the tar of a Windows layer distinguishes.

    NTFS reports no data stream for most empty files. Code that does not check the type sees an empty content.
    """

    __slots__ = ()

    @property
    def size(self) -> int:
        return 0

    @property
    def extents(self) -> Sequence[tuple[int, int]] | None:
        return None

    @property
    def stored(self) -> Literal[True]:
        return True

    def chunks(self) -> Iterable[Buffer]:
        return ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EmptyData)

    def __hash__(self) -> int:
        return 0


EMPTY_DATA: Final = EmptyData()


def windows_tar_changes(
    next_buffer: Callable[[], memoryview],
    *,
    limits: TarLimits | None = None,
    stored: SeekableBlob | None = None,
    end: Callable[[], object] | None = None,
    rules: NameRules | None = None,
    unwrap_times: bool = True,
    linked: Callable[[LayerPath, Windows], object] | None = None,
) -> Iterator[Change]:
    """The changes in the tar of a Windows layer, in its order. Entries have a Windows facet and no other.

    ``next_buffer``, ``stored`` and ``end`` are those of `lamella.layers.tar.source.tar_changes`. Alternate data streams
    follow their file. Links and mount points get a reparse buffer made from the target. Times that the tar does not
    have are None; the write time always exists. ``rules`` say which unusual names are accepted. ``unwrap_times`` undoes
    the overflow of go-winio's times, which turns a FILETIME of 0 into the year 2185. ``linked`` receives the attributes
    and times in the header of a hard link, before the link itself. An empty file with a data stream has the content
    `EMPTY_DATA`.

    Raises FormatError, UnsafePath, InvalidInput (names that differ in case only), Unsupported (a security descriptor in
    SDDL that names domain accounts), Exhausted.
    """
    reader = TarReader(next_buffer, facet=_facet, limits=limits, mode_bits=_DATA_MODE, header_facets=True)
    layer_names = LayerNames(rules)
    known, fold, plain = layer_names.known, layer_names.fold, names.plain
    source = _Unusual(layer_names, stored)
    read_records = RecordReader(unwrap=unwrap_times).read
    file = Kind.FILE
    for member in reader:
        head, _, base = member.name.rpartition("/")
        if plain(base) and base[:4] != WHITEOUT:
            directory = known.get(head) or layer_names.directory(head)
        else:
            change, directory, base = source.named(member)
            if change is not None:
                yield change
                continue
        key = fold(base)
        if directory.spelled.setdefault(key, base) != base:
            layer_names.claim(directory, base)
        where = directory.path
        path = LayerPath(f"{where}/{base}" if where else base)
        flag = member.typeflag
        if flag == "1" and linked is None:
            source.owner = None
            yield source.link(member, path)
            continue
        records = member.records
        write_time, has_data = member.facet
        if records is None:
            windows = Windows(0, None, None, write_time)
        else:
            attributes, creation, access, stated, change_time, descriptor, extended = read_records(
                records, member.header_offset
            )
            windows = Windows(
                attributes or 0,
                creation,
                access,
                write_time if stated is None else stated,
                change_time,
                descriptor,
                NO_XATTRS if extended is None else extended,
            )
        source.owner = path
        if flag == "0" and not windows.attributes & DIRECTORY:
            size = member.size
            content: Content = member if stored is None else source.content(member)
            if not size and has_data:
                content = EMPTY_DATA
            yield Put(Entry(path, file, None, size, "", windows), content)
        elif flag == "1":
            source.owner = None
            link = source.link(member, path)
            if linked is not None:
                linked(path, windows)
            yield link
        else:
            yield source.other(member, path, windows)
    if end is not None:
        end()


def _facet(mode: int, uid: int, gid: int, mtime: int) -> tuple[int, bool]:  # noqa: ARG001
    """The write time, and whether the file has a data stream."""
    return mtime, bool(mode)


class _Unusual:
    """Handles members that are not plain files, outside of the hot loop."""

    __slots__ = ("_names", "_stored", "_streams", "owner")

    def __init__(self, layer_names: LayerNames, stored: SeekableBlob | None) -> None:
        self._names = layer_names
        self._stored = stored
        self._streams = StreamNames()
        self.owner: LayerPath | None = None
        """The last file, which streams may follow."""

    def named(self, member: TarMember[tuple[int, bool]]) -> tuple[Change | None, Directory, str]:
        """A change if the name marks a whiteout or a stream; else None, the directory and the last component.

        The root has an empty last component.
        """
        path: str = member.name
        base = path.rpartition("/")[2]
        if not base or base == "." or base == "..":
            path = parse_path(path)
        head, _, base = path.rpartition("/")
        directory = self._names.directory(head)
        if not path:
            if member.typeflag != "5":
                raise UnsafePath(member.name, "the root must be a directory")
        elif base[:4] == WHITEOUT:
            return self._whiteout(directory, base), directory, base
        elif ":" in base:
            return self._stream(member, directory, base), directory, base
        else:
            self._names.check(join(directory.path, base), base)
        return None, directory, base

    def other(self, member: TarMember[tuple[int, bool]], path: LayerPath, windows: Windows) -> Change:
        """The change of a directory or symbolic link. Raises FormatError for any other type."""
        flag = member.typeflag
        if flag == "5":
            if not path:
                self.owner = None
            windows.attributes |= DIRECTORY
            return Put(Entry(path, Kind.DIRECTORY, None, 0, "", windows), None)
        if flag == "2":
            return self._symlink(member, path, windows)
        if flag == "0":
            problem = f"{path!r} is a file, but has the attribute of a directory"
        else:
            problem = f"{path!r} has the type {flag!r}, which Windows layers do not have"
        raise FormatError(_STRUCTURE, member.header_offset, problem)

    def content(self, member: TarMember[tuple[int, bool]]) -> Content:
        """The content of the file."""
        if self._stored is None:
            return member
        return BlobExtent(self._stored, member.size, member.data_offset, member.stored_size, member.extents)

    def _whiteout(self, directory: Directory, base: str) -> Change:
        self.owner = None
        name = base[len(WHITEOUT) :]
        if name in ("", ".", ".."):
            raise UnsafePath(join(directory.path, base), "a whiteout of its own directory or the one above")
        path = join(directory.path, name)
        self._names.check(path, name)
        return Whiteout(path)

    def _stream(self, member: TarMember[tuple[int, bool]], directory: Directory, base: str) -> Change:
        path = join(directory.path, base)
        owner = self.owner
        if owner is None or not path.startswith(owner + ":"):
            raise UnsafePath(path, "an alternate data stream that does not follow its file")
        name = path[len(owner) + 1 :]
        if name[-len(_DATA_TYPE) :].upper() == _DATA_TYPE:
            name = name[: -len(_DATA_TYPE)]
        problem = names.illegal_stream(name)
        if problem is not None:
            raise UnsafePath(path, f"invalid name of an alternate data stream {name!r}: {problem}")
        self._streams.claim(owner, name)
        if member.typeflag != "0":
            raise FormatError(
                _STRUCTURE, member.header_offset, f"the alternate data stream {path!r} has the type {member.typeflag!r}"
            )
        return Stream(owner, name, self.content(member))

    def link(self, member: TarMember[tuple[int, bool]], path: LayerPath) -> Change:
        """The hard link. Raises UnsafePath, InvalidInput."""
        target = self._names.resolve(member.linkname)
        if not target:
            raise UnsafePath(member.linkname, f"{path!r} is a hard link to the root")
        if target == path:
            raise InvalidInput(f"{path!r} is a hard link to itself")
        return Link(path, target)

    def _symlink(self, member: TarMember[tuple[int, bool]], path: LayerPath, windows: Windows) -> Change:
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
