# SPDX-License-Identifier: Apache-2.0
"""``lamella cim``: verbs for composite images of Windows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lamella.cli.choices import compression_options
from lamella.cli.console import Console, counted, human_size
from lamella.cli.documents import losses_document
from lamella.cli.options import PATH, collect, strict_option
from lamella.cli.verb import Verb, VerbGroup

if TYPE_CHECKING:
    from lamella.operations.layers.diff import DiffOptions

_IMAGE: Final = click.argument("image", metavar="DIR/NAME.cim", type=PATH)


@click.group("cim", cls=VerbGroup)
def command() -> None:
    """List, verify and extract composite images.

    A composite image of Windows (CIM) is the file NAME.cim, with the files of its regions and of its parents beside
    it. Other verbs take it as cim:DIR/NAME.cim, as in 'lamella find cim:layers/base.cim'.
    """


@command.command("info", cls=Verb, example="lamella cim info layers/0.cim")
@_IMAGE
@click.pass_obj
def info(console: Console, image: Path) -> None:
    """Show version, regions, parents and file tables of an image."""
    from lamella.operations.windows.cim import describe

    document = describe(image)
    if console.json:
        console.document(document)
        return
    console.line(f"version      {document['version']}")
    console.line(f"regions      {document['regions']} of {document['guid']}")
    for parent in document["parents"]:
        console.line(f"parent       {parent['regions']} of {parent['guid']}")
    ids = f"{document['file_ids']} file ids, the root is {document['root']}"
    console.line(f"file tables  {document['file_tables']} with {ids}")


@command.command("ls", cls=Verb, example="lamella cim ls -l layers/0.cim Windows")
@_IMAGE
@click.argument("path", metavar="[PATH]", default="")
@click.option("-l", "long", is_flag=True, help="Show attributes, size and time.")
@click.option("-R", "--recursive", is_flag=True, help="Also list the content of directories, with whole paths.")
@click.pass_context
def ls(context: click.Context, image: Path, path: str, long: bool, recursive: bool) -> None:
    """List files; case does not matter in PATH."""
    from lamella.cli.files import ls as verb

    place = _place(image, path)
    _run(context, verb, place=place, long=long, recursive=recursive, directory=False, platform=None)


@command.command("tree", cls=Verb, example="lamella cim tree layers/0.cim Users")
@_IMAGE
@click.argument("path", metavar="[PATH]", default="")
@click.option("-L", "--depth", type=click.IntRange(1), metavar="N", help="Draw at most N levels.")
@click.pass_context
def tree(context: click.Context, image: Path, path: str, depth: int | None) -> None:
    """Draw a directory and its content."""
    from lamella.cli.files import tree as verb

    _run(context, verb, place=_place(image, path), depth=depth, directories=False, platform=None)


@command.command("cat", cls=Verb, example="lamella cim cat layers/0.cim License.txt")
@_IMAGE
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.pass_context
def cat(context: click.Context, image: Path, paths: tuple[str, ...]) -> None:
    """Print the content of files."""
    from lamella.cli.files import cat as verb

    first, *more = paths
    _run(context, verb, place=_place(image, first), more=tuple(more), platform=None)


@command.command("extract", cls=Verb, example="lamella cim extract layers/0.cim ./files")
@_IMAGE
@click.argument("directory", metavar="TARGET", type=PATH)
@click.option(
    "--only", default="", metavar="PATH", help="Take only the content of PATH; Files is a container's drive C."
)
@strict_option
@click.pass_obj
def extract(console: Console, image: Path, directory: Path, only: str, strict: bool) -> None:
    """Extract all files into the new directory TARGET.

    Whatever its file system cannot hold is reported as a loss.
    """
    from lamella.operations.windows.cim import extract_cim

    job = console.job(strict=strict)
    below = only.replace("\\", "/").strip("/")
    entries = extract_cim(image, directory, below=below, job=job)
    console.losses(job.losses)
    if console.json:
        console.document({"entries": entries, **losses_document(job.losses)})
        return
    console.summary(counted(entries, "entry", "entries"))


@command.command("verify", cls=Verb, example="lamella cim verify layers/0.cim")
@_IMAGE
@click.option(
    "--list",
    "listing",
    type=PATH,
    metavar="FILE",
    help="Write the metadata of each file as a line of JSON, for tools/mount-cim.ps1 to compare on Windows.",
)
@click.pass_obj
def verify(console: Console, image: Path, listing: Path | None) -> None:
    """Check every structure and file of an image.

    An error names the structure and its offset.
    """
    from lamella.operations.windows.cim import verify_cim

    job = console.job()
    found = verify_cim(image, job)
    if listing is not None:
        import json

        from lamella.operations.atomic_file import replacing
        from lamella.operations.windows.cim import cim_listing

        with replacing(listing) as file:
            for document in cim_listing(image, job):
                file.write(json.dumps(document).encode() + b"\n")
    if console.json:
        console.document(
            {"files": found.files, "directories": found.directories, "streams": found.streams, "size": found.size}
        )
        return
    console.summary(f"{found.files} files and {found.directories} directories, {human_size(found.size)}: all readable")


@command.command("diff", cls=Verb, example="lamella cim diff layers/1.cim -o layer.tar")
@_IMAGE
@click.option(
    "--parent",
    type=PATH,
    metavar="CIM",
    help="The image that it was forked from, if it is elsewhere.",
)
@click.option("-o", "--output", metavar="BLOB", help="Write a layer blob; - is standard output.")
@collect("options", "operations.layers.diff:DiffOptions", compression_options)
@strict_option
@click.pass_obj
def diff(
    console: Console, image: Path, parent: Path | None, output: str | None, options: DiffOptions, strict: bool
) -> None:
    """List or write the changes of an image's layer.

    The changes are the differences from the image that it was forked from, or all files without one. With -o they are
    written as a blob in the tar dialect of Windows. Files that an import derives, such as cumulative registry hives,
    are left out.
    """
    from msgspec.structs import replace

    from lamella.cli.documents import print_written
    from lamella.operations.layers.diff import diff as write_changes
    from lamella.operations.windows.cim import list_cim_changes

    if output is None:
        found = list_cim_changes(image, parent)
        if console.json:
            console.document([{"change": sign, "path": f"/{path}"} for sign, path in found])
            return
        for sign, path in found:
            console.line(f"{sign}  /{path}")
        return
    if output == "-" and console.json:
        raise click.UsageError("--json and -o - both write to standard output")
    written = write_changes(
        parent,
        image,
        console.blob_output() if output == "-" else output,
        replace(options, kind="cim"),
        job=console.job(strict=strict),
    )
    print_written(console, written, output)


def _place(image: Path, path: str) -> str:
    path = path.replace("\\", "/").strip("/")
    return f"cim:{image}" + (f"::{path}" if path else "")


def _run(context: click.Context, verb: click.Command, **values: Any) -> None:
    """Run another verb, without its options for registries."""
    assert verb.callback is not None  # noqa: S101  # every verb has one
    context.invoke(verb.callback, **values)
