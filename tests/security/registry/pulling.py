# SPDX-License-Identifier: Apache-2.0
"""Pulls from and pushes to hostile registries."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import trustme
from tests.registry.hostile import PASSWORD, SECRETS, USER, Registry

from lamella.digests import Digest
from lamella.errors import LamellaError
from lamella.images.graph import ImageGraph
from lamella.images.options import RegistryOptions
from lamella.images.resolve import choose_image
from lamella.images.transports import open_reader, open_writer, parse_image_name
from lamella.operations.copy import copy_image
from lamella.registry.auth.credentials import Credential
from lamella.testing.images import SmallImage, small_image

NOISE = random.Random(7).randbytes(600_000)
IMAGE = small_image({"etc/name": b"lamella"}, {"noise": NOISE}, compress=False)
LAYER = IMAGE.manifest["layers"][1]["digest"]
MANIFESTS, BLOBS, UPLOADS = "/manifests/", f"/blobs/{LAYER}", "/blobs/uploads/"

OPTIONS = RegistryOptions(
    credential=Credential(USER, PASSWORD),
    tries=3,
    retry_wait=3,
    connect_timeout=5,
    read_timeout=5,
    rate_window=1,
    slowest_rate=20_000,
)
MOST = 3 * OPTIONS.tries
"""Upper bound of requests for one resource: each try may be authorized again."""


def trust(server: Registry, authority: trustme.CA, settings: Path) -> None:
    (settings / server.host).mkdir(parents=True)
    authority.cert_pem.write_to_path(str(settings / server.host / "ca.crt"))


def name_in(server: Registry, which: str = ":v1") -> str:
    return f"docker://{server.host}/team/app{which}"


def pull(server: Registry | str, target: Path, options: RegistryOptions = OPTIONS) -> Digest:
    """Copy the image into a layout and return its digest."""
    source = parse_image_name(server if isinstance(server, str) else name_in(server))
    with (
        open_reader(source, registry=options) as reader,
        open_writer(parse_image_name(f"oci:{target}/layout:v1")) as writer,
    ):
        graph = ImageGraph(reader)
        return copy_image(graph, writer, choose_image(graph, source.tag), "v1").entry.digest


def push(server: Registry, tmp_path: Path, options: RegistryOptions = OPTIONS, image: SmallImage = IMAGE) -> Digest:
    """Copy the image into a registry, as team/new:v1."""
    from lamella.testing.images import tagged, write_layout

    source = parse_image_name(
        f"oci:{write_layout(str(tmp_path / 'source'), [tagged(image.descriptor, 'v1')], image.blobs)}:v1"
    )
    target = parse_image_name(f"docker://{server.host}/team/new:v1")
    with open_reader(source) as reader, open_writer(target, registry=options) as writer:
        graph = ImageGraph(reader)
        return copy_image(graph, writer, choose_image(graph, "v1"), "v1").entry.digest


def refuse_to_pull(
    server: Registry | str, target: Path, *categories: type[LamellaError], options: RegistryOptions = OPTIONS
) -> LamellaError:
    """Assert that a pull fails by one of the errors, shows no secret and leaves no image."""
    with pytest.raises(categories) as caught:
        pull(server, target, options)
    index = target / "layout/index.json"
    assert not index.exists() or json.loads(index.read_text())["manifests"] == []
    keep_quiet(caught.value)
    return caught.value


def keep_quiet(error: BaseException) -> None:
    """Assert that neither an error nor its causes contain a secret."""
    seen: BaseException | None = error
    while seen is not None:
        told = f"{seen!r} {seen} {getattr(seen, 'hint', '')} {getattr(seen, '__notes__', '')}"
        assert [secret for secret in SECRETS if secret in told] == []
        seen = seen.__cause__ or seen.__context__
