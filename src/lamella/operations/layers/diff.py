# SPDX-License-Identifier: Apache-2.0
"""Compare two directories, and write or list the changes between them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from lamella.changes.contracts import Source, Tree
from lamella.changes.diff import EVERYTHING, Compare
from lamella.changes.diff import diff as changes_between
from lamella.changes.job import Job
from lamella.changes.losses import Losses
from lamella.changes.model import Change, Entry, Link, Opaque, Put, Stream, Whiteout
from lamella.errors import InvalidInput
from lamella.layers import kinds
from lamella.layers.directory.tree import DirectoryTree
from lamella.layers.policy import Owners
from lamella.operations.atomic_file import refuse_within, replacing
from lamella.operations.layers.write import LayerOptions, Written, write_layer, write_tar
from lamella.paths import LayerPath

if TYPE_CHECKING:
    from lamella.host.windows.system import WindowsSystem
    from lamella.layers.kinds import Lookup


class DiffOptions(LayerOptions, frozen=True, kw_only=True):
    """How to compare two places, and how to write the layer."""

    kind: str = "directory"
    """The kind of both places, a name of `lamella.layers.kinds`."""
    parents: Sequence[Path] = ()
    """Parents of a Windows layer, nearest first."""
    exact: bool = False
    """Compare the content of all files, even if equal times with fractions of a second prove it equal."""
    recipe: str | os.PathLike[str] | None = None
    """Also write a recipe of the blob to this file; see `lamella.operations.layers.recipes`."""
    system: WindowsSystem | None = None
    """The Windows that exports layers of the kind ``"windows"``; None for this host."""


DEFAULT_OPTIONS: Final = DiffOptions()

_DIRECTORY_OWNERS: Final[dict[Owners | None, Literal["actual", "recorded"] | None]] = {
    None: None,
    Owners.KEEP: "actual",
    Owners.IGNORE: "actual",
    Owners.RECORD: "recorded",
}


def diff(
    lower: str | os.PathLike[str] | None,
    upper: str | os.PathLike[str],
    output: str | os.PathLike[str] | BinaryIO,
    options: DiffOptions = DEFAULT_OPTIONS,
    *,
    job: Job | None = None,
) -> Written:
    """Write the layer that turns the directory ``lower`` into ``upper``; with None, the layer has all of ``upper``.

    A path ``output`` appears when the blob is complete; an open file is written from its position. By
    ``options.kind``, ``upper`` may be something else: with ``"overlay"`` the upper directory of an overlay, which
    records the changes itself; with ``"windows"`` the folder of a Windows layer, which gives its exact tar if it was
    made from one, and which Windows exports against ``options.parents``; with ``"cim"`` both are composite images, and
    the default of ``lower`` is the image that ``upper`` was forked from.

    The same trees always give the same bytes: times lose their fractions unless ``options.subsecond`` is set, and
    SOURCE_DATE_EPOCH is the latest time of a file.

    Raises NotFound, InvalidInput (``output`` lies in ``upper``), Conflict (a file changed meanwhile), Denied,
    Exhausted, Cancelled and other errors of reading and writing.
    """
    job = job or Job()
    if options.recipe is not None:
        if not isinstance(output, (str, os.PathLike)):
            raise InvalidInput("a recipe needs a blob with a name, not an open file")
        refuse_within(upper, options.recipe, "the recipe")
    opened: Any = nullcontext(output)
    if isinstance(output, (str, os.PathLike)):
        refuse_within(upper, output, "the blob")
        opened = replacing(Path(output))
    layer = replace(options, windows=kinds.LAYER_KINDS[options.kind].windows)
    with open_changes(lower, upper, options, job.losses) as (changes, lookup), opened as file:
        tar = kinds.recorded_tar(options.kind, changes)
        if tar is not None:
            written = write_tar(tar, file, layer, job=job)
        else:
            written = write_layer(changes, file, layer, lookup=lookup, job=job)
    if options.recipe is not None:
        from lamella.operations.layers.recipes import make_recipe

        make_recipe(output, options.recipe, compression=options.compression, job=job)
    return written


@contextmanager
def open_changes(
    lower: str | os.PathLike[str] | None,
    upper: str | os.PathLike[str],
    options: DiffOptions = DEFAULT_OPTIONS,
    losses: Losses | None = None,
) -> Iterator[tuple[Source, Lookup | None]]:
    """The changes from ``lower`` to ``upper``, and the lookup of hard links' targets; valid until the block ends.

    ``options.owners``: KEEP takes the ids on disk, IGNORE makes all of them 0, RECORD reads recorded ones. None is KEEP
    for root and RECORD for other users. ``losses`` collects what no layer can hold, such as sockets.
    """
    how = kinds.SourceOptions(
        None if lower is None else Path(lower),
        options.parents,
        _DIRECTORY_OWNERS[options.owners],
        options.exact,
        options.system,
        losses,
    )
    with kinds.source(options.kind, Path(upper), how) as (changes, lookup):
        if options.owners is Owners.IGNORE:
            yield map(_with_root_owner, changes), None
        else:
            yield changes, lookup


def _with_root_owner(change: Change) -> Change:
    if not isinstance(change, Put) or change.entry.posix is None:
        return change
    return Put(replace(change.entry, posix=replace(change.entry.posix, uid=0, gid=0)), change.content)


# Listing changes -----------------------------------------------------------------------------------------------------


_LISTED: Final = Compare(directory_times=False)
"""A change in a directory also changes its time, and is listed itself."""


class Difference(Struct, frozen=True):
    """One difference between two directories."""

    sign: Literal["A", "M", "D"]
    """Added, modified, deleted."""
    path: LayerPath
    old: Entry | None
    new: Entry | None
    """None if the file was deleted."""
    link: LayerPath | None = None
    """The target of a hard link."""
    opaque: bool = False
    """The content of the directory was deleted, the directory itself was not."""


def list_changes(
    lower: str | os.PathLike[str] | None,
    upper: str | os.PathLike[str],
    *,
    kind: str = "directory",
    parents: Sequence[Path] = (),
    exact: bool = False,
) -> Iterator[Difference]:
    """List the differences from ``lower`` to ``upper``, in the order of a walk.

    ``exact`` also lists directories that differ in their time alone, and compares the content of all files, not only of
    those whose times are equal and have no fraction of a second. A deleted directory is listed without its content.
    Raises what `diff` raises.
    """
    options = DiffOptions(kind=kind, parents=parents)
    if kind == "cim":
        from lamella.operations.windows.cim import cim_trees

        with (
            open_changes(lower, upper, options) as (changes, _),
            cim_trees(Path(upper), None if lower is None else Path(lower)) as (above, parent),
        ):
            yield from _differences(changes, parent, above)
        return
    if kind != "directory":
        with open_changes(lower, upper, options) as (changes, _):
            yield from _differences(changes, None, None)
        return
    with ExitStack() as stack:
        below = None if lower is None else stack.enter_context(DirectoryTree(lower))
        tree = stack.enter_context(DirectoryTree(upper))
        compare = EVERYTHING if exact else _LISTED
        yield from _differences(changes_between(below, tree, exact=exact, compare=compare, parents=False), below, tree)


def _differences(changes: Source, lower: Tree | None, upper: Tree | None) -> Iterator[Difference]:
    def lookup(path: LayerPath) -> Entry | None:
        return None if lower is None else lower.lookup(path)

    for change in changes:
        match change:
            case Put(entry, _):
                old = lookup(entry.path)
                yield Difference("M" if old is not None else "A", entry.path, old, entry)
            case Link(path, target):
                old = lookup(path)
                new = upper.lookup(path) if upper is not None else None
                yield Difference("M" if old is not None else "A", path, old, new, link=target)
            case Whiteout(path):
                yield Difference("D", path, lookup(path), None)
            case Opaque(path):
                yield Difference("D", path, None, None, opaque=True)
            case Stream():
                pass  # part of the file before it
