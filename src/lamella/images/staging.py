# SPDX-License-Identifier: Apache-2.0
"""Private directories beside a target, in which files are written before they are published."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from typing import BinaryIO, Final

from lamella.digests import Digest
from lamella.errors import SizeMismatch, Unavailable, from_os
from lamella.images.contract import Buffer, StagedBlob, verify_chunks
from lamella.layers.directory.dirfd_cache import remove_path
from lamella.oci.descriptor import Descriptor

if sys.platform != "win32":
    import fcntl

PREFIX: Final = ".lamella-"

_TRIES: Final = 8
"""Attempts to create a directory: another writer may sweep one that is not locked yet."""


class Staging:
    """A private directory of one writer.

    The directory stays locked while the process lives; the next writer with the same prefix sweeps directories of
    killed processes. Where there are no locks, as on Windows and in some network file systems, nothing is swept.
    """

    def __init__(self, parent: str, prefix: str = PREFIX) -> None:
        try:
            _sweep(parent, prefix)
            for _ in range(_TRIES):
                self.path = os.path.join(os.path.abspath(parent), f"{prefix}{os.urandom(6).hex()}")
                os.mkdir(self.path, 0o700)
                lock = -1 if sys.platform == "win32" else _lock(self.path, has_locks=False)
                if lock is not None:
                    self._lock = lock
                    self._exists = True
                    return
        except OSError as problem:
            raise from_os(problem, f"make a temporary directory in {parent!r}") from problem
        raise Unavailable(f"cannot lock the temporary directory {self.path!r}")

    def file(self, name: str) -> str:
        """The path of a file in the directory."""
        return os.path.join(self.path, name)

    def remove(self) -> None:
        """Remove the directory with its content. May be called again."""
        exists, self._exists = self._exists, False
        if exists:
            with suppress(OSError):
                remove_path(self.path)
            if self._lock >= 0:
                os.close(self._lock)


class BlobStage:
    """Complete blobs in a staging directory, by digest; for several threads."""

    def __init__(self, staging: Staging, where: str, *, durable: bool) -> None:
        self._staging = staging
        self._where = where
        self._durable = durable
        self._numbers = count()
        self.sizes: dict[Digest, int] = {}

    def path(self, digest: Digest) -> str:
        """The file of a complete blob."""
        return self._staging.file(f"{digest.algorithm}-{digest.hex}")

    def put(self, descriptor: Descriptor, chunks: Iterable[Buffer]) -> None:
        """Write a blob and check its size and digest. Raises SizeMismatch, DigestMismatch."""
        what = f"{self._where}: blob {descriptor.digest}"
        with self.stage() as blob:
            for chunk in verify_chunks(descriptor, chunks, what):
                try:
                    write_all(blob.file, chunk)
                except OSError as problem:
                    raise from_os(problem, f"write {what}") from problem
            blob.keep(descriptor.digest, descriptor.size)

    def stage(self) -> _Staged:
        """Begin a blob whose digest is not known yet."""
        return _Staged(self, self._staging.file(f"part-{next(self._numbers)}"))

    def take(self, path: str, file: BinaryIO, digest: Digest, size: int) -> None:
        """Add a complete file. Raises SizeMismatch."""
        actual = os.fstat(file.fileno()).st_size
        if actual != size:
            raise SizeMismatch(f"{self._where}: blob {digest}", expected=size, actual=actual)
        if self._durable:
            os.fsync(file.fileno())
        os.rename(path, self.path(digest))
        self.sizes[digest] = size


class _Staged(StagedBlob):
    def __init__(self, stage: BlobStage, path: str) -> None:
        self._stage = stage
        self._path: str | None = path
        try:
            self.file = open(path, "xb", buffering=0)  # noqa: SIM115 it stays open until the blob is kept
        except OSError as problem:
            raise from_os(problem, f"create {path!r}") from problem

    def keep(self, digest: Digest, size: int) -> None:
        if self._path is None:
            raise ValueError("the blob was kept or discarded already")
        self._stage.take(self._path, self.file, digest, size)
        self._path = None
        self.file.close()

    def discard(self) -> None:
        path, self._path = self._path, None
        if path is not None:
            self.file.close()
            os.unlink(path)


def write_all(file: BinaryIO, chunk: Buffer) -> None:
    """Write everything to an unbuffered file; the system may write less, beyond 2 GiB or on a nearly full disk."""
    written = file.write(chunk)
    if written != len(chunk):
        rest = memoryview(chunk)[written:]
        while rest:
            rest = rest[file.write(rest) :]


def _sweep(parent: str, prefix: str) -> None:
    try:
        names = () if sys.platform == "win32" else os.listdir(parent)
    except PermissionError:
        return  # one may write to a directory that one may not list
    for name in names:
        if name.startswith(prefix):
            path = os.path.join(parent, name)
            lock = _lock(path)
            if lock is not None:
                with suppress(OSError):
                    remove_path(path)
                os.close(lock)


def _lock(path: str, *, has_locks: bool = True) -> int | None:
    """Lock a directory. None if it has been removed or renamed, or its writer is alive.

    Where the file system has no locks, None too, or an unlocked descriptor if ``has_locks`` is false.
    """
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            if has_locks:
                raise
        if os.path.samestat(os.fstat(directory), os.stat(path, follow_symlinks=False)):
            return directory
    except OSError:
        pass
    os.close(directory)
    return None
