# SPDX-License-Identifier: Apache-2.0
"""Options that several verbs have, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from lamella.layers.policy import Policy
    from lamella.layers.windows.names import NameRules
    from lamella.layers.windows.transforms import WindowsTemplate

F = TypeVar("F", bound=Callable[..., Any])

IMAGE_PATH: Final = "IMAGE[::PATH]"


def platform_option(function: F) -> F:
    """--platform."""
    return click.option(
        "--platform", metavar="OS/ARCH[/VARIANT]", help="Which image of an index.  [default: this machine's]"
    )(function)


def auth_file_option(function: F) -> F:
    """--authfile, for verbs that change it."""
    return click.option(
        "--authfile",
        "auth_file",
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Keep logins in this file, and look into no other.",
    )(function)


def certs_dir_option(function: F) -> F:
    """--certs-dir."""
    return click.option(
        "--certs-dir",
        metavar="DIR",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Take mirrors and certificates from DIR/HOST[:PORT] alone.",
    )(function)


def all_option(function: F) -> F:
    """--all."""
    return click.option("--all", "all_platforms", is_flag=True, help="Copy an index with the images of all platforms.")(
        function
    )


def owner_option(function: F) -> F:
    """--owner, for verbs that write files."""
    return click.option(
        "--owner",
        type=click.Choice(["keep", "ignore", "record"]),
        help="Give files their owners, or none, or record them in an attribute.  [default: keep for root, else record]",
    )(function)


def read_owner_option(function: F) -> F:
    """--owner, for verbs that read files."""
    return click.option(
        "--owner",
        type=click.Choice(["keep", "ignore", "record"]),
        help="Take the owners of files as they are, or all as 0, or as recorded in an attribute.  "
        "[default: keep for root, else record]",
    )(function)


def subsecond_option(function: F) -> F:
    """--subsecond."""
    return click.option("--subsecond", is_flag=True, help="Keep the fractions of seconds that times have.")(function)


def replace_option(function: F) -> F:
    """--replace."""
    return click.option(
        "--replace",
        is_flag=True,
        help="Let an archive that exists, or another image of that name in a store, give way.",
    )(function)


def devices_option(function: F) -> F:
    """--devices."""
    return click.option(
        "--devices",
        type=click.Choice(["create", "skip", "record"]),
        help="Make device nodes, or leave them out, or record them in an attribute.  "
        "[default: create for root, else record]",
    )(function)


def template_options(function: F) -> F:
    """--file-security, --directory-security and --attributes; see `template`."""
    options = (
        click.option(
            "--file-security",
            metavar="SDDL",
            help="The security descriptor of files in a Windows layer, or 'none'.  [default: all may read and run]",
        ),
        click.option("--directory-security", metavar="SDDL", help="That of its directories, or 'none'."),
        click.option(
            "--attributes",
            multiple=True,
            metavar="PATTERN=NAMES",
            help="Attributes of the files on drive C that match, as 'App/*.ini=hidden,readonly'; may be given again.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def template(
    file_security: str | None, directory_security: str | None, attributes: tuple[str, ...]
) -> WindowsTemplate | None:
    """What the options of `template_options` say; None where none is given."""
    if file_security is None and directory_security is None and not attributes:
        return None
    from lamella.layers.windows.transforms import parse_template

    return parse_template(file_security, directory_security, attributes)


def awkward_names_option(function: F) -> F:
    """--awkward-names; see `name_rules`."""
    return click.option(
        "--awkward-names",
        is_flag=True,
        help="Take names in a Windows layer that most programs there cannot open: those of devices (aux.js), and with "
        "a dot or a space at the end.",
    )(function)


def name_rules(awkward_names: bool, kind: str | None = "windows") -> NameRules | None:
    """What --awkward-names says, for a place of that kind. Raises UsageError where that holds no Windows layers."""
    if not awkward_names:
        return None
    from lamella.layers.kinds import LAYER_KINDS
    from lamella.layers.windows.names import AS_WINDOWS

    if kind is None or not LAYER_KINDS[kind].windows:
        raise click.UsageError("--awkward-names is for layers of Windows; see --as")
    return AS_WINDOWS


def strict_option(function: F) -> F:
    """--strict."""
    return click.option("--strict", is_flag=True, help="Fail when something cannot be kept.")(function)


def policy(owner: str | None, devices: str | None) -> Policy:
    """The policy that --owner and --devices ask for, the rest as it fits the rights of this process."""
    from lamella.layers.policy import Devices, Owners, Policy

    default = Policy.default()
    return Policy(
        owners=default.owners if owner is None else Owners(owner),
        devices=default.devices if devices is None else Devices(devices),
    )


def split_place(text: str) -> tuple[str, str]:
    """The image and the path in it that ``IMAGE[::PATH]`` names.

    The first ``::`` counts: files have it in their names (the manual pages of Perl modules), images hardly ever.
    """
    image, _, path = text.partition("::")
    return image, path


def words(option: str, text: str | None) -> list[str] | None:
    """A JSON list of strings, or words split as a shell does."""
    if text is None:
        return None
    if text.lstrip().startswith("["):
        import json

        try:
            found = json.loads(text)
        except ValueError as error:
            raise click.UsageError(f"{option}: not a JSON list: {error}") from error
        if not all(isinstance(word, str) for word in found):
            raise click.UsageError(f"{option}: not a JSON list of strings")
        return list(found)
    import shlex

    try:
        return shlex.split(text)
    except ValueError as error:
        raise click.UsageError(f"{option}: {error}") from error


def pair(what: str, text: str) -> tuple[str, str]:
    """The name and the value that ``NAME=VALUE`` has."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f"malformed {what} {text!r}; write it as NAME=VALUE")
    return name, value
