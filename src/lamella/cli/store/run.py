# SPDX-License-Identifier: Apache-2.0
"""``lamella run``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from lamella.cli.console import Console, is_terminal
from lamella.cli.options import WORDS, collect, platform_option
from lamella.cli.store.opening import (
    chosen_verity,
    namespace_option,
    opened_space,
    snapshotter_option,
    store_reference,
    verity_option,
)
from lamella.cli.verb import Verb

if TYPE_CHECKING:
    from lamella.operations.runtime.run import RunOptions


@click.command("run", cls=Verb, example="lamella run store:alpine:3.20 -- /bin/sh")
@click.argument("image", metavar="store:REF")
@click.argument("arguments", metavar="[-- CMD...]", nargs=-1)
@collect(
    "options",
    "operations.runtime.run:RunOptions",
    click.option("--no-rm/--rm", "keep", default=False, help="Keep the changes of the container, or drop them."),
    click.option("--read-only", "readonly", is_flag=True, help="Mount the files of the image read-only."),
    click.option(
        "--env",
        metavar="NAME[=VALUE]",
        multiple=True,
        help="Set a variable; without VALUE, copy it from this environment.",
    ),
    click.option("--workdir", "working_dir", metavar="DIR", help="The working directory of the command."),
    click.option("--user", metavar="USER[:GROUP]", help="The user that runs the command."),
    click.option(
        "--entrypoint",
        type=WORDS,
        metavar="WORDS",
        help="Replace the entry point: words as in a shell, or a JSON list.",
    ),
    click.option("--runtime", metavar="NAME", help="The runtime: crun or runc.  [default: the one that is installed]"),
    snapshotter_option,
    platform_option,
)
@verity_option
@namespace_option
@click.pass_context
def command(
    context: click.Context, image: str, arguments: tuple[str, ...], options: RunOptions, verity: str | None
) -> None:
    """Run a container of an image in the store.

    The exit code is that of the container's command. CMD replaces the image's Cmd. No network is configured for the
    container. Without root it shares the host's network, and its files are a copy in a directory unless --snapshotter
    is given.
    """
    from msgspec.structs import replace

    from lamella.operations.runtime.run import run_image

    console: Console = context.obj
    if console.json:
        raise click.UsageError("--json: standard output belongs to the container")
    if options.working_dir is not None and not options.working_dir.startswith("/"):
        raise click.UsageError("--workdir needs an absolute path")
    reference = store_reference(image)
    terminal = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    options = replace(options, command=arguments, terminal=terminal)
    sealing = chosen_verity(verity, options.snapshotter)
    job = console.job()
    with opened_space(verity=sealing) as space:
        ran = run_image(space, reference, options, job=job)
    if ran.snapshot and not console.quiet:
        print(f"lamella: kept: snapshot {ran.snapshot} of {ran.snapshotter}", file=sys.stderr)
    context.exit(ran.exit_code)
