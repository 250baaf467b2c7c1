# SPDX-License-Identifier: Apache-2.0
"""Names and paths in the folder of a Windows layer."""

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
"""The suffix of the file that holds the metadata of the directory beside it, in a transport folder."""

BOOT: Final = "UtilityVM/Files/EFI/Microsoft/Boot/"
BOOT_COPIES: Final = {
    f"{BOOT}BCD": "bcd.bak",
    f"{BOOT}BCD.LOG": "bcd.log.bak",
    f"{BOOT}BCD.LOG1": "bcd.log1.bak",
    f"{BOOT}BCD.LOG2": "bcd.log2.bak",
}
"""Boot files that Windows changes when it imports a layer -> the names of their copies at the top of the folder."""

CONFIG: Final = "Files/Windows/System32/config/"
HIVE_NAMES: Final = {
    "SYSTEM": "System",
    "SOFTWARE": "Software",
    "SAM": "Sam",
    "SECURITY": "Security",
    "DEFAULT": "DefaultUser",
}
"""The name of a hive in `CONFIG` of a base layer -> the prefix of its name in `Hives`."""
HIVE_LOGS: Final = (".LOG1", ".LOG2", ".LOG")
"""Suffixes of the transaction logs beside a hive."""

_ROOM: Final = 255 - len(DIRECTORY_SUFFIX)
"""Bytes that a name may have on a Linux file system, so that the suffix of the metadata file fits too."""


class WindowsLayer(Struct, frozen=True):
    """The folder of a layer: of a base layer, or the transport folder of a layer with parents."""

    path: Path


def disk_path(path: str) -> str:
    """The path in the folder of the layer's file ``path``.

    NTFS allows names of up to 765 bytes of UTF-8. A longer name than the host allows is cut and gets a digest as its
    end.
    """
    if len(path) <= _ROOM and path.isascii():
        return path
    return "/".join(map(disk_name, path.split("/")))


def disk_name(name: str) -> str:
    """The name in the folder of a file that the layer calls ``name``; see `disk_path`."""
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) <= _ROOM:
        return name
    from hashlib import sha256

    return f"{raw[:180].decode('utf-8', 'ignore')}~{sha256(raw).hexdigest()[:32]}"


def in_transport(path: str, *, base: bool) -> bool:
    """Whether the folder holds ``path`` as attributes and backup streams; otherwise it holds the file itself."""
    return not base and not path.startswith((HIVES + "/", UTILITY + "/")) and path != UTILITY


def windows_path(path: str) -> str:
    """``path`` with backslashes."""
    return path.replace("/", "\\")


def tombstone_list(paths: Iterable[LayerPath]) -> bytes:
    """The content of `tombstones.txt` for hidden files in `Files`."""
    lines = [TOMBSTONES_HEAD, *("\\" + path[len(FILES) + 1 :].replace("/", "\\") for path in paths)]
    return b"\xef\xbb\xbf" + "".join(line + "\r\n" for line in lines).encode("utf-8", "surrogatepass")
