# SPDX-License-Identifier: Apache-2.0
"""Named files in one place, opened so that nothing outside of it can be reached."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO, Final, Protocol

from lamella.errors import Exhausted, InvalidInput, NotFound, from_os
from lamella.host import flags
from lamella.paths import LayerPath, parse_path

_DIRECTORY: Final = os.O_RDONLY | flags.O_DIRECTORY | flags.O_NOFOLLOW | flags.O_CLOEXEC


class Place(Protocol):
    """Files by name: a directory, or the members of an archive."""

    where: str
    """For messages."""
    plain_files: bool
    """Whether what it opens is read from a file's descriptor, and not decompressed for it."""

    def open(self, path: LayerPath) -> tuple[BinaryIO, int]:
        """A regular file and its size in bytes. Raises NotFound, InvalidInput."""
        ...

    def close(self) -> None:
        """Let go of it; files that are open stay so."""
        ...


def read_small(place: Place, name: str, limit: int) -> bytes:
    """A whole file of at most ``limit`` bytes. Raises NotFound, InvalidInput, Exhausted."""
    file, size = place.open(parse_path(name))
    with file:
        if size > limit:
            raise Exhausted(f"{place.where}: {name} has {size} bytes, more than the {limit} that it may have")
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise Exhausted(f"{place.where}: {name} grew beyond {limit} bytes while it was read")
    return raw


class DirectoryPlace:
    """The files beneath a directory. The directory itself may be reached through links, nothing in it may be one."""

    __slots__ = ("_root", "plain_files", "where")

    def __init__(self, path: str, where: str) -> None:
        self.where = where
        self.plain_files = True
        flags.require_descriptors()
        try:
            self._root = os.open(path, os.O_RDONLY | flags.O_DIRECTORY | flags.O_CLOEXEC)
        except OSError as problem:
            raise from_os(problem, f"open the directory {path!r}") from problem

    def open(self, path: LayerPath) -> tuple[BinaryIO, int]:
        """A regular file beneath the directory and its size; no component may be a symbolic link."""
        *parents, name = path.split("/")
        part, at = name, self._root
        try:
            for part in parents:
                inner = os.open(part, _DIRECTORY, dir_fd=at)
                self._leave(at)
                at = inner
            part = name
            file = os.open(part, flags.READ_FILE, dir_fd=at)
        except FileNotFoundError:
            raise NotFound(f"{self.where}: {path} is not there") from None
        except OSError as problem:
            if _is_link(at, part):
                raise InvalidInput(
                    f"{self.where}: {path} is or lies behind a symbolic link",
                    hint="copy the layout with 'cp -rL' to have the files themselves",
                ) from None
            if problem.errno == errno.ENXIO:
                raise InvalidInput(f"{self.where}: {path} is not a regular file") from None  # a socket
            raise from_os(problem, f"open {path!r} in {self.where}") from problem
        finally:
            self._leave(at)
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            os.close(file)
            raise InvalidInput(f"{self.where}: {path} is not a regular file")
        return open(file, "rb", buffering=0), status.st_size

    def close(self) -> None:
        """Let go of the directory."""
        root, self._root = self._root, -1
        if root >= 0:
            os.close(root)

    def _leave(self, directory: int) -> None:
        if directory != self._root:
            os.close(directory)


def _is_link(directory: int, name: str) -> bool:
    """Ask after a failure, since O_NOFOLLOW says ELOOP of a link to a file and ENOTDIR of one to a directory."""
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except OSError:
        return False
