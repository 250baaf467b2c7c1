# SPDX-License-Identifier: Apache-2.0
"""Classes of verbs, with the options that they share."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click

from lamella.cli.console import Console

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _set_switch(context: click.Context, option: click.Parameter, value: bool) -> None:
    """Set a switch of the console; its option may come before or after the verb."""
    console = context.find_object(Console)
    if value and console is not None and option.name is not None:
        setattr(console, option.name, True)


# All verbs of a class share their options: a module with several verbs loads sooner.


@cache
def result_options() -> list[click.Parameter]:
    """Options of all verbs, which may also come before the verb."""

    def flag(names: list[str], text: str) -> click.Option:
        return click.Option(names, is_flag=True, expose_value=False, callback=_set_switch, help=text)

    return [
        flag(["--json"], "Print the result as one JSON document."),
        flag(["-q", "--quiet"], "Show neither progress nor a summary."),
        flag(["--debug"], "Show where an error came from."),
    ]


_REGISTRY_OPTIONS: Final = ("plain_http", "auth_file", "certs_dir", "foreign_urls")


@cache
def registry_flags() -> list[click.Parameter]:
    """Options of verbs that use registries."""
    return [
        click.Option(["--plain-http"], is_flag=True, help="Use HTTP without TLS for all registries."),
        click.Option(
            ["--authfile", "auth_file"],
            metavar="FILE",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="Read logins from this file only.",
        ),
        click.Option(
            ["--certs-dir"],
            metavar="DIR",
            type=click.Path(path_type=Path, exists=True, file_okay=False),
            help="Read mirrors and certificates from DIR/HOST[:PORT] only.",
        ),
    ]


_CONTAINERD_OPTIONS: Final = ("containerd", "containerd_namespace")


@cache
def containerd_flags() -> list[click.Parameter]:
    """Options of verbs that use images of a running containerd."""
    return [
        click.Option(
            ["--containerd"],
            metavar="SOCKET",
            help="The socket of the containerd that has images named containerd:REF.  "
            "[default: CONTAINERD_ADDRESS, or /run/containerd/containerd.sock]",
        ),
        click.Option(
            ["--containerd-namespace"],
            metavar="NAME",
            help="The namespace of this containerd.  [default: CONTAINERD_NAMESPACE, or default]",
        ),
    ]


@cache
def image_flags() -> list[click.Parameter]:
    """Options of verbs that name images."""
    foreign = click.Option(
        ["--foreign-urls"],
        is_flag=True,
        help="Fetch non-distributable layers that the image lacks from the URLs in its manifest.",
    )
    return [*containerd_flags(), *registry_flags(), foreign]


class Verb(click.Command):
    """A verb of the command line; the first line of its help is its line in the list of verbs.

    ``example`` is a complete command line, which the help shows at its end.
    """

    def __init__(self, *args: Any, example: str = "", **settings: Any) -> None:
        settings.setdefault("context_settings", CONTEXT)
        super().__init__(*args, **settings)
        self.example = example
        self.params += self.common_options()

    def common_options(self) -> list[click.Parameter]:
        """The options of all verbs of this class, listed after their own."""
        return result_options()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.example:
            with formatter.section("Example"):
                formatter.write(f"  {self.example}\n")
        super().format_epilog(ctx, formatter)


class RegistryVerb(Verb):
    """A verb that uses registries; its options for them apply to all that it opens."""

    def common_options(self) -> list[click.Parameter]:
        return [*registry_flags(), *super().common_options()]

    def invoke(self, ctx: click.Context) -> Any:
        given = {name: value for name in _REGISTRY_OPTIONS if (value := ctx.params.pop(name, None))}
        if not given:
            return super().invoke(ctx)  # without loading the options of registries
        from msgspec.structs import replace

        from lamella.images.options import current_options, registry_options

        with registry_options(replace(current_options(), **given)):
            return super().invoke(ctx)


class ImageVerb(RegistryVerb):
    """A verb that names images; its options for registries and containerd apply to all that it opens."""

    def common_options(self) -> list[click.Parameter]:
        return [*image_flags(), *result_options()]

    def invoke(self, ctx: click.Context) -> Any:
        address, namespace = (ctx.params.pop(name) or None for name in _CONTAINERD_OPTIONS)
        if address is None and namespace is None:
            return super().invoke(ctx)
        from lamella.images.options import ContainerdOptions, containerd_options

        with containerd_options(ContainerdOptions(address, namespace)):
            return super().invoke(ctx)


class VerbGroup(Verb, click.Group):
    """A verb with subcommands, listed in the order in which they were added."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        settings.setdefault("subcommand_metavar", "VERB ...")
        super().__init__(*args, **settings)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


class LazyGroup(click.Group):
    """A group that imports a verb's module only when the verb is called; listing the verbs imports none.

    ``sections`` maps a heading to its verbs, each with its line in the list and its place, ``module`` or
    ``module:attribute`` below ``lamella.cli``; the attribute is ``command`` unless given.
    """

    def __init__(self, *args: Any, sections: dict[str, dict[str, tuple[str, str]]], **settings: Any) -> None:
        settings.setdefault("subcommand_metavar", "VERB ...")
        super().__init__(*args, **settings)
        self.sections = sections
        self.verbs = {name: row for verbs in sections.values() for name, row in verbs.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in self.verbs:
            return None
        module, _, attribute = self.verbs[cmd_name][1].partition(":")
        command: click.Command = getattr(import_module(f"lamella.cli.{module}"), attribute or "command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for title, verbs in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, line) for name, (line, _) in verbs.items()])
