# SPDX-License-Identifier: Apache-2.0
"""``lamella login``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from lamella.cli.console import Console, is_terminal
from lamella.cli.options import auth_file_option, certs_dir_option
from lamella.cli.verb import Verb
from lamella.errors import Cancelled, Exhausted, InvalidInput

_MAX_PASSWORD: Final = 1 << 16


def _refuse(context: click.Context, option: click.Parameter, value: str | None) -> None:  # noqa: ARG001
    if value is not None:
        raise InvalidInput(
            "a password on the command line can be read by everybody on this machine",
            hint="pipe it in with --password-stdin, or leave it out to be asked",
        )


@click.command("login", cls=Verb)
@click.argument("registry", metavar="REGISTRY")
@click.option("-u", "--username", metavar="NAME", help="Who to be.  [default: is asked]")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option(
    "-p",
    "--password",
    hidden=True,
    expose_value=False,
    is_eager=True,
    callback=_refuse,
    help="Is refused.",
)
@click.option("--plain-http", is_flag=True, help="The registry has no TLS.")
@certs_dir_option
@auth_file_option
@click.pass_obj
def login(
    console: Console,
    registry: str,
    username: str | None,
    password_stdin: bool,
    plain_http: bool,
    certs_dir: Path | None,
    auth_file: Path | None,
) -> None:
    """Keep a user and a password for a registry.

    They are tried first, and kept where Docker, Podman and skopeo find them too: in the file that has a login for
    REGISTRY already, else in ~/.docker/config.json, or in the keychain that is set up there.
    """
    from lamella.images.options import RegistryOptions
    from lamella.operations.registry import log_in, registry_name
    from lamella.registry.auth.credentials import Credential

    registry = registry_name(registry)
    asks = not password_stdin and sys.stdin is not None and is_terminal(sys.stdin)
    if username is None:
        if not asks:
            raise InvalidInput("there is nobody to ask for a user", hint="give --username and --password-stdin")
        username = _ask("Username")
    if password_stdin:
        password = _read_password()
    elif asks:
        password = _ask("Password", hide=True)
    else:
        raise InvalidInput("there is nobody to ask for a password", hint="pipe it in with --password-stdin")
    options = RegistryOptions(plain_http=plain_http or None, certs_dir=certs_dir, tries=3, cancel=console.job().cancel)
    kept = log_in(registry, Credential(username, password), options, path=auth_file)
    if console.json:
        console.document({"registry": registry, "username": username, "kept": kept})
        return
    console.summary(f"{registry}: logged in as {console.name(username)}, kept in {kept}")


def _ask(what: str, *, hide: bool = False) -> str:
    try:
        return str(click.prompt(what, hide_input=hide, err=True))
    except click.Abort:
        raise Cancelled("interrupted") from None


def _read_password() -> str:
    raw = Console.binary_input().read(_MAX_PASSWORD + 1)
    if len(raw) > _MAX_PASSWORD:
        raise Exhausted(f"more than {_MAX_PASSWORD} bytes are no password")
    try:
        password = raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise InvalidInput("the password on standard input is not UTF-8") from None
    if not password:
        raise InvalidInput("there is no password on standard input")
    return password


@click.command("logout", cls=Verb)
@click.argument("registry", metavar="REGISTRY")
@auth_file_option
@click.pass_obj
def logout(console: Console, registry: str, auth_file: Path | None) -> None:
    """Forget the user and the password for a registry.

    They go from every file and keychain that would be asked for REGISTRY, those of other tools included.
    """
    from lamella.operations.registry import log_out, registry_name

    registry = registry_name(registry)
    log_out(registry, auth_file)
    if console.json:
        console.document({"registry": registry})
        return
    console.summary(f"{registry}: logged out")
