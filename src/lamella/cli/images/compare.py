# SPDX-License-Identifier: Apache-2.0
"""``lamella compare``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console, columns, human_size, printable
from lamella.cli.options import platform_option
from lamella.cli.verb import ImageVerb

if TYPE_CHECKING:
    from lamella.images.resolve import ImageLayer
    from lamella.operations.trees.compare import Compared, FileDifference

DIFFERENT = 1
"""The exit code if the places differ."""


@click.command("compare", cls=ImageVerb, example="lamella compare --ignore created,mtime oci:app:1.0 oci:app:1.1")
@click.argument("old", metavar="IMAGE|PLACE")
@click.argument("new", metavar="IMAGE|PLACE")
@click.option(
    "--ignore",
    metavar="WHAT,...",
    multiple=True,
    help="Of files: content, mode, owner, mtime, xattrs, target, device, links, windows.  "
    "Of images: created, history, annotations, config.",
)
@click.option(
    "--exclude", metavar="PATTERN", multiple=True, help="Leave out matching paths and everything beneath them."
)
@click.option("--depth", type=click.IntRange(min=0), default=1, show_default=True, help="Levels of the table of sizes.")
@platform_option
@click.pass_obj
def command(
    console: Console,
    old: str,
    new: str,
    ignore: tuple[str, ...],
    exclude: tuple[str, ...],
    depth: int,
    platform: str | None,
) -> None:
    """Show how two images differ.

    Config and annotations are compared field by field, files in the merged views of all layers. The exit code is 0 if
    nothing differs, else 1. Layers are listed too, but neither a different division into layers nor their compression
    counts as a difference.

    A PLACE is dir:PATH for a directory on disk, blob:FILE for a single layer, windows:PLACE for the folder or blob of
    a Windows layer, erofs:FILE for an EROFS image, or cim:DIR/NAME.cim for a composite image. With a PLACE, only files
    are compared; in a composite image, files that an import derives are left out.
    """
    from lamella.operations.trees.compare import compare

    found = compare(
        old,
        new,
        ignore=[name for given in ignore for name in given.split(",") if name],
        exclude=exclude,
        depth=depth,
        platform=platform,
        job=console.job(),
    )
    if console.json:
        console.document(_document(found))
    else:
        for line in _lines(found):
            console.line(line)
        if found.equal:
            console.summary("the images are equal" if found.old is not None else "the files are equal")
    if not found.equal:
        raise click.exceptions.Exit(DIFFERENT)


def _lines(found: Compared) -> Iterator[str]:
    parts = [_config(found), _layers(found), map(_file, found.files), _sizes(found)]
    titles = ["config", "layers", "files", "sizes"]
    first = True
    for title, part in zip(titles, parts, strict=True):
        lines = list(part)
        if lines:
            if not first:
                yield ""
            yield title
            yield from (f"  {line}" for line in lines)
            first = False


def _config(found: Compared) -> Iterator[str]:
    for one in found.config:
        yield f"{printable(one.name)}: {_value(one.old)} → {_value(one.new)}"


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return f"{len(value)} {'step' if len(value) == 1 else 'steps'}"
    import json

    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    text = printable(text)
    return text if len(text) <= 200 else text[:199] + "…"


def _layers(found: Compared) -> Iterator[str]:
    if not (found.only_old or found.only_new):
        return
    rows = [["=", human_size(layer.descriptor.size), layer.diff_id] for layer in found.shared]
    rows += [["-", human_size(layer.descriptor.size), layer.diff_id] for layer in found.only_old]
    rows += [["+", human_size(layer.descriptor.size), layer.diff_id] for layer in found.only_new]
    yield from columns(rows, {1})


def _file(one: FileDifference) -> str:
    kinds = [entry.kind.value for entry in (one.old, one.new) if entry is not None]
    sizes = [human_size(entry.size) for entry in (one.old, one.new) if entry is not None and entry.kind.value == "file"]
    kind, size = " → ".join(dict.fromkeys(kinds)), " → ".join(dict.fromkeys(sizes))
    what = f"  ({', '.join(one.what)})" if one.what else ""
    return f"{one.sign}  {kind:<9}  {size:>20}  /{one.path}{what}"


def _sizes(found: Compared) -> Iterator[str]:
    rows = []
    for one in found.sizes:
        change = one.new - one.old
        sign = "+" if change > 0 else "-"
        sizes = f"{human_size(one.old)} → {human_size(one.new)}"
        rows.append([sizes, f"{sign}{human_size(abs(change))}", f"/{one.path}"])
    if rows:
        yield from columns(rows, {0, 1})


def _document(found: Compared) -> dict[str, Any]:
    from lamella.cli.files import entry_document
    from lamella.operations.inspect import describe_descriptor, describe_layer

    def layers(some: tuple[ImageLayer, ...]) -> list[dict[str, Any]]:
        return [describe_layer(layer) for layer in some]

    files: list[dict[str, Any]] = []
    for one in found.files:
        document: dict[str, Any] = {"change": one.sign, "path": f"/{one.path}"}
        if one.what:
            document["what"] = list(one.what)
        for name, entry in (("old", one.old), ("new", one.new)):
            if entry is not None:
                document[name] = entry_document(entry)
        files.append(document)
    return {
        "equal": found.equal,
        "old": None if found.old is None else describe_descriptor(found.old),
        "new": None if found.new is None else describe_descriptor(found.new),
        "config": [{"field": one.name, "old": one.old, "new": one.new} for one in found.config],
        "layers": {
            "shared": layers(found.shared),
            "only_old": layers(found.only_old),
            "only_new": layers(found.only_new),
        },
        "files": files,
        "sizes": [{"path": f"/{one.path}", "old": one.old, "new": one.new} for one in found.sizes],
    }
