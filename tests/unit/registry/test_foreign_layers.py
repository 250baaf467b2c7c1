# SPDX-License-Identifier: Apache-2.0
"""Layers that may not be passed on: left where they are, or fetched from there where a person says so."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.registry.hostile import Registry

import lamella
from lamella.cli.main import run
from lamella.errors import Unsupported
from lamella.testing.images import compact, digest, small_image

IMAGE = small_image({"etc/base": b"kept elsewhere"}, {"etc/own": b"here"})
FOREIGN, OWN = (layer["digest"] for layer in IMAGE.manifest["layers"])


@pytest.fixture
def elsewhere() -> Iterator[Registry]:
    """Where the layer is."""
    with Registry() as server:
        server.add_blob("base", IMAGE.blobs[FOREIGN])
        yield server


@pytest.fixture
def registry(elsewhere: Registry) -> Iterator[Registry]:
    """One that has the image without the layer."""
    address = f"{elsewhere.url}/v2/base/blobs/{FOREIGN}"
    foreign = {
        **IMAGE.manifest["layers"][0],
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "urls": [address],
    }
    raw = compact({**IMAGE.manifest, "layers": [foreign, IMAGE.manifest["layers"][1]]})
    with Registry() as server:
        for name, blob in IMAGE.blobs.items():
            if name not in (FOREIGN, IMAGE.descriptor["digest"]):
                server.add_blob("app", blob)
        server.add_manifest("app", "v1", IMAGE.manifest["mediaType"], raw)
        yield server


@pytest.mark.parametrize("form", ["oci", "oci-archive", "store", "docker"])
def test_a_copy_leaves_them_where_they_are(
    registry: Registry, elsewhere: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("LAMELLA_ROOT", str(tmp_path / "store"))
    place = {"store": "registry.example/app", "docker": f"//{elsewhere.host}/copied"}.get(form, str(tmp_path / "out"))
    source, target = f"docker://{registry.host}/app:v1", f"{form}:{place}:v1"
    copied = lamella.copy(source, target)
    assert (copied.blobs, copied.present, copied.left) == (3, 0, 1)
    assert copied.entry.digest == registry_digest(registry)
    back = lamella.copy(target, f"docker://{elsewhere.host}/back:v1")
    assert (back.blobs + back.present, back.left) == (3, 1)
    assert [request for request in elsewhere.requests if request.path.startswith("/v2/base/")] == []


def test_where_all_layers_are_needed_that_is_said(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="non-distributable") as caught:
        lamella.copy(f"docker://{registry.host}/app:v1", f"docker-archive:{tmp_path}/out.tar")
    assert "--foreign-urls" in str(caught.value.hint)
    assert os.listdir(tmp_path) == []


def test_surgery_leaves_them_where_they_are(registry: Registry, elsewhere: Registry) -> None:
    name = f"docker://{registry.host}/app:v1"
    lamella.mutate(name, f"docker://{registry.host}/app:v2", lamella.Settings(user="1"))
    lamella.append(name, {"etc/more": b"x"}, f"docker://{registry.host}/other:v2")
    with lamella.open_image(f"docker://{registry.host}/other:v2") as image:
        assert [str(layer.descriptor.digest) for layer in image.layers[:2]] == [FOREIGN, OWN]
    assert elsewhere.requests == []


def test_they_are_fetched_where_the_command_line_says_so(
    registry: Registry, elsewhere: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, root = f"docker://{registry.host}/app:v1", tmp_path / "root"
    assert run(["unpack", "-q", name, str(root)]) == 7
    assert "--foreign-urls" in capsys.readouterr().err
    assert run(["unpack", "-q", "--foreign-urls", name, str(root)]) == 0
    assert sorted(os.listdir(root / "etc")) == ["base", "own"]
    told = []
    for options in (["--foreign-urls"], []):
        assert run(["pull", "--json", *options, name, f"oci:{tmp_path}/pulled-{len(options)}:v1"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert [(one["blobs"], one["left"]) for one in told] == [(4, 0), (3, 1)]
    before = len(elsewhere.requests)
    assert run(["pull", name, f"oci:{tmp_path}/again:v1"]) == 0
    assert "; 1 non-distributable layer left where it is" in capsys.readouterr().out
    assert len(elsewhere.requests) == before


def registry_digest(registry: Registry) -> str:
    return digest(registry.manifests["app", "v1"][1])
