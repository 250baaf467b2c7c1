# SPDX-License-Identifier: Apache-2.0
"""``lamella referrers``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console, columns, human_size, printable
from lamella.cli.verb import RegistryVerb

if TYPE_CHECKING:
    from lamella.oci.descriptor import Descriptor


@click.command("tags", cls=RegistryVerb)
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


@click.command("catalog", cls=RegistryVerb)
@click.argument("registry", metavar="REGISTRY")
@click.pass_obj
def catalog(console: Console, registry: str) -> None:
    """List the repositories of a registry.

    Not every registry tells, and some tell only what the account may see.
    """
    from lamella.operations.registry import list_repositories

    repositories = list_repositories(registry)
    if console.json:
        console.document({"registry": registry, "repositories": list(repositories)})
        return
    for name in repositories:
        console.line(name)


@click.command("referrers", cls=RegistryVerb)
@click.argument("image", metavar="docker://HOST/NAME[:TAG]")
@click.option("--type", "artifact_type", metavar="TYPE", help="Only what is of this artifact type.")
@click.option(
    "--platform", metavar="OS/ARCH[/VARIANT]", help="What is about this image of an index.  [default: about the index]"
)
@click.pass_obj
def referrers(console: Console, image: str, artifact_type: str | None, platform: str | None) -> None:
    """List signatures, attestations and the like about an image.

    What is listed can be had by its digest, as docker://HOST/NAME@DIGEST.
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
