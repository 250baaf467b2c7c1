# SPDX-License-Identifier: Apache-2.0
"""``lamella mutate``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from lamella.cli.console import Console
from lamella.cli.documents import finished_document, finished_summary
from lamella.cli.options import pair, platform_option, replace_option, words
from lamella.cli.verb import ImageVerb

F = TypeVar("F", bound=Callable[..., Any])


def _several(name: str, what: str, metavar: str) -> Callable[[F], F]:
    """Two options, of which one sets and the other takes away."""

    def decorate(function: F) -> F:
        unset = f"Remove {what}; may be given again."
        variable = name.replace("-", "_")
        plain = metavar.partition("=")[0]
        function = click.option(f"--unset-{name}", f"unset_{variable}", multiple=True, metavar=plain, help=unset)(
            function
        )
        return click.option(
            f"--{name}", f"set_{variable}", multiple=True, metavar=metavar, help=f"Set {what}; may be given again."
        )(function)

    return decorate


@click.command("mutate", cls=ImageVerb)
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="IMAGE")
@_several("env", "a variable", "NAME=VALUE")
@click.option("--entrypoint", metavar="WORDS", help="The program: a JSON list, or words as in a shell.")
@click.option("--cmd", metavar="WORDS", help="Its arguments, or program and arguments: as for --entrypoint.")
@_several("label", "a label", "NAME=VALUE")
@click.option("--user", metavar="USER[:GROUP]", help="Who the program runs as.")
@click.option("--workdir", metavar="PATH", help="Where the program starts.")
@_several("port", "a port to listen at", "PORT[/PROTOCOL]")
@_several("volume", "a directory for data", "PATH")
@click.option("--stop-signal", metavar="SIGNAL", help="The signal that stops the program.")
@click.option("--set-platform", metavar="OS/ARCH[/VARIANT]", help="What the image is for.")
@click.option("--os-version", metavar="VERSION", help="The version of the operating system that it needs.")
@_several("annotation", "an annotation", "NAME=VALUE")
@click.option("--created", metavar="TIME", help="When it was made, as in 2024-01-31T12:00:00Z.")
@click.option("--author", metavar="TEXT", help="Who made it.")
@click.option("--history", metavar="TEXT", help="Add a step that made no layer to the history.")
@platform_option
@replace_option
@click.pass_obj
def command(console: Console, /, source: str, target: str, platform: str | None, replace: bool, **given: Any) -> None:
    """Copy an image with another config or other annotations.

    Only manifest and config are written anew; what is not spoken of stays, and "" takes a value away. The date stays
    unless --created or SOURCE_DATE_EPOCH says another. The second IMAGE may be the first one.
    """
    from lamella.operations.surgery.mutate import Settings, mutate

    settings = Settings(
        env=_pairs("variable", given["set_env"], given["unset_env"]),
        entrypoint=words("--entrypoint", given["entrypoint"]),
        cmd=words("--cmd", given["cmd"]),
        labels=_pairs("label", given["set_label"], given["unset_label"]),
        user=given["user"],
        working_dir=given["workdir"],
        exposed_ports=_members(given["set_port"], given["unset_port"]),
        volumes=_members(given["set_volume"], given["unset_volume"]),
        stop_signal=given["stop_signal"],
        platform=given["set_platform"],
        os_version=given["os_version"],
        created=given["created"],
        author=given["author"],
        history=given["history"],
    )
    finished = mutate(
        source,
        target,
        settings,
        annotations=_pairs("annotation", given["set_annotation"], given["unset_annotation"]),
        platform=platform,
        replace=replace,
        progress=console.progress(),
        cancel=console.cancellation(),
    )
    if console.json:
        console.document(finished_document(target, finished))
    else:
        finished_summary(console, target, finished)


def _pairs(what: str, wanted: Iterable[str], unwanted: Iterable[str]) -> dict[str, str | None] | None:
    found: dict[str, str | None] = {**dict.fromkeys(unwanted), **dict(pair(what, one) for one in wanted)}
    return found or None


def _members(wanted: Iterable[str], unwanted: Iterable[str]) -> dict[str, bool] | None:
    return {**dict.fromkeys(unwanted, False), **dict.fromkeys(wanted, True)} or None
