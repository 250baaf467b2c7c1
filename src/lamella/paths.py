# SPDX-License-Identifier: Apache-2.0
"""Paths inside a layer, parsed once at the edge and carried in the type from there on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Final, Generic, NewType, TypeVar

from lamella.errors import UnsafePath

N = TypeVar("N")

LayerPath = NewType("LayerPath", str)
"""A path inside a layer: relative, ``/`` between components, no empty, ``.`` or ``..`` component, no NUL.

The root is the empty string. Bytes that are not UTF-8 are kept as surrogate escapes (PEP 383).
"""

ROOT: Final = LayerPath("")

MAX_NAME: Final = 255
"""Bytes of one component on Linux file systems (NAME_MAX)."""


def parse_path(raw: str) -> LayerPath:
    """Parse ``raw`` as a path relative to the root, as after chroot(2).

    A leading ``/`` or ``./``, repeated slashes, ``.`` components and a trailing ``/`` are dropped, as other tools do.
    A ``..`` component or a NUL is refused: the meaning of ``..`` depends on links, and no layer needs it.

    Raises UnsafePath.
    """
    if raw and raw[0] not in "./" and raw[-1] != "/" and "//" not in raw and "/." not in raw and "\0" not in raw:
        return LayerPath(raw)
    if "\0" in raw:
        raise UnsafePath(raw, "it contains a NUL")
    parts = [part for part in raw.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UnsafePath(raw, "it has a '..' component")
    return LayerPath("/".join(parts))


def split(path: str) -> tuple[LayerPath, str]:
    """Split a layer path other than the root into its parent and last component."""
    parent, _, name = path.rpartition("/")
    return LayerPath(parent), name


def join(parent: str, name: str) -> LayerPath:
    """The path of ``name`` in ``parent``."""
    return LayerPath(f"{parent}/{name}" if parent else name)


def beneath(path: str, root: str) -> bool:
    """Whether ``path`` is ``root`` or lies in it."""
    return not root or path == root or path.startswith(root + "/")


def sort_key(path: str) -> tuple[bytes, ...]:
    """Sort key that orders paths as a walk meets them: a directory right before its entries, names in byte order."""
    return tuple(part.encode("utf-8", "surrogateescape") for part in path.split("/")) if path else ()


class Way(Generic[N]):
    """Cache of the parents of the last path looked up, from which the next lookup starts.

    Paths can have thousands of components, and consecutive lookups are usually close to each other.
    """

    __slots__ = ("_ends", "_nodes", "_path", "_root")

    def __init__(self, root: N) -> None:
        self._root = root
        self._path = ""
        self._ends: list[int] = []
        """End offset of each component of the path."""
        self._nodes: list[N] = []

    def reset(self) -> None:
        """Clear the cache after a directory was removed or replaced."""
        self._path = ""
        self._ends.clear()
        self._nodes.clear()

    def find(self, path: str, step: Callable[[N, str], N | None]) -> N | None:
        """Look up the directory ``path``; ``step`` returns a subdirectory, or None, which ends the lookup."""
        if not path:
            return self._root
        ends, nodes = self._ends, self._nodes
        if path != self._path:
            shared = self._shared(path)
            del ends[shared:], nodes[shared:]
            end = ends[-1] if ends else -1
            try:
                while end < len(path):
                    start = end + 1
                    end = path.find("/", start)
                    if end < 0:
                        end = len(path)
                    node = step(nodes[-1] if nodes else self._root, path[start:end])
                    if node is None:
                        return None
                    ends.append(end)
                    nodes.append(node)
            finally:
                self._path = path[: ends[-1]] if ends else ""
        return nodes[-1]

    def _shared(self, path: str) -> int:
        """The number of leading components shared with the previous path."""
        old, ends = self._path, self._ends
        if not path.startswith(old):
            least, most = 0, len(old)
            while least < most:  # characters
                half = (least + most + 1) // 2
                if path.startswith(old[:half]):
                    least = half
                else:
                    most = half - 1
        else:
            least = len(old)
        count = bisect_right(ends, least)
        if count and ends[count - 1] == least < len(path) and path[least] != "/":
            count -= 1
        return count
