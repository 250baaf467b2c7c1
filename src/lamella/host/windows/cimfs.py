# SPDX-License-Identifier: Apache-2.0
"""Composite images by the calls of Windows: ``cimfs.dll``, and ``cimwriter.dll`` if it exists.

If ``cimwriter.dll`` can be loaded, it provides all functions that write. Both are loaded only from the system folder,
and functions are looked up on first use, since a build may lack some.
"""

from __future__ import annotations

import ctypes
import sys
import uuid
from collections.abc import Sequence
from ctypes import c_uint8, c_uint16
from enum import IntFlag
from typing import Final

from msgspec import Struct

from lamella.errors import LamellaError, Unsupported
from lamella.host.windows.abi import (
    HANDLE,
    HRESULT,
    I64,
    PTR,
    U8,
    U16,
    U32,
    U64,
    Guid,
    Library,
    Loader,
    signature,
    wide,
    wide_or_null,
)
from lamella.host.windows.errors import check_hresult

READER: Final = "cimfs.dll"
WRITER: Final = "cimwriter.dll"

HASH_SIZE: Final = 32
"""Size of the root hash of a sealed image in bytes."""


class Create(IntFlag):
    """Flags of `Cimfs.create_in_block`."""

    PLAIN_PE = 0x1
    """Store PE images as plain data."""
    FIXED_CHUNKS = 0x2
    BLOCK_DEVICE = 0x4
    SINGLE_FILE = 0x8
    CONSISTENT = 0x10
    """Equal calls give equal bytes."""
    VERIFIED = 0x40
    """Reserve space for the hashes of sealing."""


class MountFlag(IntFlag):
    """Flags of mounts."""

    DAX = 0x2
    CACHE_FILES = 0x4
    CACHE_REGIONS = 0x8
    BLOCK_DEVICE = 0x10
    SINGLE_FILE = 0x20
    VERIFIED = 0x80
    """Only for `Cimfs.mount`."""


class MergeFlag(IntFlag):
    """Flags of `Cimfs.add_to_merged`."""

    SINGLE_FILE = 0x1
    BLOCK_DEVICE = 0x2
    VERIFIED = 0x4


class FileMetadata(ctypes.Structure):
    """CIMFS_FILE_METADATA: 96 bytes on 64-bit Windows. Times are FILETIMEs."""

    _fields_ = (
        ("attributes", U32),
        ("size", I64),
        ("creation_time", I64),
        ("write_time", I64),
        ("change_time", I64),
        ("access_time", I64),
        ("security", PTR),
        ("security_size", U32),
        ("reparse", PTR),
        ("reparse_size", U32),
        ("extended_attributes", PTR),
        ("extended_attributes_size", U32),
    )


class ImagePath(ctypes.Structure):
    """CIMFS_IMAGE_PATH: directory and name of an image."""

    _fields_ = (("directory", PTR), ("name", PTR))


class WindowsBuild(Struct, frozen=True):
    """A version of Windows, compared by its support for images."""

    build: int
    revision: int = 0

    @classmethod
    def here(cls) -> WindowsBuild:
        """The running version. Raises Unsupported on other hosts."""
        if sys.platform == "win32":
            import winreg

            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SOFTWARE\Microsoft\Windows NT\CurrentVersion") as key:
                try:
                    revision, _ = winreg.QueryValueEx(key, "UBR")
                except FileNotFoundError:  # old versions have no revisions
                    revision = 0
            return cls(sys.getwindowsversion().build, int(revision))
        raise Unsupported("this host is not Windows")


class Sealed(Struct, frozen=True):
    """The result of sealing an image."""

    root_hash: bytes
    fixed_header_size: int


class Verification(Struct, frozen=True):
    """The seal of a block image."""

    sealed: bool
    root_hash: bytes
    signature_size: int
    fixed_header_size: int


