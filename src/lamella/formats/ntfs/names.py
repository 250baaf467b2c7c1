# SPDX-License-Identifier: Apache-2.0
"""File names of NTFS: valid names, and the upcase tables that names of NTFS and CIMs are compared by."""

from __future__ import annotations

import re
import sys
from array import array
from functools import cache
from typing import Final

TABLE_SIZE: Final = 1 << 17
"""Size of an upcase table in bytes."""

_RUNS: Final = (
    # (first, last, step, delta): the simple upper case mapping of Unicode 3.2 in the basic plane, without U+0131 and
    # U+017F, which NTFS does not map. The table of Windows is not known; readers use the stored table.
    (0x00B5, 0x00B5, 1, 743),
    (0x00E0, 0x00F6, 1, -32),
    (0x00F8, 0x00FE, 1, -32),
    (0x00FF, 0x00FF, 1, 121),
    (0x0101, 0x012F, 2, -1),
    (0x0133, 0x0137, 2, -1),
    (0x013A, 0x0148, 2, -1),
    (0x014B, 0x0177, 2, -1),
    (0x017A, 0x017E, 2, -1),
    (0x0183, 0x0185, 2, -1),
    (0x0188, 0x0188, 1, -1),
    (0x018C, 0x018C, 1, -1),
    (0x0192, 0x0192, 1, -1),
    (0x0195, 0x0195, 1, 97),
    (0x0199, 0x0199, 1, -1),
    (0x019E, 0x019E, 1, 130),
    (0x01A1, 0x01A5, 2, -1),
    (0x01A8, 0x01A8, 1, -1),
    (0x01AD, 0x01AD, 1, -1),
    (0x01B0, 0x01B0, 1, -1),
    (0x01B4, 0x01B6, 2, -1),
    (0x01B9, 0x01B9, 1, -1),
    (0x01BD, 0x01BD, 1, -1),
    (0x01BF, 0x01BF, 1, 56),
    (0x01C5, 0x01C5, 1, -1),
    (0x01C6, 0x01C6, 1, -2),
    (0x01C8, 0x01C8, 1, -1),
    (0x01C9, 0x01C9, 1, -2),
    (0x01CB, 0x01CB, 1, -1),
    (0x01CC, 0x01CC, 1, -2),
    (0x01CE, 0x01DC, 2, -1),
    (0x01DD, 0x01DD, 1, -79),
    (0x01DF, 0x01EF, 2, -1),
    (0x01F2, 0x01F2, 1, -1),
    (0x01F3, 0x01F3, 1, -2),
    (0x01F5, 0x01F5, 1, -1),
    (0x01F9, 0x021F, 2, -1),
    (0x0223, 0x0233, 2, -1),
    (0x0253, 0x0253, 1, -210),
    (0x0254, 0x0254, 1, -206),
    (0x0256, 0x0257, 1, -205),
    (0x0259, 0x0259, 1, -202),
    (0x025B, 0x025B, 1, -203),
    (0x0260, 0x0260, 1, -205),
    (0x0263, 0x0263, 1, -207),
    (0x0268, 0x0268, 1, -209),
    (0x0269, 0x0269, 1, -211),
    (0x026F, 0x026F, 1, -211),
    (0x0272, 0x0272, 1, -213),
    (0x0275, 0x0275, 1, -214),
    (0x0280, 0x0280, 1, -218),
    (0x0283, 0x0283, 1, -218),
    (0x0288, 0x0288, 1, -218),
    (0x028A, 0x028B, 1, -217),
    (0x0292, 0x0292, 1, -219),
    (0x0345, 0x0345, 1, 84),
    (0x03AC, 0x03AC, 1, -38),
    (0x03AD, 0x03AF, 1, -37),
    (0x03B1, 0x03C1, 1, -32),
    (0x03C2, 0x03C2, 1, -31),
    (0x03C3, 0x03CB, 1, -32),
    (0x03CC, 0x03CC, 1, -64),
    (0x03CD, 0x03CE, 1, -63),
    (0x03D0, 0x03D0, 1, -62),
    (0x03D1, 0x03D1, 1, -57),
    (0x03D5, 0x03D5, 1, -47),
    (0x03D6, 0x03D6, 1, -54),
    (0x03D9, 0x03EF, 2, -1),
    (0x03F0, 0x03F0, 1, -86),
    (0x03F1, 0x03F1, 1, -80),
    (0x03F5, 0x03F5, 1, -96),
    (0x0430, 0x044F, 1, -32),
    (0x0450, 0x045F, 1, -80),
    (0x0461, 0x0481, 2, -1),
    (0x048B, 0x04BF, 2, -1),
    (0x04C2, 0x04CE, 2, -1),
    (0x04D1, 0x04F5, 2, -1),
    (0x04F9, 0x04F9, 1, -1),
    (0x0501, 0x050F, 2, -1),
    (0x0561, 0x0586, 1, -48),
    (0x1E01, 0x1E95, 2, -1),
    (0x1E9B, 0x1E9B, 1, -59),
    (0x1EA1, 0x1EF9, 2, -1),
    (0x1F00, 0x1F07, 1, 8),
    (0x1F10, 0x1F15, 1, 8),
    (0x1F20, 0x1F27, 1, 8),
    (0x1F30, 0x1F37, 1, 8),
    (0x1F40, 0x1F45, 1, 8),
    (0x1F51, 0x1F57, 2, 8),
    (0x1F60, 0x1F67, 1, 8),
    (0x1F70, 0x1F71, 1, 74),
    (0x1F72, 0x1F75, 1, 86),
    (0x1F76, 0x1F77, 1, 100),
    (0x1F78, 0x1F79, 1, 128),
    (0x1F7A, 0x1F7B, 1, 112),
    (0x1F7C, 0x1F7D, 1, 126),
    (0x1FB0, 0x1FB1, 1, 8),
    (0x1FBE, 0x1FBE, 1, -7205),
    (0x1FD0, 0x1FD1, 1, 8),
    (0x1FE0, 0x1FE1, 1, 8),
    (0x1FE5, 0x1FE5, 1, 7),
    (0x2170, 0x217F, 1, -16),
    (0x24D0, 0x24E9, 1, -26),
    (0xFF41, 0xFF5A, 1, -32),
)


