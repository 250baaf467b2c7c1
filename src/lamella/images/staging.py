# SPDX-License-Identifier: Apache-2.0
"""Private directories in which things are made ready, beside where they will stand."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from types import TracebackType
from typing import BinaryIO, Final, Self

from lamella.digests import Digest
from lamella.errors import DigestMismatch, SizeMismatch, Unavailable, from_os
from lamella.images.contract import Buffer, StagedBlob
from lamella.layers.directory.dirfd_cache import remove_path
from lamella.oci.descriptor import Descriptor

PREFIX: Final = ".lamella-"

_TRIES: Final = 8
"""A sweep may take a directory for abandoned before its maker has locked it; the maker makes another then."""


class Staging:
    """A directory of one writer, for its owner alone, gone after `remove`.

    A lock on it lasts as long as the process; directories of processes that were killed are swept by the next writer.
    """

    def __init__(self, parent: str, prefix: str = PREFIX) -> None:
        try:
            _sweep(parent, prefix)
            for _ in range(_TRIES):
                self.path = os.path.join(os.path.abspath(parent), f"{prefix}{os.urandom(6).hex()}")
                os.mkdir(self.path, 0o700)
                lock = _lock(self.path)
                if lock is not None:
                    self._held = lock
                    return
        except OSError as problem:
            raise from_os(problem, f"make a temporary directory in {parent!r}") from problem
        raise Unavailable(f"cannot lock the temporary directory {self.path!r}")

    def file(self, name: str) -> str:
        """The path of ``name`` in it."""
        return os.path.join(self.path, name)

    def remove(self) -> None:
        """Remove the directory and all that is in it. May be called again."""
        lock, self._held = self._held, -1
        if lock >= 0:
            _remove(self.path)
            os.close(lock)


class BlobStage:
    """Blobs that are complete but not yet to be seen, in a staging directory, by digest; for several threads."""

    def __init__(self, staging: Staging, where: str, *, durable: bool) -> None:
        self._staging = staging
        self._where = where
        self._durable = durable
        self._numbers = count()
        self.sizes: dict[Digest, int] = {}

    def path(self, digest: Digest) -> str:
        """The file of a blob that has been put."""
        return self._staging.file(f"{digest.algorithm}-{digest.hex}")

    def put(self, descriptor: Descriptor, chunks: Iterable[Buffer]) -> None:
        """Write a blob, checking size and digest. Raises SizeMismatch, DigestMismatch."""
        what = f"{self._where}: blob {descriptor.digest}"
        state = hashlib.new(descriptor.digest.algorithm)
        promised, size = descriptor.size, 0
        with self.stage() as blob:
            for chunk in chunks:
                size += len(chunk)
                if size > promised:
                    raise SizeMismatch(what, expected=promised, actual="more")
                state.update(chunk)
                try:
                    write_all(blob.file, chunk)
                except OSError as problem:
                    raise from_os(problem, f"write {what}") from problem
            if size != promised:
                raise SizeMismatch(what, expected=promised, actual=size)
            actual = Digest.finish(state)
            if actual != descriptor.digest:
                raise DigestMismatch(what, expected=descriptor.digest, actual=actual)
            blob.keep(actual, size)

    def stage(self) -> _Staged:
        """A file for a blob whose digest is not known yet."""
        return _Staged(self, self._staging.file(f"part-{next(self._numbers)}"))

    def take(self, path: str, file: BinaryIO, digest: Digest, size: int) -> None:
        """Take in a file that is complete."""
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.discard()


def write_all(file: BinaryIO, chunk: Buffer) -> None:
    """Write to an unbuffered file, again where the system cut it short: beyond 2 GiB, or on a disk nearly full."""
    written = file.write(chunk)
    if written != len(chunk):
        rest = memoryview(chunk)[written:]
        while rest:
            rest = rest[file.write(rest) :]


def _sweep(parent: str, prefix: str) -> None:
    for name in os.listdir(parent):
        if name.startswith(prefix):
            path = os.path.join(parent, name)
            lock = _lock(path)
            if lock is not None:
                _remove(path)
                os.close(lock)


def _remove(path: str) -> None:
    """Remove a directory, if the system allows it."""
    with suppress(OSError):
        remove_path(path)


def _lock(path: str) -> int | None:
    """A lock on a directory that is still there under its name; None where it is gone, or its writer is alive."""
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(directory), os.stat(path, follow_symlinks=False)):
            return directory
    except OSError:
        pass
    os.close(directory)
    return None
