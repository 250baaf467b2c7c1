# SPDX-License-Identifier: Apache-2.0
"""Reading and writing of OCI image layouts, in directories and archives (image-spec, image-layout.md)."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, Final, Protocol

import msgspec

from lamella.digests import Digest
from lamella.errors import Conflict, Exhausted, InvalidInput, NotFound, SizeMismatch, from_os
from lamella.host import file_io
from lamella.host.durability import make_directories, sync_directory
from lamella.images.contract import Buffer, ImageReader, ImageWriter, StagedBlob, StoredImage
from lamella.images.graph import ImageGraph
from lamella.images.staging import PREFIX, BlobStage, Staging
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import MAX_DOCUMENT, encode
from lamella.oci.index import Index, decode_index, new_index
from lamella.oci.layout import (
    BLOBS,
    CONTAINERD_NAME,
    INDEX_FILE,
    LAYOUT_FILE,
    LAYOUT_VERSION,
    REF_NAME,
    OciLayout,
    blob_path,
    decode_layout,
    parse_tag,
)
from lamella.oci.mediatypes import OCI_INDEX
from lamella.paths import LayerPath, parse_path

if sys.platform != "win32":
    import fcntl

_OPEN_DIRECTORY: Final = os.O_RDONLY | file_io.O_DIRECTORY | file_io.O_NOFOLLOW | file_io.O_CLOEXEC


class LayoutFiles(Protocol):
    """The files of a layout by name: those in a directory, or the members of an archive."""

    where: str
    """The layout, for messages."""
    plain_files: bool
    """Whether its files are read from file descriptors, without decompression."""

    def open(self, path: LayerPath) -> tuple[BinaryIO, int]:
        """Open a regular file. Returns it with its size in bytes. Raises NotFound, InvalidInput."""
        ...

    def close(self) -> None:
        """Close the layout; open files stay usable."""
        ...


def read_small(files: LayoutFiles, name: str, limit: int) -> bytes:
    """Read a whole file of at most ``limit`` bytes. Raises NotFound, InvalidInput, Exhausted."""
    file, size = files.open(parse_path(name))
    with file:
        if size > limit:
            raise Exhausted(f"{files.where}: {name} has {size} bytes, more than the limit of {limit}")
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise Exhausted(f"{files.where}: {name} grew beyond {limit} bytes while it was read")
    return raw


class LayoutDirectory:
    """The files beneath a directory, without symbolic links; only the path of the directory itself may have some."""

    __slots__ = ("_root", "plain_files", "where")

    def __init__(self, path: str, where: str) -> None:
        self.where = where
        self.plain_files = True
        file_io.require_descriptors()
        try:
            self._root = os.open(path, os.O_RDONLY | file_io.O_DIRECTORY | file_io.O_CLOEXEC)
        except OSError as problem:
            raise from_os(problem, f"open the directory {path!r}") from problem

    def open(self, path: LayerPath) -> tuple[BinaryIO, int]:
        *parents, name = path.split("/")
        part, at = name, self._root
        try:
            for part in parents:
                inner = os.open(part, _OPEN_DIRECTORY, dir_fd=at)
                self._leave(at)
                at = inner
            part = name
            file = os.open(part, file_io.READ_FILE, dir_fd=at)
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
        root, self._root = self._root, -1
        if root >= 0:
            os.close(root)

    def _leave(self, directory: int) -> None:
        if directory != self._root:
            os.close(directory)


def _is_link(directory: int, name: str) -> bool:
    """Whether a failed open met a link: O_NOFOLLOW gives ELOOP for a link to a file, ENOTDIR for one to a directory."""
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except OSError:
        return False


_NAMES: Final = (REF_NAME, CONTAINERD_NAME)


class LayoutReader(ImageReader):
    """The images of a layout; its index is read once, at the start."""

    def __init__(self, files: LayoutFiles) -> None:
        self._files = files
        self.where = files.where
        self.plain_files = files.plain_files
        self.index = read_index(files)

    def images(self) -> Sequence[StoredImage]:
        """The entries of index.json, with their tags and the references that containerd adds."""
        return [
            StoredImage(tuple(entry.annotations[key] for key in _NAMES if key in entry.annotations), entry)
            for entry in self.index.manifests
        ]

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        file, size = self._files.open(LayerPath(blob_path(descriptor.digest)))
        if size != descriptor.size:
            file.close()
            raise SizeMismatch(f"{self.where}: {descriptor.digest}", expected=descriptor.size, actual=size)
        return file

    def close(self) -> None:
        super().close()
        self._files.close()


def read_index(files: LayoutFiles) -> Index:
    """Read oci-layout and then index.json. Raises InvalidInput, Unsupported."""
    try:
        marker = read_small(files, LAYOUT_FILE, MAX_DOCUMENT)
        raw = read_small(files, INDEX_FILE, MAX_DOCUMENT)
    except NotFound as problem:
        raise InvalidInput(f"{problem}, so this is not an OCI image layout") from None
    decode_layout(marker, f"{files.where}: {LAYOUT_FILE}")
    return decode_index(raw, OCI_INDEX, f"{files.where}: {INDEX_FILE}")


def open_directory(path: str) -> LayoutReader:
    """Open the layout in the directory ``path``. Raises NotFound, InvalidInput, Unsupported, Denied."""
    files = LayoutDirectory(path, f"oci:{path}")
    try:
        return LayoutReader(files)
    except BaseException:
        files.close()
        raise


class LayoutWriter(ImageWriter):
    """Adds an image to a layout, which is created if absent; several processes may write at once.

    Blobs are staged in a private directory inside the layout. `commit` moves them into place and then replaces
    index.json, both under a lock. It replaces an entry of the same tag and keeps all others. A crash at any point
    leaves the layout unchanged, except for unreferenced blobs.
    """

    takes_indexes = True
    concurrent_puts = 6

    def __init__(self, path: str, *, replace: bool = False, durable: bool = True) -> None:
        del replace  # as in skopeo, an entry of the same tag is always replaced
        self.where = f"oci:{path}"
        path = self._path = path.rstrip("/") or "/"
        self._durable = durable
        try:
            make_directories(os.path.dirname(path) or ".", durable=durable)
            try:
                os.mkdir(path)
                self._created = True
                if durable:
                    sync_directory(os.path.dirname(path) or ".")
            except FileExistsError:
                self._created = False
            self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as problem:
            raise from_os(problem, f"make the layout {path!r}") from problem
        self._staging: Staging | None = None
        try:
            with self._locked():
                self._check_target()
                self._staging = Staging(path)
        except BaseException:
            self.abort()
            raise
        self._blobs = BlobStage(self._staging, self.where, durable=durable)

    def has_blob(self, descriptor: Descriptor) -> bool:
        if self._blobs.sizes.get(descriptor.digest) == descriptor.size:
            return True
        try:
            status = os.stat(blob_path(descriptor.digest), dir_fd=self._root, follow_symlinks=False)
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == descriptor.size

    def put_blob(self, descriptor: Descriptor, chunks: Iterable[Buffer]) -> None:
        self._blobs.put(descriptor, chunks)

    def stage(self) -> StagedBlob:
        return self._blobs.stage()

    def commit(self, tag: str | None, image: Descriptor) -> Descriptor:
        """Move the blobs into place and name the image in index.json."""
        entry = named_entry(image, tag)
        self._check_complete(image)
        try:
            with self._locked():
                index = self._index()
                self._publish(self._blobs.sizes)
                self._write(LAYOUT_FILE, encode(OciLayout(image_layout_version=LAYOUT_VERSION)), keep=True)
                self._write(INDEX_FILE, encode(with_entry(index, entry)))
                if self._durable:
                    os.fsync(self._root)
        except OSError as problem:
            raise from_os(problem, f"write to {self.where}") from problem
        self._created = False
        self.abort()
        return entry

    def abort(self) -> None:
        """Remove the staging directory, and an empty layout that this writer created."""
        if self._staging is not None:
            self._staging.remove()
            self._staging = None
        root, self._root = self._root, -1
        if root >= 0:
            os.close(root)
            if self._created:
                try:
                    os.rmdir(self._path)
                except OSError:
                    pass  # another writer uses it

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._root, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._root, fcntl.LOCK_UN)

    def _check_target(self) -> None:
        """Raise Conflict, InvalidInput or Unsupported for a directory that is neither empty nor a layout."""
        names = {name for name in os.listdir(self._root) if not name.startswith(PREFIX)}
        if LAYOUT_FILE in names:
            files = LayoutDirectory(self._path, self.where)
            try:
                if INDEX_FILE in names:
                    read_index(files)
            finally:
                files.close()
        elif names - {BLOBS}:
            raise Conflict(
                f"{self.where}: the directory is not empty, and is not an OCI image layout",
                hint="name a new or empty directory",
            )

    def _index(self) -> Index:
        files = LayoutDirectory(self._path, self.where)
        try:
            raw = read_small(files, INDEX_FILE, MAX_DOCUMENT)
        except NotFound:
            return new_index([])
        finally:
            files.close()
        return decode_index(raw, None, f"{self.where}: {INDEX_FILE}")

    def _publish(self, digests: Iterable[Digest]) -> None:
        """Move staged blobs into the layout."""
        directories = [_subdirectory(self._root, BLOBS)]
        try:
            by_algorithm: dict[str, int] = {}
            for digest in digests:
                directory = by_algorithm.get(digest.algorithm)
                if directory is None:
                    directory = by_algorithm[digest.algorithm] = _subdirectory(directories[0], digest.algorithm)
                    directories.append(directory)
                os.rename(self._blobs.path(digest), digest.hex, dst_dir_fd=directory)
            if self._durable:
                for directory in (*reversed(directories), self._root):
                    os.fsync(directory)
        finally:
            for directory in directories:
                os.close(directory)

    def _write(self, name: str, raw: bytes, *, keep: bool = False) -> None:
        """Replace a file of the layout atomically; ``keep`` leaves an existing one."""
        assert self._staging is not None  # noqa: S101 nothing follows abort
        if keep and os.path.lexists(os.path.join(self._path, name)):
            return
        staged = self._staging.file(name)
        with open(staged, "xb") as file:
            file.write(raw)
            if self._durable:
                file.flush()
                os.fsync(file.fileno())
        os.rename(staged, name, dst_dir_fd=self._root)

    def _check_complete(self, image: Descriptor) -> None:
        """Raise Conflict where a part of the image is missing."""
        files = LayoutDirectory(self._path, self.where)
        try:
            ImageGraph(_PutBlobs(self._blobs, files)).check_complete(image, self.has_blob)
        finally:
            files.close()


class _PutBlobs(ImageReader):
    """The blobs of a layout that is being written: staged ones, then those in place."""

    def __init__(self, staged: BlobStage, files: LayoutFiles) -> None:
        self.where = files.where
        self._staged = staged
        self._files = files

    def images(self) -> Sequence[StoredImage]:
        return ()

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        if descriptor.digest in self._staged.sizes:
            return open(self._staged.path(descriptor.digest), "rb", buffering=0)
        return self._files.open(parse_path(blob_path(descriptor.digest)))[0]


def named_entry(image: Descriptor, tag: str | None) -> Descriptor:
    """The entry of index.json that names ``image`` by ``tag``. Raises InvalidInput for a malformed tag."""
    annotations = {key: value for key, value in image.annotations.items() if key != REF_NAME}
    if tag is not None:
        annotations[REF_NAME] = parse_tag(tag)
    return msgspec.structs.replace(image, annotations=annotations)


def with_entry(index: Index, entry: Descriptor) -> Index:
    """The index with ``entry``, which replaces the entry of its tag, or without a tag that of its digest."""
    tag = entry.annotations.get(REF_NAME)

    def is_replaced(other: Descriptor) -> bool:
        return other.annotations.get(REF_NAME) == tag and (tag is not None or other.digest == entry.digest)

    at = next((at for at, other in enumerate(index.manifests) if is_replaced(other)), len(index.manifests))
    kept = [other for other in index.manifests if not is_replaced(other)]
    return msgspec.structs.replace(index, manifests=[*kept[:at], entry, *kept[at:]])


def _subdirectory(parent: int, name: str) -> int:
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError:
        pass
    return os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