class Upcase:
    """An upcase table, one UTF-16 unit per unit."""

    __slots__ = ("_changes", "table")

    def __init__(self, table: array[int]) -> None:
        self.table = table
        """65,536 UTF-16 units."""
        # The table of an image may differ even for ASCII.
        usual = all(table[c] == (c - 32 if 97 <= c <= 122 else c) for c in range(128))
        self._changes = not usual

    def fold(self, name: str) -> str:
        """Map each UTF-16 unit of a name; names of the same file have equal results."""
        if name.isascii() and not self._changes:
            return name.upper()
        table = self.table
        units = array("H", name.encode("utf-16-le", "surrogatepass"))
        if sys.byteorder == "big":
            units.byteswap()
        return "".join([chr(table[unit]) for unit in units])


def parse_upcase(raw: bytes) -> Upcase:
    """Parse the table of an image, 131,072 bytes."""
    table = array("H", raw)
    if sys.byteorder == "big":
        table.byteswap()
    return Upcase(table)


@cache
def usual_upcase() -> Upcase:
    """The default table, for names without a volume or image."""
    table = array("H", range(TABLE_SIZE // 2))
    for c in range(ord("a"), ord("z") + 1):
        table[c] = c - 32
    for first, last, step, delta in _RUNS:
        for c in range(first, last + 1, step):
            table[c] = c + delta
    return Upcase(table)


def pack_upcase(upcase: Upcase) -> bytes:
    """Pack a table into 131,072 bytes."""
    if sys.byteorder == "big":
        swapped = array("H", upcase.table)
        swapped.byteswap()
        return swapped.tobytes()
    return upcase.table.tobytes()


MAX_NAME: Final = 255
"""Maximum length of a name of a file or stream in UTF-16 units."""

MAX_PATH: Final = 32767
"""Maximum length of a path in UTF-16 units."""

_FORBIDDEN: Final = frozenset({*map(chr, range(32)), *'"*/:<>?\\|'})
_DEVICE: Final = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[1-9¹²³]) *(?:\.|\Z)", re.IGNORECASE)

_suspect: Final = re.compile(r'[\0-\x1f"*/:<>?\\|\ud800-\udfff]').search
_DEVICE_INITIALS: Final = frozenset("acnlpACNLP")


def illegal(name: str) -> str | None:
    """Return why a single path component is not a valid name in NTFS, or None."""
    if not name or name in (".", ".."):
        return "it is not a file name"
    for character in name:
        if character in _FORBIDDEN:
            return f"NTFS forbids {character!r} in names"
        if "\ud800" <= character <= "\udfff":
            return "it is not Unicode"
    if units(name) > MAX_NAME:
        return f"it has more than {MAX_NAME} UTF-16 units"
    return None


def awkward(name: str) -> str | None:
    """Return why Windows cannot open a valid NTFS name by an ordinary path, or None."""
    if name.endswith((".", " ")):
        return "Windows drops a dot or space at the end of a name"
    if _DEVICE.match(name):
        return "Windows reserves it for a device"
    return None


def plain(name: str) -> bool:
    """Whether a name is neither `illegal` nor `awkward`; much faster than both."""
    if not name or _suspect(name) or name[-1] in ". " or (len(name) > MAX_NAME >> 1 and units(name) > MAX_NAME):
        return False
    return name[0] not in _DEVICE_INITIALS or _DEVICE.match(name) is None


def illegal_stream(name: str) -> str | None:
    """Return why a name of an alternate data stream is invalid, or None. Control characters are allowed."""
    if not name:
        return "it is empty"
    for character in name:
        if character in "\0/:\\":
            return f"NTFS forbids {character!r} in names of streams"
        if "\ud800" <= character <= "\udfff":
            return "it is not Unicode"
    if units(name) > MAX_NAME:
        return f"it has more than {MAX_NAME} UTF-16 units"
    return None


def units(text: str) -> int:
    """Length in UTF-16 units."""
    return len(text) if text.isascii() else len(text) + sum(character > "\uffff" for character in text)


def folded(name: str) -> str:
    """Fold a name as NTFS compares it, by the default table.

    The table of a volume may differ for recent additions to Unicode.
    """
    if name.isascii():
        return name.upper()

    upper = usual_upcase().fold(name)
    if len(upper) == len(name):
        return upper
    return upper.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
