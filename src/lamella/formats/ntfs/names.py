# SPDX-License-Identifier: Apache-2.0
"""Names of files as NTFS and Windows take them ("Naming Files, Paths, and Namespaces")."""

from __future__ import annotations

import re
from typing import Final

MAX_NAME: Final = 255
"""UTF-16 units of one name, of a file or of a stream."""

MAX_PATH: Final = 32767
"""UTF-16 units of a whole path."""

_FORBIDDEN: Final = frozenset({*map(chr, range(32)), *'"*/:<>?\\|'})
_DEVICE: Final = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[1-9¹²³]) *(?:\.|\Z)", re.IGNORECASE)

_suspect: Final = re.compile(r'[\0-\x1f"*/:<>?\\|\ud800-\udfff]').search
_DEVICE_INITIALS: Final = frozenset("acnlpACNLP")


def illegal(name: str) -> str | None:
    """Why no file of NTFS can have this name; None where one can. Names are single components."""
    if not name or name in (".", ".."):
        return "it is no name of a file"
    for character in name:
        if character in _FORBIDDEN:
            return f"NTFS has no {character!r} in names"
        if "\ud800" <= character <= "\udfff":
            return "it is not Unicode"
    if units(name) > MAX_NAME:
        return f"it has more than {MAX_NAME} UTF-16 units"
    return None


def awkward(name: str) -> str | None:
    """Why Windows cannot open a file of this name by a usual path, though NTFS has it; None where it can."""
    if name.endswith((".", " ")):
        return "Windows drops a dot or space at the end of a name"
    if _DEVICE.match(name):
        return "Windows takes it for a device"
    return None


def plain(name: str) -> bool:
    """Whether neither `illegal` nor `awkward` finds anything; much quicker than asking them."""
    if not name or _suspect(name) or name[-1] in ". " or (len(name) > MAX_NAME >> 1 and units(name) > MAX_NAME):
        return False
    return name[0] not in _DEVICE_INITIALS or _DEVICE.match(name) is None


def illegal_stream(name: str) -> str | None:
    """Why no alternate data stream can have this name; None where one can. Control characters are allowed there."""
    if not name:
        return "it is empty"
    for character in name:
        if character in "\0/:\\":
            return f"NTFS has no {character!r} in names of streams"
        if "\ud800" <= character <= "\udfff":
            return "it is not Unicode"
    if units(name) > MAX_NAME:
        return f"it has more than {MAX_NAME} UTF-16 units"
    return None


def units(text: str) -> int:
    """The length of ``text`` in UTF-16 units."""
    return len(text) if text.isascii() else len(text) + sum(character > "\uffff" for character in text)


def folded(name: str) -> str:
    """``name`` as NTFS compares it: each UTF-16 unit in upper case, where upper case is one unit too.

    NTFS has a table of its own on each volume; for what was assigned to Unicode lately it may differ from this.
    """
    if name.isascii():
        return name.upper()
    from lamella.formats.ntfs.upcase import usual_upcase

    upper = usual_upcase().fold(name)
    if len(upper) == len(name):
        return upper
    return upper.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
