# SPDX-License-Identifier: Apache-2.0
"""``lamella mutate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console
from lamella.cli.documents import finished_document, print_finished
from lamella.cli.options import Decorator, collect, parse_pairs, platform_option, process_options, replace_option
from lamella.cli.verb import ImageVerb

if TYPE_CHECKING:
    from lamella.operations.surgery.mutate import Settings


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


@click.command("mutate", cls=ImageVerb)
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="IMAGE")
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
def command(
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
    --created or SOURCE_DATE_EPOCH gives another. The second IMAGE may be the first one.
    """
    from lamella.operations.surgery.mutate import mutate

    finished = mutate(
        source, target, settings, annotations=annotations, platform=platform, replace=replace, job=console.job()
    )
    if console.json:
        console.document(finished_document(target, finished))
    else:
        print_finished(console, target, finished)
