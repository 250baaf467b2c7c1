# SPDX-License-Identifier: Apache-2.0
"""Tables of rows by name, which installed packages extend through entry points.

The metadata of installed packages is read only when a name is unknown or all names are listed: `importlib.metadata`
takes 40 ms to import and to search, too much for each start of the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from lamella.errors import Conflict, InvalidInput, Unsupported

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Row = TypeVar("Row")


class Table(Generic[Row]):
    """Rows by name: the ones of this package, which nothing replaces, and the ones of entry points.

    ``noun`` names a row in messages ("kind of layer"). ``group`` is the group of entry points, each of which names an
    object of the class ``row``.
    """

    def __init__(self, noun: str, group: str, row: type[Row], rows: dict[str, Row]) -> None:
        self.noun = noun
        self.group = group
        self.built_in = rows
        """The rows of this package, in the order in which they are listed."""
        self._row = row
        self._found: dict[str, list[EntryPoint]] | None = None
        self._loaded: dict[str, Row] = {}

    def __getitem__(self, name: str) -> Row:
        """The row ``name``.

        Raises InvalidInput for an unknown name, Unsupported if its package cannot be loaded, Conflict if several
        packages add it.
        """
        row = self.find(name)
        if row is None:
            raise InvalidInput(f"unknown {self.noun} {name!r}; choose from {', '.join(self.names())}")
        return row

    def find(self, name: str) -> Row | None:
        """The row ``name``; None for an unknown name. Raises Unsupported, Conflict."""
        row = self.built_in.get(name) or self._loaded.get(name)
        if row is None and (found := self._entry_points().get(name)):
            row = self._loaded[name] = self._load(name, found)
        return row

    def __contains__(self, name: str) -> bool:
        return name in self.built_in or name in self._entry_points()

    def names(self) -> tuple[str, ...]:
        """All names: the ones of this package first, then the ones of entry points, sorted. Loads no package."""
        return (*self.built_in, *sorted(self._entry_points()))

    def rows(self) -> dict[str, Row]:
        """All rows by name, in the order of `names`; rows that cannot be loaded are left out."""
        rows = dict(self.built_in)
        for name in sorted(self._entry_points()):
            try:
                rows[name] = self[name]
            except (Unsupported, Conflict):
                pass  # asking for it by name raises this
        return rows

    def select(self, test: Callable[[Row], object]) -> tuple[str, ...]:
        """The names of the rows for which ``test`` is true, in the order of `names`."""
        return tuple(name for name, row in self.rows().items() if test(row))

    def _entry_points(self) -> dict[str, list[EntryPoint]]:
        if self._found is None:
            from importlib.metadata import entry_points

            found: dict[str, list[EntryPoint]] = {}
            for entry in entry_points(group=self.group):
                if entry.name not in self.built_in:
                    found.setdefault(entry.name, []).append(entry)
            self._found = found
        return self._found

    def _load(self, name: str, found: list[EntryPoint]) -> Row:
        packages = sorted({_package(entry) for entry in found})
        if len(packages) > 1:
            raise Conflict(f"the {self.noun} {name!r} is added by several packages: {', '.join(packages)}")
        try:
            row = found[0].load()
        except Exception as error:
            raise Unsupported(f"cannot load the {self.noun} {name!r} of {packages[0]}: {error}") from error
        if not isinstance(row, self._row):
            raise Unsupported(
                f"cannot load the {self.noun} {name!r} of {packages[0]}: "
                f"expected a {self._row.__name__}, got a {type(row).__name__}"
            )
        return row


def _package(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name}" if entry.dist is not None else f"the module {entry.module}"
