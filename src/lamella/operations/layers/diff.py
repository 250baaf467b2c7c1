# SPDX-License-Identifier: Apache-2.0
"""What changed between two directories: as a list, or as a layer blob."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from lamella.changes.contracts import Source, Tree
from lamella.changes.diff import EVERYTHING, Compare
from lamella.changes.diff import diff as changes_between
from lamella.changes.losses import Losses
from lamella.changes.model import Change, Entry, Link, Opaque, Put, Stream, Whiteout
from lamella.errors import InvalidInput
from lamella.layers import kinds
from lamella.layers.directory.tree import DirectoryTree
from lamella.layers.policy import Owners
from lamella.operations.layers.write import LayerOptions, Written, write_layer, write_tar
from lamella.paths import LayerPath

if TYPE_CHECKING:
    from lamella.host.windows.system import WindowsSystem
    from lamella.layers.windows.names import NameRules
    from lamella.progress import Cancellation, Progress

_FOR_PEOPLE: Final = Compare(directory_times=False)
"""A directory's time changes with whatever is in it, which is listed anyway."""


def diff(
    lower: str | os.PathLike[str] | None,
    upper: str | os.PathLike[str],
    output: str | os.PathLike[str] | BinaryIO,
    *,
    kind: str = "directory",
    parents: Sequence[Path] = (),
    compression: str = "gzip",
    level: int | None = None,
    threads: int | None = None,
    exact: bool = False,
    subsecond: bool = False,
    owners: Owners | None = None,
    recipe: str | os.PathLike[str] | None = None,
    losses: Losses | None = None,
    rules: NameRules | None = None,
    system: WindowsSystem | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Written:
    """Write the layer that makes the directory ``lower`` into ``upper``; without a lower one, all of the upper one.

    A path ``output`` gets its name when the blob is complete; an open file is written from where it stands. With the
    ``kind`` ``"overlay"``, ``upper`` is the upper directory of an overlay, which says itself what changed. So does the
    folder of a Windows layer, of the kind ``"windows"``; one that was made of a tar gives that tar to the byte. Of the
    kind ``"cim"`` both are composite images; without ``lower``, it is the one that ``upper`` was forked from.
    ``parents``, the nearest first, are those of a Windows layer: on Windows (``system``, which is this host unless
    given) it is exported against them. ``rules`` are for its names; a file whose name they refuse is lost.

    The same trees always give the same bytes: times are cut to seconds unless ``subsecond`` is set, and none is later
    than SOURCE_DATE_EPOCH. ``exact`` compares the content of all files, not only where times leave it open. See
    `sourced` for ``owners``. ``recipe`` is a file that gets what it takes to make the blob again, once it has its name;
    see `lamella.operations.layers.recipes`.

    Raises NotFound, InvalidInput (``output`` would lie in ``upper``), Conflict (something changed meanwhile), Denied,
    Exhausted, Cancelled and the like.
    """
    if recipe is not None:
        if not isinstance(output, (str, os.PathLike)):
            raise InvalidInput("a recipe is made of a blob with a name, not of one in an open file")
        from lamella.operations.atomic_file import refuse_within

        refuse_within(upper, recipe, "the recipe")
    if isinstance(output, (str, os.PathLike)):
        from lamella.operations.atomic_file import refuse_within, replacing

        refuse_within(upper, output, "the blob")
        opened: Any = replacing(Path(output))
    else:
        opened = nullcontext(output)
    windows = kinds.LAYER_KINDS[kind].windows
    losses = Losses() if losses is None else losses
    options = LayerOptions(compression, level, threads, subsecond, owners, losses, windows, rules=rules)
    with (
        sourced(
            lower, upper, kind=kind, parents=parents, exact=exact, owners=owners, system=system, losses=losses
        ) as found,
        opened as file,
    ):
        changes, lookup = found
        tar = kinds.recorded_tar(kind, changes)
        if tar is not None:
            written = write_tar(tar, file, options, progress=progress, cancel=cancel)
        else:
            written = write_layer(changes, file, options, lookup=lookup, progress=progress, cancel=cancel)
    if recipe is not None:
        from lamella.operations.layers.recipes import make_recipe

        make_recipe(output, recipe, compression=compression, progress=progress, cancel=cancel)
    return written


@contextmanager
def sourced(
    lower: str | os.PathLike[str] | None,
    upper: str | os.PathLike[str],
    *,
    kind: str = "directory",
    parents: Sequence[Path] = (),
    exact: bool = False,
    owners: Owners | None = None,
    system: WindowsSystem | None = None,
    losses: Losses | None = None,
) -> Iterator[tuple[Source, Callable[[LayerPath], Entry | None] | None]]:
    """The changes, and what tells of the targets of their hard links; both are good until the block ends.

    ``owners``: KEEP takes the ids on disk, IGNORE makes them all 0, RECORD honours recorded ones. The default is KEEP
    for root and RECORD for everybody else. ``system`` is as for `diff`. ``losses`` are told of what no layer can hold.
    """
    how: dict[Owners | None, Literal["actual", "recorded"] | None]
    how = {None: None, Owners.KEEP: "actual", Owners.IGNORE: "actual", Owners.RECORD: "recorded"}
    below = None if lower is None else Path(lower)
    with kinds.source(
        kind, Path(upper), below, parents=parents, owners=how[owners], exact=exact, system=system, losses=losses
    ) as (changes, lookup):
        if owners is Owners.IGNORE:
            yield map(_of_root, changes), None
        else:
            yield changes, lookup


def _of_root(change: Change) -> Change:
    if not isinstance(change, Put) or change.entry.posix is None:
        return change
    return Put(replace(change.entry, posix=replace(change.entry.posix, uid=0, gid=0)), change.content)


# For people ------------------------------------------------------------------------------------------------------


class Difference(Struct, frozen=True):
    """One line of a list of changes."""

    sign: Literal["A", "M", "D"]
    """Added, modified, deleted."""
    path: LayerPath
    old: Entry | None
    new: Entry | None
    """None for what is gone."""
    link: LayerPath | None = None
    """The file that this is a further name of."""
    opaque: bool = False
    """All that was in the directory is gone, and not the directory."""


def list_changes(
    lower: str | os.PathLike[str] | None,
    upper: str | os.PathLike[str],
    *,
    kind: str = "directory",
    parents: Sequence[Path] = (),
    exact: bool = False,
) -> Iterator[Difference]:
    """What changed, in the order of a walk.

    Directories of which the time alone changed are left out, unless ``exact`` is set; it also compares the content of
    all files, and not only where times leave it open. Of what is gone with its directory, only that is listed. Raises
    as `diff`.
    """
    if kind == "cim":
        from lamella.operations.windows.cim import cim_trees

        with (
            sourced(lower, upper, kind=kind) as (changes, _),
            cim_trees(Path(upper), None if lower is None else Path(lower)) as (above, parent),
        ):
            yield from _differences(changes, parent, above)
        return
    if kind != "directory":
        with sourced(lower, upper, kind=kind, parents=parents) as (changes, _):
            yield from _differences(changes, None, None)
        return
    with ExitStack() as stack:
        below = None if lower is None else stack.enter_context(DirectoryTree(lower))
        tree = stack.enter_context(DirectoryTree(upper))
        compare = EVERYTHING if exact else _FOR_PEOPLE
        yield from _differences(changes_between(below, tree, exact=exact, compare=compare, parents=False), below, tree)


def _differences(changes: Source, lower: Tree | None, upper: Tree | None) -> Iterator[Difference]:
    def before(path: LayerPath) -> Entry | None:
        return None if lower is None else lower.lookup(path)

    for change in changes:
        match change:
            case Put(entry, _):
                old = before(entry.path)
                yield Difference("M" if old is not None else "A", entry.path, old, entry)
            case Link(path, target):
                old = before(path)
                new = upper.lookup(path) if upper is not None else None
                yield Difference("M" if old is not None else "A", path, old, new, link=target)
            case Whiteout(path):
                yield Difference("D", path, before(path), None)
            case Opaque(path):
                yield Difference("D", path, None, None, opaque=True)
            case Stream():
                pass  # a part of the file that was named right before
