# SPDX-License-Identifier: Apache-2.0
"""The contracts of layers: a `Source` yields changes, a `Sink` consumes them, a `Tree` answers queries."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

from msgspec import Struct

from lamella.changes.limits import Implied
from lamella.changes.model import Change, Content, Entry, Kind, StoredContent
from lamella.changes.whiteouts import PutRecord
from lamella.paths import LayerPath

R_co = TypeVar("R_co", covariant=True)

Source: TypeAlias = Iterable[Change]
"""The changes of one layer, in order. Streamed content is valid until the next change is requested."""


class Seen(Struct):
    """The kind of the file at a path, and the target of a symbolic link."""

    kind: Kind
    target: str = ""


class View(Protocol):
    """The merged view of a sink: its parent layers, and on top what it has taken so far."""

    def seen(self, path: LayerPath) -> Seen | None:
        """The file at ``path``, whose parents are all real directories (no links); None if there is none."""
        ...


class Sink(Protocol[R_co]):
    """Consumes the changes of one layer, whose paths `apply` has made safe.

    Paths are canonical: their parents are real directories in the sink's `view`, never links. The result stays
    invisible, or recognisably unfinished, until `commit`; `abort` removes what was written, if the place allows it.
    Each is called at most once and last; only `abort` may follow a `commit` that raised.
    """

    @property
    def view(self) -> View | None:
        """The tree that paths are resolved against; None if the place records changes, not files (a tar)."""
        ...

    @property
    def layered(self) -> bool:
        """Whether there are lower layers, without which whiteouts and opaque markers have no effect."""
        ...

    def put(self, entry: Entry, content: Content | None) -> bool | None:
        """Create a file, replacing what exists at its path; over a directory, a directory replaces the metadata only.

        Returns true if a directory was replaced by another kind of file, or a symbolic link by anything: known
        paths through it are then stale.
        """
        ...

    def link(self, path: LayerPath, target: LayerPath) -> bool | None:
        """Create a hard link to the file at ``target``; returns as `put` does. Raises NotFound, InvalidInput."""
        ...

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        """Write an alternate data stream of the file at ``path``."""
        ...

    def whiteout(self, path: LayerPath) -> bool | None:
        """Hide the lower file at ``path``; the layer itself has put nothing there or beneath it.

        Returns true if it was a directory or a symbolic link.
        """
        ...

    def opaque(self, path: LayerPath, record: PutRecord) -> bool | None:
        """Hide what the parent layers have in the directory ``path``; keep what the layer itself has put (``record``).

        Returns false if the sink knows that there was nothing to hide.
        """
        ...

    def commit(self) -> R_co:
        """Finish the layer, make the result visible, and return it."""
        ...

    def abort(self) -> None:
        """Discard the layer. Must not raise for ordinary failures."""
        ...


class Tree(Protocol):
    """A file tree that can be queried in any order and read again. No method follows symbolic links."""

    def lookup(self, path: LayerPath) -> Entry | None:
        """The entry at ``path``, or None. The root always exists."""
        ...

    def entries(self, directory: LayerPath) -> list[Entry]:
        """The entries of a directory, in the byte order of their names. Raises NotFound, InvalidInput (a file)."""
        ...

    def open(self, path: LayerPath) -> StoredContent:
        """The content of a regular file. Raises NotFound, InvalidInput (not a regular file)."""
        ...

    def identity(self, path: LayerPath) -> Hashable:
        """A key that is equal for all hard links of one file; None for a file with one name. Not for directories."""
        ...


# Optional capabilities


@runtime_checkable
class HasImplied(Protocol):
    """A sink for several layers, which keeps the implied directories of all of them."""

    @property
    def implied(self) -> Implied:
        """The implied parent directories so far."""
        ...


@runtime_checkable
class HasStreams(Protocol):
    """A tree whose files can have alternate data streams."""

    def streams(self, path: LayerPath) -> Mapping[str, StoredContent]:
        """The alternate data streams of the file at ``path``, by name; empty if there is no file."""
        ...


@runtime_checkable
class HasLinkRoot(Protocol):
    """A tree in which an absolute symbolic link does not start at the root."""

    def link_root(self, path: LayerPath) -> LayerPath:
        """The directory in which the absolute target of the link at ``path`` starts."""
        ...


@runtime_checkable
class IgnoresCase(Protocol):
    """A tree that finds names whatever their case."""

    any_case: bool
    """True."""
