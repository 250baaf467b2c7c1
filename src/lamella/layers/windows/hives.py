# SPDX-License-Identifier: Apache-2.0
"""The registry hives of a layer's folder: what the deltas of a layer make of the hives below."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from lamella.host import flags
from lamella.layers.windows.place import CONFIG, HIVE_NAMES, HIVES

if TYPE_CHECKING:
    from lamella.layers.windows.parents import Parents

_READ: Final = os.O_RDONLY | flags.O_NOFOLLOW | flags.O_CLOEXEC
_DIRECTORY: Final = _READ | flags.O_DIRECTORY


def base_hives(root: int) -> None:
    """Give the hives of a base layer their names in `Hives`, as Windows does. Raises OSError."""
    directory = root
    opened = []
    try:
        for part in CONFIG.strip("/").split("/"):
            found = [name for name in os.listdir(directory) if name.lower() == part.lower()]
            if not found:
                return
            directory = os.open(found[0], _DIRECTORY, dir_fd=directory)
            opened.append(directory)
        there = [
            (name, HIVE_NAMES[name.upper()]) for name in sorted(os.listdir(directory)) if name.upper() in HIVE_NAMES
        ]
        if not there:
            return
        try:
            os.mkdir(HIVES, dir_fd=root)
        except FileExistsError:
            pass
        hives = os.open(HIVES, _DIRECTORY, dir_fd=root)
        opened.append(hives)
        taken = {name.lower() for name in os.listdir(hives)}
        for name, called in there:
            if f"{called}_base".lower() not in taken:
                os.link(name, f"{called}_Base", src_dir_fd=directory, dst_dir_fd=hives, follow_symlinks=False)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def merged_hives(root: int, parents: Parents) -> None:
    """Write what the deltas in `Hives` make of the parents' hives; those without a delta are carried on.

    A hive that the layers below do not have is none here either. Raises FormatError, InvalidInput, OSError.
    """
    from lamella.formats.regf import Hive, encode_hive, merged

    directory = os.open(HIVES, _DIRECTORY, dir_fd=root)
    try:
        there = {name.lower(): name for name in os.listdir(directory)}
        for called in HIVE_NAMES.values():
            wanted = f"{called}_Base"
            if wanted.lower() in there:
                continue
            below = parents.hive(wanted)
            if below is None:
                continue
            delta_name = there.get(f"{called}_delta".lower())
            delta = b"" if delta_name is None else _read(directory, delta_name)
            if delta:
                base = Hive(below) if below else None
                above = Hive(delta, layered=True)
                key = merged(None if base is None else base.root_key, above.root_key)
                below = encode_hive(key, file_name=above.file_name if base is None else base.file_name)
            with open(os.open(wanted, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=directory), "wb") as file:
                file.write(below)
    finally:
        os.close(directory)


def _read(directory: int, name: str) -> bytes:
    with open(os.open(name, _READ, dir_fd=directory), "rb") as file:
        return file.read()
