# SPDX-License-Identifier: Apache-2.0
"""Names inside a layer, parsed once at the edge and carried in the type from there on."""

from __future__ import annotations

from typing import Final, NewType

from lamella.errors import UnsafePath

LayerPath = NewType("LayerPath", str)
"""A path inside a layer: relative, ``/`` between components, no empty, ``.`` or ``..`` component, no NUL.

The root is the empty string. Bytes that are not UTF-8 are kept as surrogate escapes (PEP 383).
"""

ROOT: Final = LayerPath("")

MAX_NAME: Final = 255
"""Bytes in one component that a Linux file system takes."""


def parse_path(raw: str) -> LayerPath:
    """The layer path that ``raw`` names, taken relative to the root as if chrooted there.

    A leading ``/`` or ``./``, doubled slashes, ``.`` components and a trailing ``/`` are dropped, as every tool of
    the field does. A ``..`` component or a NUL is refused: what it means depends on links, and no layer needs it.

    Raises UnsafePath.
    """
    if "\0" in raw:
        raise UnsafePath(raw, "it contains a NUL")
    parts = [part for part in raw.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UnsafePath(raw, "it has a '..' component")
    return LayerPath("/".join(parts))


def split(path: str) -> tuple[LayerPath, str]:
    """The parent and the last component of a layer path other than the root."""
    parent, _, name = path.rpartition("/")
    return LayerPath(parent), name


def join(parent: str, name: str) -> LayerPath:
    """The path of ``name`` in ``parent``."""
    return LayerPath(f"{parent}/{name}" if parent else name)


def beneath(path: str, root: str) -> bool:
    """Whether ``path`` is ``root`` or lies in it."""
    return not root or path == root or path.startswith(root + "/")


def sort_key(path: str) -> tuple[bytes, ...]:
    """Orders paths as a walk meets them: a directory right before what is in it, names by their bytes."""
    return tuple(part.encode("utf-8", "surrogateescape") for part in path.split("/")) if path else ()
