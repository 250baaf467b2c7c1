# SPDX-License-Identifier: Apache-2.0
"""``lamella run``."""

from __future__ import annotations

import sys

import click

from lamella.cli.console import Console, is_terminal
from lamella.cli.options import WORDS, platform_option
from lamella.cli.store.opening import (
    chosen_verity,
    namespace_option,
    opened_space,
    snapshotter_option,
    store_reference,
    verity_option,
)
from lamella.cli.verb import Verb


@click.command("run", cls=Verb)
@click.argument("image", metavar="store:REF")
@click.argument("arguments", metavar="[-- CMD...]", nargs=-1)
@click.option("--rm/--no-rm", default=True, help="Drop what the container changed when it ends.  [default: --rm]")
@click.option("--read-only", "readonly", is_flag=True, help="Let the container write to none of the image's files.")
@click.option("--env", metavar="NAME[=VALUE]", multiple=True, help="Set a variable; without VALUE, as it is set here.")
@click.option("--workdir", metavar="DIR", help="Where the command starts.")
@click.option("--user", metavar="USER[:GROUP]", help="Who it runs as.")
@click.option(
    "--entrypoint", type=WORDS, metavar="WORDS", help="Another entry point: words as in a shell, or a JSON list."
)
@click.option("--runtime", metavar="NAME", help="What runs the container: crun or runc.  [default: what is there]")
@snapshotter_option
@verity_option
@platform_option
@namespace_option
@click.pass_context
def command(
    context: click.Context,
    image: str,
    arguments: tuple[str, ...],
    rm: bool,
    readonly: bool,
    env: tuple[str, ...],
    workdir: str | None,
    user: str | None,
    entrypoint: list[str] | None,
    runtime: str | None,
    snapshotter: str | None,
    verity: str | None,
    platform: str | None,
) -> None:
    """Run a container of an image of the store.

    It runs until its command ends, and its exit code is the result. CMD replaces the image's Cmd. The container has no
    network of its own configured; without root it has the host's. Without root its files are a copy in a directory,
    unless --snapshotter says otherwise.
    """
    from lamella.operations.runtime.run import RunOptions, run_image

    console: Console = context.obj
    if console.json:
        raise click.UsageError("--json: standard output is the container's")
    if workdir is not None and not workdir.startswith("/"):
        raise click.UsageError("--workdir: an absolute path is needed")
    reference = store_reference(image)
    options = RunOptions(
        command=arguments,
        entrypoint=entrypoint,
        env=env,
        working_dir=workdir,
        user=user,
        readonly=readonly,
        terminal=is_terminal(sys.stdin) and is_terminal(sys.stdout),
    )
    sealing = chosen_verity(verity, snapshotter)
    job = console.job()
    with opened_space(verity=sealing) as space:
        ran = run_image(
            space,
            reference,
            options,
            runtime=runtime,
            snapshotter=snapshotter,
            platform=platform,
            keep=not rm,
            progress=job.progress,
            cancel=job.cancel,
        )
    if ran.snapshot and not console.quiet:
        print(f"lamella: kept: snapshot {ran.snapshot} of {ran.snapshotter}", file=sys.stderr)
    context.exit(ran.exit_code)
