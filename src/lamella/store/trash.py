# SPDX-License-Identifier: Apache-2.0
"""Removal in two steps: out of sight at once, which is quick and can be done while others wait, and then for good.

For files of blobs and ingests. Snapshots have rules of their own (`lamella.store.snapshotters.places`).
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from lamella.layers.descriptors import remove_path

_TRASH: Final = "trash"
_PREFIX: Final = "content-"


def discard(root: Path, path: str) -> bool:
    """Move a file or a directory of the store at ``root`` out of sight; false where it is not there."""
    try:
        os.rename(path, os.path.join(root, _TRASH, f"{_PREFIX}{secrets.token_hex(8)}"))
    except FileNotFoundError:
        return False
    return True


def empty_trash(root: Path) -> None:
    """Remove what `discard` has moved out of sight, for whomever. What cannot be removed waits for the next time."""
    trash = os.path.join(root, _TRASH)
    for name in os.listdir(trash):
        if not name.startswith(_PREFIX):
            continue
        with suppress(OSError):
            remove_path(os.path.join(trash, name))
