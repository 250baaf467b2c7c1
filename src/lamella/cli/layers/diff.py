# SPDX-License-Identifier: Apache-2.0
"""``lamella diff``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lamella.cli.choices import compression_options, kind_option
from lamella.cli.console import Console, human_size
from lamella.cli.options import (
    check_name_rules,
    collect,
    name_rules_option,
    read_owner_option,
    recipe_option,
    strict_option,
    subsecond_option,
)
from lamella.cli.verb import Verb

if TYPE_CHECKING:
    from lamella.operations.layers.diff import Difference, DiffOptions

_KINDS: Final = {"symlink": "link", "character": "device", "block": "device", "directory": "dir"}


@click.command("diff", cls=Verb)
@click.argument("places", metavar="[LOWER] UPPER", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="BLOB", help="Write a layer blob; - is standard output.")
@collect(
    "options",
    "operations.layers.diff:DiffOptions",
    kind_option(lambda row: row.source, "--as", default="directory", about="What UPPER is; DIR/NAME.cim implies cim."),
    click.option(
        "--parent",
        "parents",
        metavar="PLACE",
        multiple=True,
        type=click.Path(path_type=Path),
        help="A layer below a Windows layer, nearest first; Windows exports it against them.",
    ),
    compression_options,
    click.option("--exact", is_flag=True, help="Compare the content of all files, and list the times of directories."),
    subsecond_option,
    read_owner_option,
    recipe_option,
    name_rules_option,
)
@strict_option
@click.pass_obj
def command(console: Console, places: tuple[Path, ...], output: str | None, options: DiffOptions, strict: bool) -> None:
    """List or write what changed between two directories.

    Without -o, each change is a line: A for added, M for modified, D for deleted, then kind, size and path. With -o,
    the changes are written as a layer, which appears when it is complete. Without LOWER, all of UPPER is new, unless
    UPPER is a place that records changes; see --as.

    Files differ by kind, mode, owner, size, time and extended attributes. Content is compared if times leave it open,
    because they have no fraction of a second; with --exact it always is.
    """
    from msgspec.structs import replace

    from lamella.layers.kinds import LAYER_KINDS

    if not 1 <= len(places) <= 2:
        raise click.UsageError("give one directory, or two, the lower one first")
    if options.kind in ("directory", "cim"):
        from lamella.layers.kinds import cim_place

        images = [cim_place(place) for place in places]
        if any(images):
            if not all(images):
                raise click.UsageError("compare a composite image with one of its parents, not with another place")
            options = replace(options, kind="cim")
            places = tuple(image for image in images if image is not None)
    for place in places:
        _refuse_image(place)
    lower, upper = places if len(places) == 2 else (None, places[0])
    row = LAYER_KINDS[options.kind]
    if lower is not None and row.changes_only:
        raise click.UsageError(f"{row.summary} holds the changes of one layer; give it without LOWER")
    if options.parents and not row.reads_parents:
        raise click.UsageError(f"--parent is not for {row.summary}")
    check_name_rules(options.rules, options.kind)
    if options.recipe is not None and output in (None, "-"):
        raise click.UsageError("--recipe needs a blob with a name; give one with -o")
    if output is None:
        _list(console, lower, upper, options)
        return
    if output == "-" and console.json:
        raise click.UsageError("--json and -o - both want standard output")
    from lamella.cli.documents import print_written
    from lamella.operations.layers.diff import diff

    written = diff(
        lower, upper, console.blob_output() if output == "-" else output, options, job=console.job(strict=strict)
    )
    print_written(console, written, output)


def _refuse_image(place: Path) -> None:
    if ":" not in str(place) or place.exists():
        return
    from lamella.operations.trees.open import names_a_tree

    if names_a_tree(str(place)):
        raise click.UsageError(f"'{place}' is not a directory; 'lamella compare' takes images and other places")


def _list(console: Console, lower: Path | None, upper: Path, options: DiffOptions) -> None:
    from lamella.operations.layers.diff import list_changes

    found = list_changes(lower, upper, kind=options.kind, parents=options.parents, exact=options.exact)
    if console.json:
        console.document([_document(one) for one in found])
        return
    for one in found:
        console.line(_line(one, console))


def _line(one: Difference, console: Console) -> str:
    entry = one.new or one.old
    kind = "" if entry is None else _KINDS.get(entry.kind.value, entry.kind.value)
    name = console.name(f"/{one.path}")
    if one.link is not None:
        name += f" => {console.name(f'/{one.link}')}"
    elif one.new is not None and one.new.target:
        name += f" -> {console.name(one.new.target)}"
    elif one.opaque:
        name += "/*"
    line = f"{one.sign}  {kind:<6}  {_sizes(one):>20}  {name}"
    what = _describe_change(one)
    return f"{line}  ({what})" if what else line


def _sizes(one: Difference) -> str:
    sizes = [human_size(entry.size) for entry in (one.old, one.new) if entry is not None and entry.kind.value == "file"]
    if len(sizes) == 2 and sizes[0] == sizes[1]:
        del sizes[0]
    return " → ".join(sizes)


def _describe_change(one: Difference) -> str:
    """How a modified file differs."""
    old, new = one.old, one.new
    if old is None or new is None:
        return ""
    if old.kind is not new.kind:
        return f"was a {old.kind.phrase}"
    found = ["target"] if old.target != new.target else []
    if old.posix is not None and new.posix is not None:
        before, now = old.posix, new.posix
        if before.mode != now.mode:
            found.append(f"mode {before.mode:04o} → {now.mode:04o}")
        if (before.uid, before.gid) != (now.uid, now.gid):
            found.append(f"owner {before.uid}:{before.gid} → {now.uid}:{now.gid}")
        if before.device != now.device:
            found.append("device numbers")
        if before.xattrs != now.xattrs:
            found.append("extended attributes")
        if before.mtime != now.mtime:
            found.append("time")
    return ", ".join(found) or ("" if old.size != new.size or one.link is not None else "content")


def _document(one: Difference) -> dict[str, Any]:
    from lamella.cli.files import entry_document

    document: dict[str, Any] = {"change": one.sign, "path": f"/{one.path}"}
    if one.opaque:
        document["opaque"] = True
    if one.link is not None:
        document["link"] = f"/{one.link}"
    for name, entry in (("old", one.old), ("new", one.new)):
        if entry is not None:
            document[name] = entry_document(entry)
    return document