_WRITING: Final = {
    "CimCreateImage": signature(HRESULT, PTR, PTR, PTR, PTR),
    "CimCreateImage2": signature(HRESULT, PTR, U32, PTR, PTR, PTR),
    "CimCreateFile": signature(HRESULT, HANDLE, PTR, PTR, PTR),
    "CimCreateAlternateStream": signature(HRESULT, HANDLE, PTR, U64, PTR),
    "CimWriteStream": signature(HRESULT, HANDLE, PTR, U32),
    "CimCloseStream": signature(None, HANDLE),
    "CimCreateHardLink": signature(HRESULT, HANDLE, PTR, PTR),
    "CimCreateMergeLink": signature(HRESULT, HANDLE, PTR, PTR),
    "CimDeletePath": signature(HRESULT, HANDLE, PTR),
    "CimTombstoneFile": signature(HRESULT, HANDLE, PTR),
    "CimAddFsToMergedImage": signature(HRESULT, HANDLE, PTR),
    "CimAddFsToMergedImage2": signature(HRESULT, HANDLE, PTR, U32),
    "CimCommitImage": signature(HRESULT, HANDLE),
    "CimCloseImage": signature(None, HANDLE),
    "CimSealImage": signature(HRESULT, PTR, PTR, PTR, PTR),
    "CimGetVerificationInformation": signature(HRESULT, PTR, PTR, PTR, PTR, PTR, PTR, PTR),
}
_MOUNTING: Final = {
    "CimMountImage": signature(HRESULT, PTR, PTR, U32, PTR),
    "CimMergeMountImage": signature(HRESULT, U32, PTR, U32, PTR),
    "CimMountVerifiedImage": signature(HRESULT, PTR, PTR, U32, PTR, U16, PTR),
    "CimMergeMountVerifiedImage": signature(HRESULT, U32, PTR, U32, PTR, U16, PTR),
    "CimDismountImage": signature(HRESULT, PTR),
}

_SERVER_2022: Final = 20348
_SERVER_2022_REVISION: Final = 2031
_FOR_LAYERS: Final = 26100
_FOR_BLOCKS: Final = 27766
_FOR_SEALS: Final = 27800
_FOR_ANY: Final = 19041
_PIECE: Final = 1 << 30
"""Maximum size of one write in bytes: the call takes 32 bits."""


