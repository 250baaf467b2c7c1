# SPDX-License-Identifier: Apache-2.0
"""What all verbs share: their class, and the options about how results are given."""

from __future__ import annotations

from typing import Any

import click

from lamella.cli.console import Console

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _note(context: click.Context, option: click.Parameter, value: bool) -> None:
    """Tell the console of an option that may stand before the verb or behind it."""
    console = context.find_object(Console)
    if value and console is not None and option.name is not None:
        setattr(console, option.name, True)


def result_options() -> list[click.Parameter]:
    """Options that every verb has, and that may stand before the verb too."""

    def flag(names: list[str], text: str) -> click.Option:
        return click.Option(names, is_flag=True, expose_value=False, callback=_note, help=text)

    return [
        flag(["--json"], "Print the result as one JSON document."),
        flag(["-q", "--quiet"], "Show neither progress nor a summary."),
        flag(["--debug"], "Show where an error came from."),
    ]


class Verb(click.Command):
    """A verb of the command line; the first line of its help is its line in the list of verbs."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        settings.setdefault("context_settings", CONTEXT)
        super().__init__(*args, **settings)
        self.params += result_options()


class VerbGroup(Verb, click.Group):
    """A verb that has verbs of its own, listed in the order in which they were added."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        settings.setdefault("subcommand_metavar", "VERB ...")
        super().__init__(*args, **settings)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The verbs."""
        return list(self.commands)
