# SPDX-License-Identifier: Apache-2.0
"""What an import of a layer asks of whatever writes composite images: the system's own calls, or Lamella's writer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from msgspec import Struct

from lamella.changes.contracts import Seen
from lamella.changes.model import Buffer
from lamella.formats.ntfs import attributes as bits
from lamella.layers.cim.tree import ATTRIBUTES

_KEPT: Final = sum(attribute for _, attribute in ATTRIBUTES)
_FLAGS: Final = {
    attributes: sum(flag for flag, attribute in ATTRIBUTES if attributes & attribute)
    for attributes in range(_KEPT + 1)
    if not attributes & ~_KEPT
}
NO_DESCRIPTOR: Final = bytes.fromhex("01000480") + bytes(16)
"""What a file without a security descriptor gets, since an image must have one: everybody may do everything."""


class FileMetadata(Struct):
    """What a file in an image has besides its bytes. Times are FILETIMEs, 0 where nobody has said."""

    attributes: int
    """FILE_ATTRIBUTE bits; DIRECTORY tells a directory, REPARSE_POINT that there is a ``reparse``."""
    creation_time: int = 0
    write_time: int = 0
    change_time: int = 0
    access_time: int = 0
    security: bytes = NO_DESCRIPTOR
    extended_attributes: bytes = b""
    """A chain of FILE_FULL_EA_INFORMATION."""
    reparse: bytes = b""
    """The buffer from the tag on."""

    @property
    def flags(self) -> int:
        """Those of the attributes that a file record has a place for, as it has them."""
        return _FLAGS[self.attributes & _KEPT]


PLAIN_FILE: Final = FileMetadata(bits.NORMAL)
PLAIN_DIRECTORY: Final = FileMetadata(bits.DIRECTORY)
"""What a file has, and a directory, that no layer states."""


class CimWriter(Protocol):
    """An image in the making. Paths have ``/`` between names, and whatever a file lies in must be there before it.

    Each step is done when the call returns. `commit` is the last of them; after a step that failed comes `abort`.
    """

    def put(self, path: str, metadata: FileMetadata, size: int, chunks: Iterable[Buffer] | None) -> Seen | None:
        """A file of ``size`` bytes, or a directory, in place of what is there; without ``chunks`` it is all zeros.

        A directory over a directory keeps what is in it. What was there is returned, as far as the writer can tell;
        a `ForkWriter` can. Raises SizeMismatch, NotFound (where it is to lie).
        """
        ...

    def stream(self, path: str, name: str, size: int, chunks: Iterable[Buffer]) -> None:
        """An alternate data stream, ``name`` without colons."""
        ...

    def link(self, path: str, target: str) -> None:
        """A further name of a file of this image. Raises NotFound."""
        ...

    def merge_link(self, path: str, target: str) -> None:
        """A further name of a file that a parent has, found when the two are merged. Raises Unsupported."""
        ...

    def delete(self, path: str) -> None:
        """What the image has at ``path`` goes, a directory with all that is in it. Raises NotFound."""
        ...

    def tombstone(self, path: str) -> None:
        """What parents have at ``path`` is hidden when they are merged. Raises Unsupported."""
        ...

    def commit(self) -> None:
        """Finish the image, and let go of it."""
        ...

    def abort(self) -> None:
        """Let go of the image, and leave nothing of it. May be called again, and after a `commit` that failed."""
        ...


class ForkWriter(CimWriter, Protocol):
    """An image in the making that holds all that its parent holds, and can be asked what is in it so far."""

    def seen(self, path: str) -> Seen | None:
        """What is at ``path``; a reparse point is a file, since it is no way to anything."""
        ...

    def is_reparse_point(self, path: str) -> bool:
        """Whether there is a reparse point at ``path``."""
        ...

    def names(self, directory: str) -> Iterable[tuple[str, bool]]:
        """What is in ``directory``: names, each with whether it is a directory."""
        ...

    def touched(self, path: str) -> bool:
        """Whether this image has put what is at ``path``, or something in it, rather than its parent."""
        ...