class Cimfs:
    """The calls, with errors as Lamella's categories, and checks of the necessary builds of Windows."""

    def __init__(self, loader: Loader, build: WindowsBuild) -> None:
        self._build = build
        self._can_mount = loader.has(READER)
        self._can_write_anywhere = loader.has(WRITER)
        self._reader = Library(loader, READER, _MOUNTING)
        self._writer = Library(loader, WRITER if self._can_write_anywhere else READER, _WRITING)

    # Capabilities

    def check_writing(self) -> None:
        """Raise Unsupported if images cannot be written."""
        if not self._can_write_anywhere:
            self._require(self._build.build >= _FOR_ANY, "composite images", f"build {_FOR_ANY}")

    def check_layers(self) -> None:
        """Raise Unsupported if images cannot be layers of containers."""
        build = self._build
        old = build.build == _SERVER_2022 and build.revision >= _SERVER_2022_REVISION
        self._require(
            old or build.build >= _FOR_LAYERS,
            "layers in composite images",
            f"build {_FOR_LAYERS}, or {_SERVER_2022}.{_SERVER_2022_REVISION} of Windows Server 2022",
        )

    def check_writing_blocks(self, *, verified: bool = False) -> None:
        """Raise Unsupported if block images cannot be written, merged or (``verified``) sealed."""
        if not self._can_write_anywhere:
            self.check_mounting_blocks(verified=verified)

    def check_mounting_blocks(self, *, verified: bool = False) -> None:
        """Raise Unsupported if block images cannot be mounted, or (``verified``) cannot be verified."""
        least = _FOR_SEALS if verified else _FOR_BLOCKS
        self._require(
            self._build.build >= least, f"{'verified ' if verified else ''}block images", f"build {least} of Windows"
        )

    def _require(self, new_enough: bool, what: str, least: str) -> None:
        if not self._can_mount:
            raise Unsupported(f"this Windows has no {READER}, which {what} need", hint=f"they need {least}")
        if not new_enough:
            raise Unsupported(f"build {self._build.build} of Windows has no {what}", hint=f"they need {least}")

    # Writing

    def create(self, directory: str, existing: str | None, new: str | None) -> int:
        """Create the image ``new`` in ``directory``, optionally forked from ``existing``; return its handle."""
        handle = HANDLE()
        result = self._writer(
            "CimCreateImage", wide(directory), wide_or_null(existing), wide_or_null(new), ctypes.byref(handle)
        )
        check_hresult(result, f"create the image {new or existing!r} in {directory!r}")
        return handle.value

    def create_in_block(self, block: str, flags: Create, existing: str | None, new: str | None) -> int:
        """Create the image ``new`` in the file or device ``block``; return its handle."""
        handle = HANDLE()
        result = self._writer(
            "CimCreateImage2",
            *(wide(block), int(flags), wide_or_null(existing), wide_or_null(new), ctypes.byref(handle)),
        )
        check_hresult(result, f"create the image {new or existing!r} in {block!r}")
        return handle.value

    def create_file(
        self,
        image: int,
        path: str,
        metadata: FileMetadata,
        *,
        security: bytes = b"",
        reparse: bytes = b"",
        extended_attributes: bytes = b"",
    ) -> int:
        """Create a file, directory or reparse point; return its data stream, of which one may be open per image."""
        for name, raw in (
            ("security", security),
            ("reparse", reparse),
            ("extended_attributes", extended_attributes),
        ):
            setattr(metadata, name, ctypes.cast(ctypes.c_char_p(raw), PTR) if raw else None)
            setattr(metadata, f"{name}_size", len(raw))
        stream = HANDLE()
        result = self._writer("CimCreateFile", image, wide(path), ctypes.byref(metadata), ctypes.byref(stream))
        check_hresult(result, f"create {path!r} in the image")
        return stream.value

    def create_stream(self, image: int, path: str, size: int) -> int:
        """Create an alternate data stream, with ``path`` as ``FILE:NAME:$DATA``; return its data stream."""
        stream = HANDLE()
        result = self._writer("CimCreateAlternateStream", image, wide(path), size, ctypes.byref(stream))
        check_hresult(result, f"create the stream {path!r} in the image")
        return stream.value

    def write(self, stream: int, data: bytes | bytearray | memoryview) -> None:
        """Append to a data stream; Windows refuses data beyond its size."""
        view = memoryview(data).cast("B")
        for at in range(0, len(view), _PIECE):
            piece = view[at : at + _PIECE]
            if piece.readonly:
                result = self._writer("CimWriteStream", stream, _pointer(piece), len(piece))
            else:
                units = (U8 * len(piece)).from_buffer(piece)
                result = self._writer("CimWriteStream", stream, ctypes.byref(units), len(piece))
                del units  # releases the buffer
            check_hresult(result, "write to a file of the image")

    def close_stream(self, stream: int) -> None:
        """Close a data stream."""
        self._writer("CimCloseStream", stream)

    def hard_link(self, image: int, path: str, target: str) -> None:
        """Create a hard link to a file of this image."""
        result = self._writer("CimCreateHardLink", image, wide(path), wide(target))
        check_hresult(result, f"link {path!r} to {target!r} in the image")

    def merge_link(self, image: int, path: str, target: str) -> None:
        """Create a hard link to a file of another image, for merging both."""
        result = self._writer("CimCreateMergeLink", image, wide(path), wide(target))
        check_hresult(result, f"link {path!r} to {target!r} of another image")

    def delete(self, image: int, path: str) -> None:
        """Delete ``path`` from the image. Raises NotFound."""
        check_hresult(self._writer("CimDeletePath", image, wide(path)), f"delete {path!r} in the image")

    def tombstone(self, image: int, path: str) -> None:
        """Hide ``path`` in images below, for merging."""
        check_hresult(self._writer("CimTombstoneFile", image, wide(path)), f"hide {path!r} in other images")

    def add_to_merged(self, image: int, path: str, flags: MergeFlag | None = None) -> None:
        """Add the image at ``path`` below the previous ones; ``flags`` for block images."""
        if flags is None:
            result = self._writer("CimAddFsToMergedImage", image, wide(path))
        else:
            result = self._writer("CimAddFsToMergedImage2", image, wide(path), int(flags))
        check_hresult(result, f"add the image {path!r} to a merged one")

    def commit(self, image: int) -> None:
        """Commit an image; afterwards it can only be closed."""
        check_hresult(self._writer("CimCommitImage", image), "commit the image")

    def close(self, image: int) -> None:
        """Close an image."""
        self._writer("CimCloseImage", image)

    def seal(self, block: str) -> Sealed:
        """Compute the hash tree of ``block``, and return its root hash."""
        size, header, root = U64(HASH_SIZE), U64(), (U8 * HASH_SIZE)()
        result = self._writer("CimSealImage", wide(block), ctypes.byref(size), ctypes.byref(header), ctypes.byref(root))
        check_hresult(result, f"seal {block!r}")
        return Sealed(_check_hash(root, size.value, block), header.value)

    def verification(self, block: str) -> Verification:
        """Query whether ``block`` is sealed, and its root hash."""
        sealed, size, signed, header, root = U32(), U64(HASH_SIZE), U64(), U64(), (U8 * HASH_SIZE)()
        result = self._writer(
            "CimGetVerificationInformation",
            wide(block),
            *(ctypes.byref(each) for each in (sealed, size, signed, header, root)),
            None,
        )
        check_hresult(result, f"ask for the seal of {block!r}")
        found = _check_hash(root, size.value, block) if sealed.value else b""
        return Verification(bool(sealed.value), found, signed.value, header.value)

    # Mounting

    def mount(self, place: str, name: str, flags: MountFlag, volume: uuid.UUID) -> None:
        """Mount the image ``name`` in a directory or block as a volume."""
        guid = Guid.of(volume)
        result = self._reader("CimMountImage", wide(place), wide(name), int(flags), ctypes.byref(guid))
        check_hresult(result, f"mount the image {name!r} in {place!r}")

    def mount_verified(self, block: str, name: str, flags: MountFlag, volume: uuid.UUID, root_hash: bytes) -> None:
        """Mount a sealed image; reads that do not match ``root_hash`` fail."""
        guid = Guid.of(volume)
        result = self._reader(
            "CimMountVerifiedImage",
            *(wide(block), wide(name), int(flags), ctypes.byref(guid), len(root_hash), _pointer(root_hash)),
        )
        check_hresult(result, f"mount the image {name!r} in {block!r}")

    def merge_mount(
        self,
        images: Sequence[tuple[str, str]],
        flags: MountFlag,
        volume: uuid.UUID,
        *,
        root_hash: bytes | None = None,
    ) -> None:
        """Mount a merged image and its parts, in the order of adding.

        Each is a directory or block, and a name. With ``root_hash`` the merged image is sealed, and verified.
        """
        guid = Guid.of(volume)
        held = [(wide(place), wide(name)) for place, name in images]
        paths = (ImagePath * len(held))(*(ImagePath(_address(place), _address(name)) for place, name in held))
        arguments = (len(held), ctypes.byref(paths), int(flags), ctypes.byref(guid))
        if root_hash is None:
            result = self._reader("CimMergeMountImage", *arguments)
        else:
            result = self._reader("CimMergeMountVerifiedImage", *arguments, len(root_hash), _pointer(root_hash))
        check_hresult(result, f"mount the merged image {images[0][1]!r}")

    def dismount(self, volume: uuid.UUID) -> None:
        """Unmount an image. Raises NotFound."""
        guid = Guid.of(volume)
        check_hresult(self._reader("CimDismountImage", ctypes.byref(guid)), f"unmount the image {volume}")


def _check_hash(root: ctypes.Array[c_uint8], size: int, block: str) -> bytes:
    if size != HASH_SIZE:
        raise LamellaError(f"the root hash of {block!r} has {size} bytes, expected {HASH_SIZE}")
    return bytes(root)


def _pointer(data: bytes | memoryview) -> ctypes.c_char_p:
    """Convert bytes for a call that only reads them."""
    return ctypes.c_char_p(bytes(data))


def _address(units: ctypes.Array[c_uint16]) -> int:
    return ctypes.addressof(units)
