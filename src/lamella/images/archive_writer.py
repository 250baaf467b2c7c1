# SPDX-License-Identifier: Apache-2.0
"""Writers of archives with one image: an OCI layout in a tar, or an archive for ``docker load``.

Blobs and then the archive are written in a private directory beside the target; the archive is renamed when it is
complete. The same image gives the same bytes: members are sorted, owned by 0, and dated by SOURCE_DATE_EPOCH or 0.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from msgspec import Struct

from lamella.digests import Digest
from lamella.errors import AlreadyExists, Conflict, InvalidInput, SizeMismatch, Unsupported, from_os
from lamella.host.durability import make_directories, sync_directory
from lamella.images.contract import Buffer, ImageWriter, StagedBlob
from lamella.images.layout import LayoutWriter, named_entry
from lamella.images.staging import BlobStage, Staging, write_all
from lamella.oci.config import decode_config, pair_layers
from lamella.oci.descriptor import Descriptor
from lamella.oci.docker import SAVED_FILE
from lamella.oci.documents import MAX_DOCUMENT, encode_json
from lamella.oci.layout import BLOBS, INDEX_FILE, LAYOUT_FILE
from lamella.oci.manifest import decode_manifest
from lamella.oci.mediatypes import INDEXES, layer_compression
from lamella.oci.reference import parse_reference
from lamella.progress import Cancellation
from lamella.times import source_date_epoch

_CHUNK: Final = 1 << 20


class _Target:
    """The archive file, which is renamed into place when it is complete."""

    def __init__(self, path: str, where: str, *, replace: bool, durable: bool) -> None:
        self._path = path
        self._where = where
        self._replace = replace
        self._durable = durable
        parent, name = os.path.split(path)
        if not name:
            raise InvalidInput(f"{where}: the path must be that of a file")
        if not replace and os.path.lexists(path):
            raise self._exists()
        self._parent = parent or "."
        try:
            make_directories(self._parent, durable=durable)
        except OSError as problem:
            raise from_os(problem, f"make the directory {self._parent!r}") from problem
        self.staging = Staging(self._parent, prefix=f".{name[:100]}.lamella-")

    def write(self, members: Mapping[str, Member | bytes]) -> None:
        """Write and publish an archive of these members."""
        staged = self.staging.file("archive")
        try:
            with open(staged, "xb", buffering=0) as file:
                write_tar(partial(write_all, file), members, mtime=source_date_epoch() or 0)
                if self._durable:
                    os.fsync(file.fileno())
            self._publish(staged)
        except OSError as problem:
            raise from_os(problem, f"write {self._where}") from problem

    def _publish(self, staged: str) -> None:
        if self._replace:
            os.rename(staged, self._path)
        else:
            try:
                os.link(staged, self._path)
            except FileExistsError:
                raise self._exists() from None
            except OSError as problem:
                if problem.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                    raise
                if os.path.lexists(self._path):  # no hard links here: this check is racy
                    raise self._exists() from None
                os.rename(staged, self._path)
        if self._durable:
            sync_directory(self._parent)

    def _exists(self) -> AlreadyExists:
        return AlreadyExists(f"{self._where}: the file exists", hint="remove it first, or give --replace")


class OciArchiveWriter(ImageWriter):
    """Writes an OCI layout with one image, or one index of images, as a tar."""

    takes_indexes = True
    concurrent_puts = 6

    def __init__(self, path: str, *, replace: bool = False, durable: bool = True) -> None:
        self.where = f"oci-archive:{path}"
        self._target = _Target(path, self.where, replace=replace, durable=durable)
        try:
            self._layout = LayoutWriter(self._target.staging.file("layout"), durable=False)
        except BaseException:
            self._target.staging.remove()
            raise
        self._layout.where = self.where

    def has_blob(self, descriptor: Descriptor) -> bool:
        return self._layout.has_blob(descriptor)

    def put_blob(self, descriptor: Descriptor, chunks: Iterable[Buffer]) -> None:
        self._layout.put_blob(descriptor, chunks)

    def stage(self) -> StagedBlob:
        return self._layout.stage()

    def commit(self, tag: str | None, image: Descriptor) -> Descriptor:
        entry = self._layout.commit(tag, image)
        root = self._target.staging.file("layout")
        members: dict[str, Member | bytes] = {
            name: _file_member(os.path.join(root, name)) for name in (LAYOUT_FILE, INDEX_FILE)
        }
        for directory, _, names in os.walk(os.path.join(root, BLOBS)):
            members[os.path.relpath(directory, root) + "/"] = b""
            for name in names:
                path = os.path.join(directory, name)
                members[os.path.relpath(path, root)] = _file_member(path)
        self._target.write(members)
        self.abort()
        return entry

    def abort(self) -> None:
        self._layout.abort()
        self._target.staging.remove()


class DockerArchiveWriter(ImageWriter):
    """Writes one image for ``docker load``: layers decompressed, no manifest with digests.

    The format has no manifest, so the image has another digest when it is read back. Its config, and with it Docker's
    image id, stays.
    """

    takes_indexes = False
    leaves_foreign = False
    concurrent_puts = 6

    def __init__(self, path: str, *, replace: bool = False, durable: bool = True) -> None:
        self.where = f"docker-archive:{path}"
        self._target = _Target(path, self.where, replace=replace, durable=durable)
        self._blobs = BlobStage(self._target.staging, self.where, durable=False)

    def has_blob(self, descriptor: Descriptor) -> bool:
        return self._blobs.sizes.get(descriptor.digest) == descriptor.size

    def put_blob(self, descriptor: Descriptor, chunks: Iterable[Buffer]) -> None:
        self._blobs.put(descriptor, chunks)

    def stage(self) -> StagedBlob:
        return self._blobs.stage()

    def commit(self, tag: str | None, image: Descriptor) -> Descriptor:
        """Decompress the layers, check their diff ids, and write the archive."""
        if image.media_type in INDEXES:
            raise Unsupported(f"{self.where}: a Docker archive cannot hold an index", hint="choose one platform")
        reference = None if tag is None else parse_reference(tag).with_default_tag()
        manifest = decode_manifest(self._read(image), image.media_type, f"{self.where}: manifest {image.digest}")
        raw_config = self._read(manifest.config)
        config = decode_config(raw_config, f"{self.where}: config {manifest.config.digest}")
        members: dict[str, Member | bytes] = {}
        names: list[str] = []
        for layer, diff_id in pair_layers(manifest, config, f"{self.where}: {image.digest}"):
            name = f"{diff_id.hex}.tar"
            names.append(name)
            if name not in members:
                members[name] = _file_member(self._decompress(layer, diff_id))
        config_name = f"{manifest.config.digest.hex}.json"
        members[config_name] = raw_config
        saved = {"Config": config_name, "RepoTags": reference and [str(reference)], "Layers": names}
        members[SAVED_FILE] = encode_json([saved])
        self._target.write(members)
        self.abort()
        return named_entry(image, None)

    def abort(self) -> None:
        self._target.staging.remove()

    def _read(self, document: Descriptor) -> bytes:
        with open(self._file(document), "rb") as file:
            return file.read(MAX_DOCUMENT + 1)

    def _file(self, blob: Descriptor) -> str:
        if not self.has_blob(blob):
            raise Conflict(f"{self.where}: {blob.digest}, a part of the image, was not put")
        return self._blobs.path(blob.digest)

    def _decompress(self, layer: Descriptor, diff_id: Digest) -> str:
        """The file of the layer's tar. Removes the compressed file."""
        from lamella.streams.blob_reader import BlobReader

        source = self._file(layer)
        compression = layer_compression(layer.media_type)
        if compression == "none" and layer.digest == diff_id:
            return source
        target = self._target.staging.file(f"plain-{diff_id.algorithm}-{diff_id.hex}")
        try:
            with (
                BlobReader(Path(source), compression=compression, diff_id=diff_id, hash_blob=False) as reader,
                open(target, "xb") as file,
            ):
                while buffer := reader.next_buffer():
                    file.write(buffer)
                reader.finish()
            os.unlink(source)
        except OSError as problem:
            raise from_os(problem, f"decompress {layer.digest} for {self.where}") from problem
        return target


