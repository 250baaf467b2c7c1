# SPDX-License-Identifier: Apache-2.0
"""Options that several verbs share, and how a verb gets many options as one value."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click

if TYPE_CHECKING:
    from lamella.layers.policy import Owners, Policy
    from lamella.layers.windows.names import NameRules
    from lamella.layers.windows.transforms import WindowsTemplate

Decorator: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]

PATH: Final = click.Path(path_type=Path)
"""Shared, since click looks translations up for each new one."""

IMAGE_PATH: Final = "IMAGE[::PATH]"


def collect(parameter: str, make: str | Callable[..., Any], *options: Decorator) -> Decorator:
    """Declare ``options`` and pass their values to the command as one argument, ``parameter``.

    ``make`` builds it: a function, or its place as ``module:name`` below `lamella`, which is imported when the command
    runs. It gets the values as keywords, named as the options are, without those that are None.
    """

    def build(**values: Any) -> Any:
        return _load(make)(**{name: value for name, value in values.items() if value is not None})

    built: Any = combine(*options)(build)
    parameters: list[click.Parameter] = built.__click_params__

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **given: Any) -> Any:
            values = {str(option.name): given.pop(str(option.name)) for option in parameters}
            return function(*arguments, **{parameter: built(**values)}, **given)

        call.__click_params__ = [*getattr(function, "__click_params__", ()), *parameters]  # type: ignore[attr-defined]
        return call

    return decorate


def combine(*options: Decorator) -> Decorator:
    """Several options as one decorator, listed in the help in this order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _load(make: str | Callable[..., Any]) -> Callable[..., Any]:
    if not isinstance(make, str):
        return make
    module, _, name = make.partition(":")
    loaded: Callable[..., Any] = getattr(import_module(f"lamella.{module}"), name)
    return loaded


class Words(click.ParamType[list[str]]):
    """A JSON list of strings, or words separated as in a shell."""

    name = "words"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        if isinstance(value, list):
            return value
        try:
            if value.lstrip().startswith("["):
                import json

                found = json.loads(value)
                if not all(isinstance(word, str) for word in found):
                    self.fail("not a JSON list of strings", param, ctx)
                return list(found)
            import shlex

            return shlex.split(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


WORDS: Final = Words()


def parse_pairs(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Callback of an option with the form ``NAME=VALUE`` that may be given several times."""
    found = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{text!r} is not of the form NAME=VALUE", context, option)
        found[name] = value
    return found


process_options: Final[Decorator] = combine(
    click.option("--entrypoint", type=WORDS, metavar="WORDS", help="The program: a JSON list, or words as in a shell."),
    click.option(
        "--cmd", type=WORDS, metavar="WORDS", help="Its arguments, or program and arguments: as for --entrypoint."
    ),
    click.option("--user", metavar="USER[:GROUP]", help="The user that runs the program."),
    click.option("--workdir", "working_dir", metavar="PATH", help="The working directory of the program."),
)
"""Settings of the process that a container of the image runs."""

# Images and registries -----------------------------------------------------------------------------------------------

platform_option: Final[Decorator] = click.option(
    "--platform",
    metavar="OS/ARCH[/VARIANT]",
    help="The image to take from an index.  [default: that for this machine]",
)
all_option: Final[Decorator] = click.option(
    "--all", "all_platforms", is_flag=True, help="Copy an index with the images of all platforms."
)
replace_option: Final[Decorator] = click.option(
    "--replace", is_flag=True, help="Replace an existing archive, or the image of that name in a store."
)


def split_place(text: str) -> tuple[str, str]:
    """Split ``IMAGE[::PATH]`` at the first ``::``: paths may contain it, as manual pages of Perl do, images hardly."""
    image, _, path = text.partition("::")
    return image, path


# Layers --------------------------------------------------------------------------------------------------------------

subsecond_option: Final[Decorator] = click.option(
    "--subsecond", is_flag=True, help="Keep fractions of seconds in times."
)
sparse_option: Final[Decorator] = click.option(
    "--sparse", is_flag=True, help="Keep holes of files; Docker and Podman may be unable to push such a layer again."
)
strict_option: Final[Decorator] = click.option("--strict", is_flag=True, help="Fail if anything cannot be kept.")


recipe_option: Final[Decorator] = click.option(
    "--recipe",
    metavar="FILE",
    type=PATH,
    help="Also write a recipe, which restores the exact blob.",
)


def _parse_owners(context: click.Context, option: click.Parameter, value: str | None) -> Owners | None:  # noqa: ARG001
    if value is None:
        return None
    from lamella.layers.policy import Owners

    return Owners(value)


read_owner_option: Final[Decorator] = click.option(
    "--owner",
    "owners",
    type=click.Choice(["keep", "ignore", "record"]),
    callback=_parse_owners,
    help="Owners of files: those on disk, 0:0 for all, or those recorded in an attribute.  "
    "[default: keep for root, else record]",
)


def _make_policy(owner: str | None = None, devices: str | None = None) -> Policy | None:
    """The policy of --owner and --devices; None without them, for the one that fits the rights of this process."""
    if owner is None and devices is None:
        return None
    from lamella.layers.policy import Devices, Owners, Policy

    default = Policy.default()
    return Policy(
        owners=default.owners if owner is None else Owners(owner),
        devices=default.devices if devices is None else Devices(devices),
    )


policy_options: Final[Decorator] = collect(
    "policy",
    _make_policy,
    click.option(
        "--owner",
        type=click.Choice(["keep", "ignore", "record"]),
        help="Set the owners of files, ignore them, or record them in an attribute.  "
        "[default: keep for root, else record]",
    ),
    click.option(
        "--devices",
        type=click.Choice(["create", "skip", "record"]),
        help="Create device nodes, skip them, or record them in an attribute.  [default: create for root, else record]",
    ),
)


# Windows layers ------------------------------------------------------------------------------------------------------


def _make_template(**given: Any) -> WindowsTemplate | None:
    if not any(given.values()):
        return None
    from lamella.layers.windows.transforms import parse_template

    return parse_template(**given)


template_options: Final[Decorator] = collect(
    "template",
    _make_template,
    click.option(
        "--file-security",
        metavar="SDDL",
        help="Security descriptor of files in a Windows layer, or 'none'.  [default: everyone may read and execute]",
    ),
    click.option("--directory-security", metavar="SDDL", help="Security descriptor of its directories, or 'none'."),
    click.option(
        "--attributes",
        multiple=True,
        metavar="PATTERN=NAMES",
        help="Attributes of matching files on drive C, as in 'App/*.ini=hidden,readonly'; may be repeated.",
    ),
)


def _parse_name_rules(context: click.Context, option: click.Parameter, value: bool) -> NameRules | None:  # noqa: ARG001
    if not value:
        return None
    from lamella.layers.windows.names import AS_WINDOWS

    return AS_WINDOWS


name_rules_option: Final[Decorator] = click.option(
    "--awkward-names",
    "rules",
    is_flag=True,
    callback=_parse_name_rules,
    help="Accept names in a Windows layer that most programs cannot open: device names (aux.js), and names that end "
    "with a dot or a space.",
)


dirty_option: Final[Decorator] = click.option(
    "--dirty", is_flag=True, help="Read a registry hive without its last changes if they are in no log."
)


def check_name_rules(rules: NameRules | None, kind: str | None) -> None:
    """Raise UsageError if --awkward-names is given for a kind of layer that is not for Windows."""
    if rules is None:
        return
    from lamella.layers.kinds import LAYER_KINDS

    if kind is None or not LAYER_KINDS[kind].windows:
        raise click.UsageError("--awkward-names is for Windows layers; see --as")
