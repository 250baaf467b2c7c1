# SPDX-License-Identifier: Apache-2.0
"""``lamella apply``, ``diff`` and ``dump``: layers and directories."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lamella.cli.choices import compression_options, kind_option
from lamella.cli.console import Console, human_size
from lamella.cli.documents import applied_document, losses_document, print_blob
from lamella.cli.options import (
    PATH,
    check_name_rules,
    collect,
    dirty_option,
    name_rules_option,
    platform_option,
    policy_options,
    read_owner_option,
    recipe_option,
    sparse_option,
    strict_option,
    subsecond_option,
)
from lamella.cli.verb import ImageVerb, Verb

if TYPE_CHECKING:
    from lamella.digests import Digest
    from lamella.operations.layers.apply import ApplyOptions
    from lamella.operations.layers.diff import Difference, DiffOptions

# apply ----------------------------------------------------------------------------------------------------------------


def _parse_digest(context: click.Context, option: click.Parameter, value: str | None) -> Digest | None:  # noqa: ARG001
    from lamella.digests import parse_digest

    return None if value is None else parse_digest(value)


@click.command("apply", cls=Verb, example="lamella apply layer.tar.gz ./rootfs")
@click.argument("blob", metavar="BLOB")
@click.argument("directory", metavar="DIR", type=PATH)
@collect(
    "options",
    "operations.layers.apply:ApplyOptions",
    kind_option(lambda row: row.sink, "--as", default="directory", about="What DIR is."),
    click.option(
        "--parent",
        "parents",
        multiple=True,
        metavar="DIR",
        type=PATH,
        help="A layer below, of the same kind, nearest first; may be repeated.",
    ),
    policy_options,
    name_rules_option,
    dirty_option,
)
@click.option("--expect", "diff_id", metavar="DIFF_ID", callback=_parse_digest, help="The expected digest of the tar.")
@click.option("--digest", metavar="DIGEST", callback=_parse_digest, help="The expected digest of BLOB.")
@strict_option
@click.pass_obj
def apply(
    console: Console,
    blob: str,
    directory: Path,
    options: ApplyOptions,
    diff_id: Digest | None,
    digest: Digest | None,
    strict: bool,
) -> None:
    """Apply a layer blob to a directory.

    BLOB is a tar, plain or compressed; - is standard input. DIR is created if missing. Files written before a failure
    stay in DIR; the folder of a Windows layer appears when it is complete.
    """
    from lamella.layers.kinds import LAYER_KINDS
    from lamella.operations.layers.apply import apply_blob, apply_reading, start_blob_reader

    row = LAYER_KINDS[options.kind]
    if options.parents and not row.has_parents:
        raise click.UsageError(f"--parent is for separate layers; {row.summary} holds the layers below too")
    check_name_rules(options.rules, options.kind)
    if options.policy is not None and not row.chooses_owners:
        raise click.UsageError(f"--owner and --devices are for directories; {row.summary} keeps those of the layer")
    job = console.job(strict=strict)
    with ExitStack() as stack:
        worker = None
        if row.windows and row.other_process and blob != "-":
            # First, since showing progress may start a thread.
            worker = stack.enter_context(
                start_blob_reader(Path(blob), digest=digest, diff_id=diff_id, rules=options.rules)
            )
        stack.enter_context(job.step("apply", None if blob == "-" else _size(blob)))
        if worker is not None:
            applied = apply_reading(worker.next_layer(job), directory, options, job)
        else:
            source = console.binary_input() if blob == "-" else Path(blob)
            applied = apply_blob(source, directory, options, digest=digest, diff_id=diff_id, job=job)
    console.losses(job.losses)
    if console.json:
        console.document({**applied_document(applied), **losses_document(job.losses)})
        return
    print_blob(console, applied.facts, applied.entries)


def _size(blob: str) -> int | None:
    try:
        return Path(blob).stat().st_size
    except OSError:
        return None


# diff -----------------------------------------------------------------------------------------------------------------


_KINDS: Final = {"symlink": "link", "character": "device", "block": "device", "directory": "dir"}


@click.command("diff", cls=Verb, example="lamella diff -o layer.tar.gz ./before ./after")
@click.argument("places", metavar="[LOWER] UPPER", nargs=-1, type=PATH)
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
        type=PATH,
        help="A parent of a Windows layer; repeat it, nearest first. Windows needs them to export the layer.",
    ),
    compression_options,
    click.option(
        "--exact", is_flag=True, help="Compare the content of all files, and list directories with other times."
    ),
    subsecond_option,
    sparse_option,
    read_owner_option,
    recipe_option,
    name_rules_option,
)
@strict_option
@click.pass_obj
def diff(console: Console, places: tuple[Path, ...], output: str | None, options: DiffOptions, strict: bool) -> None:
    """List or write what changed between two directories.

    Without -o, each change is a line: A for added, M for modified, D for deleted, then kind, size and path. With -o,
    the changes are written as a layer, which appears when it is complete. Without LOWER, all of UPPER is new, unless
    UPPER itself records changes, as the upper directory of an overlay does; see --as.

    Files differ by kind, mode, owner, size, time and extended attributes. If all of these are equal, content is
    compared too, but only if the time has no fraction of a second; with --exact, always.
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
        _list_changes(console, lower, upper, options)
        return
    if output == "-" and console.json:
        raise click.UsageError("--json and -o - both write to standard output")
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


def _list_changes(console: Console, lower: Path | None, upper: Path, options: DiffOptions) -> None:
    from lamella.operations.layers.diff import list_changes

    found = list_changes(lower, upper, kind=options.kind, parents=options.parents, exact=options.exact)
    if console.json:
        console.document([_difference_document(one) for one in found])
        return
    for one in found:
        console.line(_difference_line(one))


def _difference_line(one: Difference) -> str:
    entry = one.new or one.old
    kind = "" if entry is None else _KINDS.get(entry.kind.value, entry.kind.value)
    name = f"/{one.path}"
    if one.link is not None:
        name += f" => /{one.link}"
    elif one.new is not None and one.new.target:
        name += f" -> {one.new.target}"
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


def _difference_document(one: Difference) -> dict[str, Any]:
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


# dump -----------------------------------------------------------------------------------------------------------------


@click.command("dump", cls=ImageVerb, example="lamella dump layer.tar.gz")
@click.argument("place", metavar="BLOB|DIR|IMAGE")
@kind_option(lambda row: row.source and not row.is_file, "--as", default="directory", about="What DIR is.")
@click.option("--inline", type=click.IntRange(min=0), default=0, metavar="N", help="Show content of up to N bytes.")
@click.option("--holes", is_flag=True, help="Show where files have holes instead of reading them as zeros.")
@platform_option
@click.pass_obj
def dump(console: Console, place: str, kind: str, inline: int, holes: bool, platform: str | None) -> None:
    """Print a layer or a directory as canonical text.

    One line for each change, in visible ASCII: kind, mode, owner, time, path, and the size and SHA-256 of the content.
    Two trees are equal where their dumps are. A blob's changes come in the order of its tar, - is standard input; a
    directory's, and those of an image's merged view, in the order of the names.
    """
    from lamella.operations.layers.dump import dump_lines

    lines = dump_lines(
        console.binary_input() if place == "-" else place,
        kind=kind,
        inline=inline,
        holes=holes,
        platform=platform,
    )
    if console.json:
        console.document({"changes": list(lines)})
        return
    for line in lines:
        console.line(line)