class Member(Struct, frozen=True):
    """A file for an archive: its size in bytes, and a function that opens it."""

    size: int
    open: Callable[[], BinaryIO]


def write_tar(
    write: Callable[[Buffer], object],
    members: Mapping[str, Member | bytes],
    *,
    mtime: int = 0,
    cancel: Cancellation | None = None,
) -> None:
    """Write a tar of these members, sorted by name; a name that ends with a slash is a directory.

    Raises SizeMismatch for a file that is shorter than its size, Cancelled.
    """
    from lamella.formats.tar.writer import TarWriter

    writer = TarWriter(write)
    buffer = memoryview(bytearray(_CHUNK))
    for name in sorted(members):
        member = members[name]
        mode, kind = (0o755, "5") if name.endswith("/") else (0o644, "0")
        size = len(member) if isinstance(member, bytes) else member.size
        writer.member(name, kind, mode=mode, uid=0, gid=0, size=size, mtime=mtime)
        if isinstance(member, bytes):
            writer.data(member)
            continue
        left = size
        with member.open() as file:
            while left:
                if cancel is not None:
                    cancel.check()
                count = file.readinto(buffer[: min(left, _CHUNK)])  # type: ignore[attr-defined]
                if not count:
                    raise SizeMismatch(name, expected=size, actual=size - left)
                writer.data(buffer[:count])
                left -= count
    writer.close()


def _file_member(path: str) -> Member:
    return Member(os.stat(path).st_size, lambda: open(path, "rb", buffering=0))
