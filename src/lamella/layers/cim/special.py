# SPDX-License-Identifier: Apache-2.0
"""Files of a Windows layer that the host must have outside of the image: registry hives, and what boots a utility VM.

``docs/formats/cim.md`` gives the rules and whose they are.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from lamella.errors import NotFound, from_os
from lamella.formats.ntfs.upcase import usual_upcase

HIVES: Final = {
    "SYSTEM": "SYSTEM",
    "SOFTWARE": "SOFTWARE",
    "SAM": "SAM",
    "SECURITY": "SECURITY",
    "DEFAULT": "DEFAULTUSER",
}
"""A hive in the configuration directory, and what the names of its delta and its base begin with in ``Hives``."""

CONFIG: Final = "Files/Windows/System32/config"
LAYOUT: Final = b"vhd-with-hives\n"
"""What the file ``layout`` of a base layer says."""

fold: Final = usual_upcase().fold
"""What is equal for paths of one file."""

_IGNORING_CASE: Final = frozenset(
    {fold(f"{CONFIG}/{name}") for name in HIVES} | {fold(f"Hives/{name}_Delta") for name in HIVES.values()}
)
_EXACTLY: Final = frozenset(
    {
        "UtilityVM/Files/Windows/System32/config/SYSTEM",
        "UtilityVM/Files/Windows/System32/config/SOFTWARE",
        "UtilityVM/Files/EFI/Microsoft/Boot/BCD",
        "UtilityVM/Files/EFI/Microsoft/Boot/bootmgfw.efi",
    }
)


LENGTHS: Final = frozenset(map(len, _IGNORING_CASE | _EXACTLY))
"""Of all paths that `is_special` finds."""


def is_special(path: str) -> bool:
    """Whether the file at ``path`` goes through the host's file system."""
    return len(path) in LENGTHS and (fold(path) in _IGNORING_CASE or path in _EXACTLY)


def is_derived(path: str) -> bool:
    """Whether an import may make the file at ``path`` of more than the layer itself: all in ``Hives``."""
    return path[:1] in ("H", "h") and fold(path[:6]) == "HIVES/"


def find(folder: Path, path: str) -> Path | None:
    """The file ``path`` beneath ``folder`` in whatever case; no link is followed."""
    at = folder
    for part in path.split("/"):
        exact = at / part
        if os.path.lexists(exact):
            at = exact
            continue
        try:
            names = [name for name in os.listdir(at) if name.upper() == part.upper()]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as problem:
            raise from_os(problem, f"list {os.fspath(at)!r}") from problem
        if not names:
            return None
        at /= names[0]
    return at if at.is_file() and not at.is_symlink() else None


def merge_hive(base: Path, delta: Path, result: Path) -> None:
    """Write to ``result`` what ``delta`` makes of ``base``. Raises NotFound, FormatError, InvalidInput."""
    from lamella.formats.regf.merge import merged
    from lamella.formats.regf.reader import Hive
    from lamella.formats.regf.writer import encode_hive

    try:
        below, above = base.read_bytes(), delta.read_bytes()
    except FileNotFoundError as problem:
        raise NotFound(f"the hive {problem.filename!r} is not there") from None
    except OSError as problem:
        raise from_os(problem, f"read {problem.filename!r}") from problem
    raw = encode_hive(merged(Hive(below).root_key, Hive(above, layered=True).root_key))
    try:
        with result.open("xb") as file:
            file.write(raw)
    except OSError as problem:
        raise from_os(problem, f"write {os.fspath(result)!r}") from problem
