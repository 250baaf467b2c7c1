# SPDX-License-Identifier: Apache-2.0
"""Access to the store of a run, and options and table cells that several verbs of the store share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from lamella.cli.choices import RowOption
from lamella.cli.console import Console, columns, is_terminal, printable

if TYPE_CHECKING:
    from lamella.store.snapshots.kinds import SnapshotterKind
    from lamella.store.store import LocalNamespace, Store

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_NAMESPACE: Final = "default"
_NAMESPACE: Final = "lamella.namespace"


def _note_namespace(context: click.Context, option: click.Parameter, value: str | None) -> None:  # noqa: ARG001
    if value is not None:
        context.meta[_NAMESPACE] = value


def namespace_option(function: F) -> F:
    """--namespace, which may stand before or after the verbs of a group."""
    return click.option(
        "-n",
        "--namespace",
        metavar="NAME",
        expose_value=False,
        callback=_note_namespace,
        help="The namespace of the store.  [default: default]",
    )(function)


def snapshotter_option(function: F) -> F:
    """--snapshotter."""

    def rows() -> dict[str, SnapshotterKind]:
        from lamella.store.snapshots.kinds import SNAPSHOTTERS

        return SNAPSHOTTERS.rows()

    return click.option("--snapshotter", cls=RowOption, rows=rows, describe=_snapshotters, metavar="NAME")(function)


def _snapshotters(rows: dict[str, SnapshotterKind]) -> str:
    names = ", ".join(f"{name} ({row.layer})" if row.layer != name else name for name, row in rows.items())
    return f"The snapshotter for unpacked layers, by its name or its kind of layer: {names}."


def verity_option(function: F) -> F:
    """--verity."""
    return click.option(
        "--verity",
        type=click.Choice(["fs-verity", "dm-verity"]),
        help="Let the kernel verify EROFS layers as they are read; refuse layers that it cannot verify.",
    )(function)


def chosen_verity(verity: str | None, snapshotter: str | None) -> str:
    """The value of --verity, empty without it. Raises UsageError if the snapshotter does not support it."""
    if verity is not None and not _supports_verity(snapshotter):
        raise click.UsageError("--verity needs --snapshotter erofs")
    return verity or ""


def _supports_verity(snapshotter: str | None) -> bool:
    from lamella.store.snapshots.kinds import SNAPSHOTTERS, canonical

    return snapshotter is not None and bool(SNAPSHOTTERS[canonical(snapshotter)].verity)


def chosen_namespace() -> str | None:
    """The namespace that --namespace names; None without it."""
    found: str | None = click.get_current_context().meta.get(_NAMESPACE)
    return found


@contextmanager
def opened_store(
    *,
    create: bool = False,
    readonly: bool = False,
    verity: str = "",
    isolated: bool = False,
    frees: bool = False,
) -> Iterator[Store]:
    """Open the store of this run for the block. Raises as `Store.open`."""
    from lamella.errors import NotFound
    from lamella.store.store import Store, default_root

    try:
        store = Store.open(
            default_root(), create=create, readonly=readonly, verity=verity, isolated=isolated, frees=frees
        )
    except NotFound as missing:
        missing.hint = missing.hint or "'lamella store import' creates one; --root and LAMELLA_ROOT set its directory"
        raise
    with store:
        yield store


@contextmanager
def opened_space(
    *, create: bool = False, readonly: bool = False, verity: str = "", frees: bool = False
) -> Iterator[LocalNamespace]:
    """Open the store, and take the namespace of this run for the block."""
    with opened_store(create=create, readonly=readonly, verity=verity, frees=frees) as store:
        yield store.namespace(chosen_namespace() or DEFAULT_NAMESPACE)


def table(console: Console, header: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> None:
    """Print ``rows`` beneath ``header``; align the columns numbered in ``right`` at the right."""
    cells = [header, *(map(printable, row) for row in rows)] if is_terminal(sys.stdout) else [header, *rows]
    for line in columns([tuple(row) for row in cells], frozenset(right)):
        console.line(line)


def labels_text(labels: Iterable[tuple[str, str]]) -> str:
    """Labels as the cell of a table."""
    return ",".join(f"{key}={value}" if value else key for key, value in sorted(labels)) or "-"


def when(time: int) -> str:
    """A time in nanoseconds as the cell of a table, to the second."""
    from lamella.times import SECOND

    return _second(time // SECOND)


@lru_cache(1024)  # objects of one image have few different times
def _second(number: int) -> str:
    from lamella.times import SECOND, format_rfc3339

    return format_rfc3339(number * SECOND)


def store_reference(text: str) -> str:
    """The reference in ``store:REF``. Raises InvalidInput for the name of an image outside the store."""
    from lamella.errors import InvalidInput

    form, colon, reference = text.partition(":")
    if form == "store" and colon and reference:
        return reference
    raise InvalidInput(
        f"{text[:300]!r} is not an image of the store, as in store:REF",
        hint=f"import it first: lamella store import {text[:300]} --name REF",
    )
