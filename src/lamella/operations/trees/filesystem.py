# SPDX-License-Identifier: Apache-2.0
"""Read-only access to a tree in the manner of pathlib; links never lead out of the tree."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TextIO, cast, overload

from lamella.changes.contracts import Tree
from lamella.changes.model import TYPE_BITS, Content, Entry, Kind, dense
from lamella.changes.tree import resolve
from lamella.errors import Conflict, InvalidInput, MissingFacet, NotFound
from lamella.paths import LayerPath

if TYPE_CHECKING:
    from lamella.changes.model import Buffer


class ContentFile(io.RawIOBase):
    """Stored content as a raw file. Seeking backwards reads the content from its beginning again."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._size = content.size
        self._position = 0
        self._rest: Iterator[Buffer] | None = None
        self._chunk = memoryview(b"")
        self._reached = 0
        """Offset of the current chunk."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += self._size
        if offset < 0:
            raise ValueError(f"negative position {offset}")
        self._position = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        if self.closed:
            raise ValueError("read of a closed file")
        if self._rest is None or self._position < self._reached:
            self._rest, self._chunk, self._reached = iter(dense(self._content)), memoryview(b""), 0
        while self._position >= self._reached + len(self._chunk):
            following = next(self._rest, None)
            if following is None:
                return 0
            self._reached += len(self._chunk)
            self._chunk = memoryview(following).cast("B")
        part = self._chunk[self._position - self._reached :][: len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def close(self) -> None:
        self._rest, self._chunk = None, memoryview(b"")
        super().close()


class Filesystem:
    """The files of one tree: ``filesystem / "etc/os-release"`` and ``filesystem.root`` are paths in it."""

    __slots__ = ("tree",)

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    @property
    def root(self) -> TreePath:
        """``/``."""
        return TreePath(self, PurePosixPath("/"))

    def path(self, path: str) -> TreePath:
        """A path relative to the root, with or without a leading slash."""
        return self.root / path

    def __truediv__(self, path: str) -> TreePath:
        return self.root / path

    def __repr__(self) -> str:
        return f"Filesystem({self.tree!r})"


class TreePath:
    """A path in a `Filesystem`, with the names and meanings of pathlib.

    A path is always absolute; joining one with a leading slash starts again at the root of the tree. Errors are those
    of Lamella: NotFound, InvalidInput (a directory instead of a file, too many links) and Conflict (a file instead of a
    directory).
    """

    __slots__ = ("_pure", "filesystem")

    def __init__(self, filesystem: Filesystem, pure: PurePosixPath) -> None:
        self.filesystem = filesystem
        self._pure = pure

    # Names ------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The last component; empty for the root."""
        return self._pure.name

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """The last suffix with its dot, or nothing."""
        return self._pure.suffix

    @property
    def parts(self) -> tuple[str, ...]:
        """``/`` and each component."""
        return self._pure.parts

    @property
    def parent(self) -> TreePath:
        """The path without its last component, without resolving links; the parent of the root is the root."""
        return TreePath(self.filesystem, self._pure.parent)

    @property
    def parents(self) -> tuple[TreePath, ...]:
        """All parents, nearest first."""
        return tuple(TreePath(self.filesystem, pure) for pure in self._pure.parents)

    def relative_to(self, other: TreePath | str) -> PurePosixPath:
        """This path relative to ``other``. Raises ValueError if it is not beneath."""
        return self._pure.relative_to(str(other))

    def is_relative_to(self, other: TreePath | str) -> bool:
        """Whether this path is ``other`` or beneath it, without resolving links."""
        return self._pure.is_relative_to(str(other))

    def joinpath(self, *others: str) -> TreePath:
        """This path joined with ``others``."""
        path = self
        for other in others:
            path /= other
        return path

    def with_name(self, name: str) -> TreePath:
        """This path with another last component."""
        return TreePath(self.filesystem, self._pure.with_name(name))

    def match(self, pattern: str) -> bool:
        """Whether the path, from its end, matches the glob ``pattern``."""
        return self._pure.match(pattern)

    def __truediv__(self, other: str) -> TreePath:
        pure = self._pure / other
        return TreePath(self.filesystem, PurePosixPath("/", *pure.parts[1:]))

    def __str__(self) -> str:
        return str(self._pure)

    def __repr__(self) -> str:
        return f"TreePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TreePath):
            return NotImplemented
        return self._pure == other._pure and self.filesystem.tree is other.filesystem.tree

    def __hash__(self) -> int:
        return hash(self._pure)

    def __lt__(self, other: TreePath) -> bool:
        return self._pure < other._pure

    # Metadata ---------------------------------------------------------------------------------------------------

    def entry(self, *, follow: bool = False) -> Entry:
        """The entry of the file in the tree. Raises NotFound, InvalidInput (too many links)."""
        tree = self.filesystem.tree
        entry = tree.lookup(self._resolve(follow=follow))
        if entry is None:
            raise NotFound(f"{str(self)!r} does not exist")
        return entry

    def kind(self, *, follow: bool = True) -> Kind | None:
        """The kind of file; None if it does not exist or a link is broken."""
        try:
            return self.entry(follow=follow).kind
        except (NotFound, InvalidInput):
            return None

    def exists(self) -> bool:
        """Whether the file exists; False for a broken link."""
        return self.kind() is not None

    def is_file(self) -> bool:
        """Whether it is a regular file, or a link to one."""
        return self.kind() is Kind.FILE

    def is_dir(self) -> bool:
        """Whether it is a directory, or a link to one."""
        return self.kind() is Kind.DIRECTORY

    def is_symlink(self) -> bool:
        """Whether it is itself a symbolic link."""
        return self.kind(follow=False) is Kind.SYMLINK

    def is_fifo(self) -> bool:
        """Whether it is a fifo, or a link to one."""
        return self.kind() is Kind.FIFO

    def is_char_device(self) -> bool:
        """Whether it is a character device, or a link to one."""
        return self.kind() is Kind.CHARACTER

    def is_block_device(self) -> bool:
        """Whether it is a block device, or a link to one."""
        return self.kind() is Kind.BLOCK

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """POSIX metadata: mode, owner, size, mtime (atime and ctime repeat it), device numbers.

        ``st_nlink`` is 2 for any file with several names. ``st_ino`` and ``st_dev`` are 0.
        Raises NotFound, MissingFacet.
        """
        path = self._resolve(follow=follow_symlinks)
        entry = self.filesystem.tree.lookup(path)
        if entry is None:
            raise NotFound(f"{str(self)!r} does not exist")
        posix = entry.posix
        if posix is None:
            raise MissingFacet(entry.path, "POSIX")
        directory = entry.kind is Kind.DIRECTORY
        links = 1 if directory or self.filesystem.tree.identity(path) is None else 2
        size = len(entry.target.encode("utf-8", "surrogateescape")) if entry.kind is Kind.SYMLINK else entry.size
        second, seconds = posix.mtime // 1_000_000_000, posix.mtime / 1_000_000_000
        return os.stat_result(
            (posix.mode | TYPE_BITS[entry.kind], 0, 0, links, posix.uid, posix.gid, size, second, second, second),
            {
                **{f"st_{which}time": seconds for which in "amc"},
                **{f"st_{which}time_ns": posix.mtime for which in "amc"},
                "st_rdev": os.makedev(*posix.device),
            },
        )

    def lstat(self) -> os.stat_result:
        """`stat` without following a link."""
        return self.stat(follow_symlinks=False)

    def samefile(self, other: TreePath) -> bool:
        """Whether both are names of one file. Raises NotFound."""
        first, second = self._resolve(), other._resolve()
        if first == second:
            return True
        tree = self.filesystem.tree
        if any(entry is None or entry.kind is Kind.DIRECTORY for entry in map(tree.lookup, (first, second))):
            return False
        identity = tree.identity(first)
        return identity is not None and identity == tree.identity(second)

    def readlink(self) -> str:
        """The target of a symbolic link, exactly as stored. Raises InvalidInput for other files."""
        entry = self.entry()
        if entry.kind is not Kind.SYMLINK:
            raise InvalidInput(f"{str(self)!r} is a {entry.kind.phrase}, not a symbolic link")
        return entry.target

    def resolve(self, *, strict: bool = True) -> TreePath:
        """The path with all links resolved. Without ``strict``, components that do not exist are kept."""
        try:
            return TreePath(self.filesystem, PurePosixPath("/", self._resolve()))
        except NotFound:
            if strict:
                raise
        parent = self.parent.resolve(strict=False)
        return parent.parent if self.name == ".." else parent / self.name

    # Directories ------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """The entries of the directory, in the order of the bytes of their names.

        Raises NotFound, Conflict.
        """
        path = self._resolve()
        entry = self.filesystem.tree.lookup(path)
        if entry is not None and entry.kind is not Kind.DIRECTORY:
            raise Conflict(f"{str(self)!r} is a {entry.kind.phrase}, not a directory")
        return self.filesystem.tree.entries(path)

    def iterdir(self) -> Iterator[TreePath]:
        """The files in the directory, in the order of the bytes of their names. Raises NotFound, Conflict."""
        for entry in self.entries():
            yield self / entry.path.rpartition("/")[2]

    def walk(
        self, *, top_down: bool = True, follow_symlinks: bool = False
    ) -> Iterator[tuple[TreePath, list[str], list[str]]]:
        """Each directory with the names of directories and of other files in it.

        With ``top_down``, the caller may remove names from the first list to skip these directories. Links to
        directories are listed as files, unless they are followed: then a circular link makes the walk endless.
        """
        todo: list[TreePath | tuple[TreePath, list[str], list[str]]] = [self]
        while todo:
            at = todo.pop()
            if isinstance(at, tuple):
                yield at
                continue
            directories: list[str] = []
            files: list[str] = []
            for entry in at.entries():
                name = entry.path.rpartition("/")[2]
                within = entry.kind is Kind.DIRECTORY or (
                    follow_symlinks and entry.kind is Kind.SYMLINK and (at / name).is_dir()
                )
                (directories if within else files).append(name)
            if top_down:
                yield at, directories, files
            else:
                todo.append((at, directories, files))
            todo += [at / name for name in reversed(directories)]

    def glob(self, pattern: str) -> Iterator[TreePath]:
        """Paths beneath this one that match: ``*``, ``?``, ``[...]`` in a component, ``**`` for any directories.

        ``**`` does not go through links. Raises ValueError for an empty or absolute pattern.
        """
        if not pattern or pattern.startswith("/"):
            raise ValueError(f"not a relative pattern: {pattern!r}")
        parts = [part for part in pattern.split("/") if part not in ("", ".")]
        found = _glob(self, parts)
        # Several ** match the same path in more than one way.
        yield from dict.fromkeys(found) if parts.count("**") > 1 else found

    def rglob(self, pattern: str) -> Iterator[TreePath]:
        """`glob` in this directory and all directories beneath it."""
        yield from self.glob(f"**/{pattern}")

    # Content ----------------------------------------------------------------------------------------------------

    def content(self) -> Content:
        """The content of a regular file, which may have holes. Raises NotFound, InvalidInput."""
        path = self._resolve()
        entry = self.filesystem.tree.lookup(path)
        if entry is not None and entry.kind is not Kind.FILE:
            raise InvalidInput(f"{str(self)!r} is a {entry.kind.phrase}, not a file")
        return self.filesystem.tree.open(path)

    def read_bytes(self) -> bytes:
        """The content of a file."""
        return b"".join(bytes(chunk) for chunk in dense(self.content()))

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The content of a file as text, with universal newlines."""
        with self.open("r", encoding=encoding, errors=errors) as file:
            return file.read()

    @overload
    def open(self, mode: Literal["rb"]) -> BinaryIO: ...
    @overload
    def open(self, mode: Literal["r", "rt"] = "r", *, encoding: str = "utf-8", errors: str = "strict") -> TextIO: ...
    def open(self, mode: str = "r", *, encoding: str = "utf-8", errors: str = "strict") -> BinaryIO | TextIO:
        """Open a file for reading. Seeking backwards reads it from its beginning again."""
        if mode not in ("r", "rt", "rb"):
            raise InvalidInput(f"mode {mode!r}: files of a layer are read-only")
        buffered = io.BufferedReader(ContentFile(self.content()), 1 << 16)
        if mode == "rb":
            return cast("BinaryIO", buffered)
        return io.TextIOWrapper(buffered, encoding=encoding, errors=errors)

    # Private ----------------------------------------------------------------------------------------------------

    def _resolve(self, *, follow: bool = True) -> LayerPath:
        return resolve(self.filesystem.tree, LayerPath(str(self._pure).lstrip("/")), follow=follow)


def _glob(at: TreePath, parts: list[str]) -> Iterator[TreePath]:
    if not parts:
        yield at
        return
    first, rest = parts[0], parts[1:]
    if first == "**":
        while rest and rest[0] == "**":
            rest = rest[1:]
        for directory, _, files in at.walk() if at.is_dir() else ():
            yield from _glob(directory, rest)
            if not rest:
                yield from (directory / name for name in files)
    elif any(letter in first for letter in "*?["):
        from fnmatch import translate

        fits = re.compile(translate(first)).fullmatch
        for entry in at.entries() if at.is_dir() else ():
            name = entry.path.rpartition("/")[2]
            if fits(name):
                yield from _glob(at / name, rest)
    else:
        below = at / first
        if below.kind(follow=False) is not None:
            yield from _glob(below, rest)
