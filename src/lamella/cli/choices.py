# SPDX-License-Identifier: Apache-2.0
"""Options that name a row of an extensible table: a kind of layer, a compression, a snapshotter.

Installed packages are searched only for a name that is not built in, and for ``--help``, which lists all names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from lamella.extensions import Table
    from lamella.layers.kinds import LayerKind
    from lamella.streams.compressions import Compression

F = TypeVar("F", bound=Callable[..., Any])


class RowChoice(click.ParamType[str]):
    """The type of an option that names a row for which ``takes`` is true, or one of ``others``."""

    name = "choice"

    def __init__(
        self, table: Callable[[], Table[Any]], takes: Callable[[Any], object], others: tuple[str, ...] = ()
    ) -> None:
        self._table = table
        self._takes = takes
        self._others = others

    def rows(self) -> dict[str, Any]:
        """The rows that the option takes, by name."""
        return {name: row for name, row in self._table().rows().items() if self._takes(row)}

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return self._choice().get_metavar(param, ctx)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        built_in = self._table().built_in.get(value)
        if built_in is not None and self._takes(built_in):
            return str(value)
        return self._choice().convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return self._choice().shell_complete(ctx, param, incomplete)

    def _choice(self) -> click.Choice[str]:
        return click.Choice((*self._others, *self.rows()))


class RowOption(click.Option):
    """An option whose help text ``describe`` makes from rows, when it is shown."""

    def __init__(
        self,
        *args: Any,
        rows: Callable[[], dict[str, Any]],
        describe: Callable[[dict[str, Any]], str],
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self._rows = rows
        self._describe = describe

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        self.help = self._describe(self._rows())
        return super().get_help_record(ctx)


def kind_option(
    takes: Callable[[LayerKind], object],
    *names: str,
    about: str,
    default: str | None = None,
    others: tuple[str, ...] = (),
) -> Callable[[F], F]:
    """An option for a kind of layer that ``takes`` accepts; ``about`` is the first sentence of its help."""

    def describe(rows: dict[str, LayerKind]) -> str:
        return f"{about} {'; '.join(f'{name}: {row.summary}' for name, row in rows.items())}."

    choice = RowChoice(_layer_kinds, takes, others)
    return click.option(
        *names,
        "kind",
        cls=RowOption,
        rows=choice.rows,
        describe=describe,
        type=choice,
        default=default,
        show_default=default is not None,
    )


def _layer_kinds() -> Table[LayerKind]:
    from lamella.layers.kinds import LAYER_KINDS

    return LAYER_KINDS


def compression_options(function: F) -> F:
    """--compress, gzip by default, and --level."""
    return _compression_options(function, "gzip")


def new_compression_options(function: F) -> F:
    """--compress, without a default, and --level."""
    return _compression_options(function, None)


def _compression_options(function: F, default: str | None) -> F:
    choice = RowChoice(_compressions, lambda row: True)  # noqa: ARG005
    function = click.option("--level", cls=RowOption, rows=choice.rows, describe=_levels, type=int, metavar="N")(
        function
    )
    return click.option(
        "--compress",
        "compression",
        type=choice,
        default=default,
        show_default=default is not None,
        help="Compression of layers.",
    )(function)


def _levels(rows: dict[str, Compression]) -> str:
    levelled = {name: row for name, row in rows.items() if row.levels}
    levels = ", ".join(f"{name} {row.levels[0]} to {row.levels[-1]}" for name, row in levelled.items())
    defaults = ", ".join(f"{name} {row.default_level}" for name, row in levelled.items())
    return f"Compression level; higher is smaller and slower: {levels}.  [default: {defaults}]"


def _compressions() -> Table[Compression]:
    from lamella.streams.compressions import COMPRESSIONS

    return COMPRESSIONS
