# SPDX-License-Identifier: Apache-2.0
"""``lamella tags``, ``catalog``, ``referrers``, ``delete``, ``login`` and ``logout``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lamella.cli.console import Console, columns, human_size, is_terminal, printable
from lamella.cli.options import Decorator
from lamella.cli.verb import RegistryVerb, Verb
from lamella.errors import Cancelled, Exhausted, InvalidInput

if TYPE_CHECKING:
    from lamella.oci.descriptor import Descriptor

# list -----------------------------------------------------------------------------------------------------------------


@click.command("tags", cls=RegistryVerb, example="lamella tags docker://docker.io/library/alpine")
@click.argument("repository", metavar="docker://HOST/NAME")
@click.pass_obj
def tags(console: Console, repository: str) -> None:
    """List the tags of a repository."""
    from lamella.operations.registry import list_tags

    tags = list_tags(repository)
    if console.json:
        console.document({"repository": repository, "tags": list(tags)})
        return
    for tag in tags:
        console.line(tag)


@click.command("catalog", cls=RegistryVerb, example="lamella catalog registry.example")
@click.argument("registry", metavar="REGISTRY")
@click.pass_obj
def catalog(console: Console, registry: str) -> None:
    """List the repositories of a registry.

    Many registries do not support it, or list only what the account may see.
    """
    from lamella.operations.registry import list_repositories

    repositories = list_repositories(registry)
    if console.json:
        console.document({"registry": registry, "repositories": list(repositories)})
        return
    for name in repositories:
        console.line(name)


@click.command("referrers", cls=RegistryVerb, example="lamella referrers docker://registry.example/team/app:1.0")
@click.argument("image", metavar="docker://HOST/NAME[:TAG]")
@click.option("--type", "artifact_type", metavar="TYPE", help="List referrers of this artifact type only.")
@click.option(
    "--platform",
    metavar="OS/ARCH[/VARIANT]",
    help="List the referrers of this image of an index.  [default: of the index itself]",
)
@click.pass_obj
def referrers(console: Console, image: str, artifact_type: str | None, platform: str | None) -> None:
    """List the referrers of an image, such as signatures.

    Copy or inspect a referrer by its digest, as docker://HOST/NAME@DIGEST.
    """
    from lamella.operations.inspect import describe_descriptor
    from lamella.operations.registry import list_referrers

    subject, found = list_referrers(image, artifact_type, platform)
    if console.json:
        document = {"image": image, **describe_descriptor(subject), "referrers": [_document(one) for one in found]}
        console.document(document)
        return
    rows = [[one.digest, human_size(one.size), printable(one.artifact_type or one.media_type)] for one in found]
    for line in columns(rows, {1}) if rows else ():
        console.line(line)


def _document(referrer: Descriptor) -> dict[str, Any]:
    from lamella.operations.inspect import describe_descriptor

    document = describe_descriptor(referrer)
    if referrer.artifact_type:
        document["artifactType"] = referrer.artifact_type
    if referrer.annotations:
        document["annotations"] = dict(referrer.annotations)
    return document


# delete ---------------------------------------------------------------------------------------------------------------


@click.command("delete", cls=RegistryVerb, example="lamella delete docker://registry.example/team/app:1.0")
@click.argument("image", metavar="docker://HOST/NAME:TAG|@DIGEST")
@click.option("--image", "whole", is_flag=True, help="Remove the image that TAG names, with all of its tags.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete(console: Console, image: str, whole: bool, yes: bool) -> None:
    """Remove a tag or an image from a registry.

    By tag, only the tag is removed, if the registry supports that. By digest, or with --image, the manifest is removed
    with all of its tags. The registry frees the space when it collects garbage.
    """
    from lamella.operations.registry import delete, repository_reference

    reference = repository_reference(image)
    if not yes:
        _confirm(f"Remove {reference}{' with all of its tags' if whole or reference.digest else ''}?")
    deleted = delete(image, whole=whole)
    if console.json:
        console.document({"repository": deleted.repository, "tag": deleted.tag, "digest": deleted.digest})
        return
    what = f"tag {deleted.tag}" if deleted.digest is None else f"image {deleted.digest} with its tags"
    console.summary(f"{deleted.repository}: removed the {what}")


def _confirm(question: str) -> None:
    """Return if the user confirms. Raises Cancelled, InvalidInput."""
    if sys.stdin is None or not is_terminal(sys.stdin):
        raise InvalidInput("standard input is not a terminal", hint="give --yes to remove it without a question")
    try:
        wanted = click.confirm(question, err=True)
    except click.Abort:
        raise Cancelled("interrupted") from None
    if not wanted:
        raise Cancelled("nothing was removed")


# login ----------------------------------------------------------------------------------------------------------------


_MAX_PASSWORD: Final = 1 << 16

auth_file_option: Final[Decorator] = click.option(
    "--authfile",
    "auth_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Use this login file, and no other.",
)
certs_dir_option: Final[Decorator] = click.option(
    "--certs-dir",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Read mirrors and certificates from DIR/HOST[:PORT] only.",
)


def _refuse(context: click.Context, option: click.Parameter, value: str | None) -> None:  # noqa: ARG001
    if value is not None:
        raise InvalidInput(
            "other users of this machine can read a password on the command line",
            hint="pipe it in with --password-stdin, or leave it out to be asked",
        )


@click.command("login", cls=Verb, example="lamella login --username me registry.example")
@click.argument("registry", metavar="REGISTRY")
@click.option("-u", "--username", metavar="NAME", help="The user name.  [default: ask]")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option(
    "-p",
    "--password",
    hidden=True,
    expose_value=False,
    is_eager=True,
    callback=_refuse,
    help="Refused: other users can read it.",
)
@click.option("--plain-http", is_flag=True, help="Use no TLS.")
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
    """Save a user name and a password for a registry.

    They are tried first. They are saved where Docker, Podman and skopeo find them too: in the file that has a login
    for REGISTRY already, else in ~/.docker/config.json, or in the credential helper that is configured there.
    """
    from lamella.images.options import RegistryOptions
    from lamella.operations.registry import log_in, registry_name
    from lamella.registry.auth.credentials import Credential

    registry = registry_name(registry)
    asks = not password_stdin and sys.stdin is not None and is_terminal(sys.stdin)
    if username is None:
        if not asks:
            raise InvalidInput("the user is missing", hint="give --username and --password-stdin")
        username = _ask("Username")
    if password_stdin:
        password = _read_password()
    elif asks:
        password = _ask("Password", hide=True)
    else:
        raise InvalidInput("the password is missing", hint="pipe it in with --password-stdin")
    options = RegistryOptions(plain_http=plain_http or None, certs_dir=certs_dir, tries=3, cancel=console.job().cancel)
    kept = log_in(registry, Credential(username, password), options, path=auth_file)
    if console.json:
        console.document({"registry": registry, "username": username, "kept": kept})
        return
    console.summary(f"{registry}: logged in as {username}, kept in {kept}")


def _ask(what: str, *, hide: bool = False) -> str:
    try:
        return str(click.prompt(what, hide_input=hide, err=True))
    except click.Abort:
        raise Cancelled("interrupted") from None


def _read_password() -> str:
    raw = Console.binary_input().read(_MAX_PASSWORD + 1)
    if len(raw) > _MAX_PASSWORD:
        raise Exhausted(f"the password is longer than {_MAX_PASSWORD} bytes")
    try:
        password = raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise InvalidInput("the password on standard input is not UTF-8") from None
    if not password:
        raise InvalidInput("no password on standard input")
    return password


@click.command("logout", cls=Verb, example="lamella logout registry.example")
@click.argument("registry", metavar="REGISTRY")
@auth_file_option
@click.pass_obj
def logout(console: Console, registry: str, auth_file: Path | None) -> None:
    """Remove the login for a registry.

    It is removed from every file and credential helper that would be searched for REGISTRY, those of other tools
    included.
    """
    from lamella.operations.registry import log_out, registry_name

    registry = registry_name(registry)
    log_out(registry, auth_file)
    if console.json:
        console.document({"registry": registry})
        return
    console.summary(f"{registry}: logged out")
