# SPDX-License-Identifier: Apache-2.0
"""What a place must offer to take part: `Source` gives changes, `Sink` takes them, `Tree` answers questions."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from collections.abc import Set as AbstractSet
from typing import Protocol, TypeAlias, TypeVar

from msgspec import Struct

from lamella.changes.model import Change, Content, Entry, Kind, StoredContent
from lamella.paths import LayerPath

R_co = TypeVar("R_co", covariant=True)

Source: TypeAlias = Iterable[Change]
"""Gives the changes of one layer, in order. Content that streams is valid until the next change is asked for."""


class Seen(Struct):
    """What stands at a path, as far as walking needs it."""

    kind: Kind
    target: str = ""
    """Where a symbolic link points."""


class View(Protocol):
    """The merged picture a sink sees: its parents' files with what it has taken so far on top."""

    def seen(self, path: LayerPath) -> Seen | None:
        """What is at ``path``, whose parents are all real directories; None where there is nothing."""
        ...


class Mine(Protocol):
    """What the layer being applied has put so far."""

    @property
    def clean(self) -> set[LayerPath]:
        """Directories of a place without markers in which nothing of the parents is left; kept by `prune`."""
        ...

    def names(self, directory: LayerPath) -> AbstractSet[str]:
        """Names in ``directory`` that the layer has put, or that are on the way to something that it has put."""
        ...

    def stated(self, path: LayerPath) -> bool:
        """Whether the layer states ``path`` itself, rather than having put something in it only."""
        ...


class Sink(Protocol[R_co]):
    """Takes the changes of one layer, already made safe by `apply`.

    Paths come canonical: their parents are real directories in the sink's `view`, never links. A sink holds the
    result invisible or plainly unfinished until `commit`; `abort` leaves nothing of the layer behind, where the place
    allows that. Neither is called twice; nothing follows `commit` but, where it raises, `abort`, and nothing `abort`.
    """

    @property
    def view(self) -> View | None:
        """What paths are resolved against; None where the place holds facts rather than files (a tar)."""
        ...

    @property
    def layered(self) -> bool:
        """Whether anything lies below, so that whiteouts and opaque markers can mean something."""
        ...

    def put(self, entry: Entry, content: Content | None) -> bool | None:
        """A file, in place of whatever is there; a directory over a directory changes its metadata alone.

        True when something was replaced by a file of another kind, or a symbolic link by anything.
        """
        ...

    def link(self, path: LayerPath, target: LayerPath) -> bool | None:
        """A further name for the file at ``target``. The result is that of `put`. Raises NotFound, InvalidInput."""
        ...

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        """An alternate data stream of the file at ``path``."""
        ...

    def whiteout(self, path: LayerPath) -> bool | None:
        """Nothing is at ``path`` any more; the layer itself has put nothing there or beneath.

        True when what went was a directory or a symbolic link.
        """
        ...

    def opaque(self, path: LayerPath, mine: Mine) -> bool | None:
        """What the parents have in the directory ``path`` is hidden; what is in ``mine`` stays.

        False when there was nothing to hide, as far as the sink can tell.
        """
        ...

    def commit(self) -> R_co:
        """Finish, make the result visible, and return what the sink is for."""
        ...

    def abort(self) -> None:
        """Give up. Must not raise for anything short of a broken system."""
        ...


class Tree(Protocol):
    """Indexed, re-readable facts. No method follows a symbolic link."""

    def lookup(self, path: LayerPath) -> Entry | None:
        """The entry at ``path``; None where there is nothing. The root is always there."""
        ...

    def entries(self, directory: LayerPath) -> list[Entry]:
        """What is in ``directory``, sorted by the bytes of the names. Raises NotFound, InvalidInput (no directory)."""
        ...

    def open(self, path: LayerPath) -> StoredContent:
        """The content of a regular file. Raises NotFound, InvalidInput (no regular file)."""
        ...

    def identity(self, path: LayerPath) -> Hashable:
        """Equal for two names of one file, None for a file that has a single name. Asked of non-directories."""
        ...
