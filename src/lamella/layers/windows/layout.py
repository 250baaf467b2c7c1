# SPDX-License-Identifier: Apache-2.0
"""What is where in the folder of a Windows layer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from msgspec import Struct

from lamella.paths import LayerPath

FILES: Final = "Files"
HIVES: Final = "Hives"
UTILITY: Final = "UtilityVM"
UTILITY_FILES: Final = "UtilityVM/Files"
TOPS: Final = frozenset({FILES, HIVES, UTILITY})

INDEX: Final = "lamella.index"
STREAMS: Final = "lamella.streams"
FRAMING: Final = "lamella.framing"
TOMBSTONES: Final = "tombstones.txt"
TOMBSTONES_HEAD: Final = "Version 1.0"
DIRECTORY_SUFFIX: Final = ".$wcidirs$"
"""Of the file beside a directory in a transport folder that has the directory's metadata."""

BOOT: Final = "UtilityVM/Files/EFI/Microsoft/Boot/"
BOOT_COPIES: Final = {
    f"{BOOT}BCD": "bcd.bak",
    f"{BOOT}BCD.LOG": "bcd.log.bak",
    f"{BOOT}BCD.LOG1": "bcd.log1.bak",
    f"{BOOT}BCD.LOG2": "bcd.log2.bak",
}
"""Files that Windows changes when it takes a layer -> their copies at the top of the folder."""

CONFIG: Final = "Files/Windows/System32/config/"
HIVE_NAMES: Final = {
    "SYSTEM": "System",
    "SOFTWARE": "Software",
    "SAM": "Sam",
    "SECURITY": "Security",
    "DEFAULT": "DefaultUser",
}
"""A hive in a base layer's `CONFIG` -> what its name in `Hives` begins with."""

_ROOM: Final = 255 - len(DIRECTORY_SUFFIX)
"""Bytes of a name that a Linux file system takes, with the suffix of a directory's file."""


class WindowsLayer(Struct, frozen=True):
    """The folder of one layer: of a base layer, or the transport folder of a layer with parents."""

    path: Path


def disk_path(path: str) -> str:
    """Where in the folder the file ``path`` of the layer lies.

    NTFS takes names of up to 765 bytes of UTF-8; one that is too long here is cut, and told from others by a digest.
    """
    if len(path) <= _ROOM and path.isascii():
        return path
    return "/".join(map(disk_name, path.split("/")))


def disk_name(name: str) -> str:
    """See `disk_path`."""
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) <= _ROOM:
        return name
    from hashlib import sha256

    return f"{raw[:180].decode('utf-8', 'ignore')}~{sha256(raw).hexdigest()[:32]}"


def in_transport(path: str, *, base: bool) -> bool:
    """Whether the file ``path`` lies in the folder as attributes and backup streams, and not as itself."""
    return not base and not path.startswith((HIVES + "/", UTILITY + "/")) and path != UTILITY


def tombstone_list(paths: Iterable[LayerPath]) -> bytes:
    """`tombstones.txt` of what is hidden in `Files`."""
    lines = [TOMBSTONES_HEAD, *("\\" + path[len(FILES) + 1 :].replace("/", "\\") for path in paths)]
    return b"\xef\xbb\xbf" + "".join(line + "\r\n" for line in lines).encode("utf-8", "surrogatepass")
