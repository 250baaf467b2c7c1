# SPDX-License-Identifier: Apache-2.0
"""``lamella append``, ``mutate``, ``flatten``, ``rebase``, ``subset`` and ``index``: new images made from others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.choices import compression_options
from lamella.cli.console import Console
from lamella.cli.documents import (
    copied_summary,
    finished_document,
    losses_document,
    packed_document,
    print_finished,
    print_packed,
)
from lamella.cli.options import (
    PATH,
    Decorator,
    collect,
    dirty_option,
    name_rules_option,
    parse_pairs,
    platform_option,
    process_options,
    read_owner_option,
    replace_option,
    sparse_option,
    split_place,
    strict_option,
    subsecond_option,
    template_options,
)
from lamella.cli.verb import ImageVerb

if TYPE_CHECKING:
    from lamella.operations.surgery.append import AppendOptions
    from lamella.operations.surgery.flatten import FlattenOptions
    from lamella.operations.surgery.mutate import Settings

# append ---------------------------------------------------------------------------------------------------------------


@click.command("append", cls=ImageVerb, example="lamella append oci:app:1.0 ./config-files oci:app:1.0-configured")
@click.argument("source", metavar="IMAGE")
@click.argument("layers", metavar="LAYER...", nargs=-1, required=True, type=PATH)
@click.argument("target", metavar="TARGET")
@collect(
    "options",
    "operations.surgery.append:AppendOptions",
    click.option("--created-by", metavar="TEXT", help="The text of the new steps in the history."),
    platform_option,
    compression_options,
    subsecond_option,
    sparse_option,
    read_owner_option,
    click.option("--windows", is_flag=True, default=None, help="Fail unless the image is for Windows."),
    template_options,
    name_rules_option,
    replace_option,
)
@strict_option
@click.pass_obj
def append(
    console: Console, source: str, layers: tuple[Path, ...], target: str, options: AppendOptions, strict: bool
) -> None:
    """Copy an image with further layers on top.

    LAYER is a layer blob, as 'lamella diff -o' writes it, which is stored unchanged; a composite image,
    cim:DIR/NAME.cim, whose changes become a layer; or a directory, whose files become one. Directories in it get their
    metadata there, the root of the image keeps its own. TARGET may be IMAGE, whose tag then names the new image. The
    image is dated by SOURCE_DATE_EPOCH, or 1970 without it.

    On a Windows image, a directory becomes a Windows layer with its files on drive C: links get backslashes, and
    everyone may read and execute the files unless --file-security is given.
    """
    from lamella.operations.surgery.append import append

    job = console.job(strict=strict)
    finished = append(source, layers, target, options, job=job)
    console.losses(job.losses)
    if console.json:
        console.document({**finished_document(target, finished), **losses_document(job.losses)})
    else:
        print_finished(console, target, finished)


# mutate ---------------------------------------------------------------------------------------------------------------


def _set_and_unset(field: str, name: str, what: str, metavar: str) -> Decorator:
    """The options --NAME and --unset-NAME, which make one ``field`` of the settings."""
    variable = name.replace("-", "_")
    pairs = metavar == "NAME=VALUE"

    def merge(**given: Any) -> dict[str, Any] | None:
        wanted, unwanted = given[f"set_{variable}"], given[f"unset_{variable}"]
        if pairs:
            return {**dict.fromkeys(unwanted), **wanted} or None
        return {**dict.fromkeys(unwanted, False), **dict.fromkeys(wanted, True)} or None

    return collect(
        field,
        merge,
        click.option(
            f"--{name}",
            f"set_{variable}",
            multiple=True,
            callback=parse_pairs if pairs else None,
            metavar=metavar,
            help=f"Set {what}; may be repeated.",
        ),
        click.option(
            f"--unset-{name}",
            f"unset_{variable}",
            multiple=True,
            metavar=metavar.partition("=")[0],
            help=f"Remove {what}; may be repeated.",
        ),
    )


@click.command(
    "mutate", cls=ImageVerb, example="lamella mutate --env LANG=C.UTF-8 --cmd 'serve --port 80' oci:app:1.0 oci:app:1.1"
)
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="TARGET")
@collect(
    "settings",
    "operations.surgery.mutate:Settings",
    _set_and_unset("env", "env", "a variable", "NAME=VALUE"),
    process_options,
    _set_and_unset("labels", "label", "a label", "NAME=VALUE"),
    _set_and_unset("exposed_ports", "port", "a port to listen at", "PORT[/PROTOCOL]"),
    _set_and_unset("volumes", "volume", "a directory for data", "PATH"),
    click.option("--stop-signal", metavar="SIGNAL", help="The signal that stops the program."),
    collect(
        "platform",
        lambda set_platform=None: set_platform,
        click.option("--set-platform", metavar="OS/ARCH[/VARIANT]", help="The platform of the image."),
    ),
    click.option("--os-version", metavar="VERSION", help="The version of the operating system that it needs."),
    click.option("--created", metavar="TIME", help="The creation time, as in 2024-01-31T12:00:00Z."),
    click.option("--author", metavar="TEXT", help="The author."),
    click.option("--history", metavar="TEXT", help="Add a step without a layer to the history."),
)
@_set_and_unset("annotations", "annotation", "an annotation", "NAME=VALUE")
@platform_option
@replace_option
@click.pass_obj
def mutate(
    console: Console,
    source: str,
    target: str,
    settings: Settings,
    annotations: dict[str, str | None] | None,
    platform: str | None,
    replace: bool,
) -> None:
    """Copy an image with another config or other annotations.

    Only manifest and config are written; fields without an option stay, and "" removes a value. The date stays unless
    --created or SOURCE_DATE_EPOCH gives another. TARGET may be IMAGE.
    """
    from lamella.operations.surgery.mutate import mutate

    finished = mutate(
        source, target, settings, annotations=annotations, platform=platform, replace=replace, job=console.job()
    )
    if console.json:
        console.document(finished_document(target, finished))
    else:
        print_finished(console, target, finished)


# flatten --------------------------------------------------------------------------------------------------------------


@click.command("flatten", cls=ImageVerb, example="lamella flatten --layers 2.. oci:app:1.0 oci:app:flat")
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="TARGET")
@click.option("--layers", metavar="A..B", help="Merge only these layers, numbered from 0 at the base.")
@collect(
    "options",
    "operations.surgery.flatten:FlattenOptions",
    platform_option,
    dirty_option,
    compression_options,
    replace_option,
)
@strict_option
@click.pass_obj
def flatten(
    console: Console, source: str, target: str, layers: str | None, options: FlattenOptions, strict: bool
) -> None:
    """Copy an image with its layers merged into one.

    IMAGE is copied to TARGET. Files that upper layers hide or remove are in no layer of the copy; the config stays.
    --layers 2..5 merges the layers with these numbers, both ends included, and keeps the others; 2.. and ..5 leave
    an end open. 'lamella inspect' shows the numbers.
    """
    from lamella.operations.surgery.flatten import flatten

    job = console.job(strict=strict)
    packed = flatten(source, target, layers, options, job=job)
    console.losses(job.losses)
    if console.json:
        console.document(packed_document(target, packed))
    else:
        print_packed(console, target, packed)


# rebase ---------------------------------------------------------------------------------------------------------------


@click.command(
    "rebase",
    cls=ImageVerb,
    example="lamella rebase --old-base oci:base:1 --new-base oci:base:2 oci:app:1.0 oci:app:1.1",
)
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="TARGET")
@click.option("--old-base", metavar="IMAGE", help="The base it was built on.  [default: that in its annotations]")
@click.option("--new-base", metavar="IMAGE", help="The new base.  [default: that in its annotations]")
@platform_option
@replace_option
@click.pass_obj
def rebase(
    console: Console,
    source: str,
    target: str,
    old_base: str | None,
    new_base: str | None,
    platform: str | None,
    replace: bool,
) -> None:
    """Copy an image onto another base.

    The layers of the new base replace those of the old one; the image's own layers stay, and so does its config,
    including variables. No layer is read or merged: the image must have been built on the layers of the old base, and
    its own must fit the new one.
    """
    from lamella.operations.surgery.rebase import rebase

    finished = rebase(
        source,
        target,
        old_base=old_base,
        new_base=new_base,
        platform=platform,
        replace=replace,
        job=console.job(),
    )
    if console.json:
        console.document(finished_document(target, finished))
    else:
        print_finished(console, target, finished)


# index ----------------------------------------------------------------------------------------------------------------


@click.command("index", cls=ImageVerb, example="lamella index oci:app:amd64 oci:app:arm64::linux/arm64 oci:app:1.0")
@click.argument("sources", metavar="IMAGE[::PLATFORM]...", nargs=-1, required=True)
@click.argument("target", metavar="INDEX")
@click.option(
    "--annotation",
    "annotations",
    multiple=True,
    callback=parse_pairs,
    metavar="NAME=VALUE",
    help="An annotation of the index; may be repeated.",
)
@replace_option
@click.pass_obj
def index(console: Console, sources: tuple[str, ...], target: str, annotations: dict[str, str], replace: bool) -> None:
    """Make an index for several platforms from images.

    INDEX lists the images in their order, each for the platform in its config or for the one
    given. An index contributes all of its images, or with a platform the image for it.
    """
    from lamella.operations.inspect import describe_descriptor
    from lamella.operations.surgery.index import index

    made = index(
        [(name, platform) if platform else name for name, platform in map(split_place, sources)],
        target,
        annotations=annotations,
        replace=replace,
        job=console.job(),
    )
    if console.json:
        console.document({"image": target, **describe_descriptor(made.entry), "blobs": made.blobs, "bytes": made.size})
        return
    console.summary(f"{target}: {made.entry.digest}")
    console.summary(copied_summary(made))


@click.command(
    "subset",
    cls=ImageVerb,
    example="lamella subset --platform linux/amd64 --platform linux/arm64 oci:app:1.0 oci:app:small",
)
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="TARGET")
@click.option(
    "--platform",
    "platforms",
    metavar="OS/ARCH[/VARIANT]",
    multiple=True,
    required=True,
    help="A platform to keep; may be repeated.",
)
@replace_option
@click.pass_obj
def subset(console: Console, source: str, target: str, platforms: tuple[str, ...], replace: bool) -> None:
    """Copy an index with some of its platforms only.

    A platform without a variant selects all variants. The images are copied byte for byte; entries that refer to an
    image, such as attestations, are kept or dropped with it.
    """
    from lamella.operations.inspect import describe_descriptor
    from lamella.operations.surgery.index import subset

    found = subset(
        source,
        target,
        platforms,
        replace=replace,
        job=console.job(),
    )
    if console.json:
        kept, left_out = ([str(one) for one in some] for some in (found.kept, found.left_out))
        console.document(
            {"image": target, **describe_descriptor(found.descriptor), "platforms": kept, "left_out": left_out}
        )
        return
    console.summary(f"{target}: {found.descriptor.digest}")
    console.summary(f"{', '.join(map(str, found.kept))}; {len(found.left_out)} left out")
