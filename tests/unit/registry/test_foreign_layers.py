# SPDX-License-Identifier: Apache-2.0
"""Non-distributable layers: left out of copies, or fetched from their URLs with an option."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.registry.hostile import Registry

import lamella
from lamella.cli.main import run
from lamella.digests import Digest
from lamella.errors import Unsupported
from lamella.images.options import RegistryOptions
from lamella.images.transports import open_reader, parse_image_name
from lamella.oci.descriptor import Descriptor
from lamella.registry import blob_fetch
from lamella.registry.blob_fetch import ForeignLayers
from lamella.registry.http.urls import Origin
from lamella.testing.images import compact, digest, small_image, tagged, write_layout

IMAGE = small_image({"etc/base": b"kept elsewhere"}, {"etc/own": b"here"})
FOREIGN, OWN = (layer["digest"] for layer in IMAGE.manifest["layers"])


@pytest.fixture
def elsewhere() -> Iterator[Registry]:
    """The server that has the layer."""
    with Registry() as server:
        server.add_blob("base", IMAGE.blobs[FOREIGN])
        yield server


@pytest.fixture
def registry(elsewhere: Registry) -> Iterator[Registry]:
    """A registry that has the image without the layer."""
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
def test_a_copy_leaves_foreign_layers_out(
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


def test_a_verb_that_needs_all_layers_names_the_option(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="non-distributable") as caught:
        lamella.copy(f"docker://{registry.host}/app:v1", f"docker-archive:{tmp_path}/out.tar")
    assert "--foreign-urls" in str(caught.value.hint)
    assert os.listdir(tmp_path) == []


def test_surgery_leaves_foreign_layers_out(registry: Registry, elsewhere: Registry) -> None:
    name = f"docker://{registry.host}/app:v1"
    lamella.mutate(name, f"docker://{registry.host}/app:v2", lamella.Settings(user="1"))
    lamella.append(name, {"etc/more": b"x"}, f"docker://{registry.host}/other:v2")
    with lamella.open_image(f"docker://{registry.host}/other:v2") as image:
        assert [str(layer.descriptor.digest) for layer in image.layers[:2]] == [FOREIGN, OWN]
    assert elsewhere.requests == []


def test_foreign_layers_are_fetched_with_the_option(
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


def test_an_export_from_the_store_counts_the_foreign_layers_left_out(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAMELLA_ROOT", str(tmp_path / "store"))
    lamella.copy(f"docker://{registry.host}/app:v1", "store:registry.example/app:v1")
    assert run(["store", "export", "--json", "registry.example/app:v1", f"oci:{tmp_path}/a:v1"]) == 0
    assert json.loads(capsys.readouterr().out)["left"] == 1
    assert run(["store", "export", "registry.example/app:v1", f"oci:{tmp_path}/b:v1"]) == 0
    assert "; 1 non-distributable layer left where it is" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["docker", "oci", "oci-archive", "store", "docker-archive"])
def test_ranges_of_foreign_layers_share_connections_that_the_reader_closes(
    registry: Registry, elsewhere: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    for name, value in {"RANGE_SIZE": 1 << 16, "SINGLE_REQUEST_SIZE": 1 << 16, "FAST_RATE": float("inf")}.items():
        monkeypatch.setattr(blob_fetch, name, value)
    monkeypatch.setenv("LAMELLA_ROOT", str(tmp_path / "store"))
    connected: list[socket.socket] = []
    create = socket.create_connection

    def counted(*arguments: Any) -> socket.socket:
        connected.append(create(*arguments))
        return connected[-1]

    registry.add("own", "v1", IMAGE)
    place = {"store": "registry.example/own", "docker": f"//{registry.host}/own"}.get(form, str(tmp_path / "out"))
    if form != "docker":
        lamella.copy(f"docker://{registry.host}/own:v1", f"{form}:{place}:v1")
    monkeypatch.setattr(socket, "create_connection", counted)
    options = RegistryOptions(foreign_urls=True, plain_http=True)
    with open_reader(parse_image_name(f"{form}:{place}:v1"), registry=options) as reader:
        reader.foreign_layers = ForeignLayers("here", options, near=Origin("http", "127.0.0.1", 1))
        for start in range(2):
            raw = bytes([start]) * 1_000_000
            layer = Descriptor(
                media_type="application/vnd.oci.image.layer.nondistributable.v1.tar",
                digest=Digest(elsewhere.add_blob("base", raw)),
                size=len(raw),
                urls=[f"{elsewhere.url}/v2/base/blobs/{digest(raw)}"],
            )
            with reader.open_layer(layer) as stream:
                assert b"".join(iter(lambda: stream.read(1 << 20), b"")) == raw
        assert len(elsewhere.asked("GET", "/v2/base/blobs/")) > 30
    assert len(connected) <= 8
    end = time.monotonic() + 10
    while {one.fileno() for one in connected} != {-1}:  # threads may still hold theirs
        assert time.monotonic() < end
        time.sleep(0.01)


class TestImagesInFiles:
    """The same for images in files, which no registry vouches for."""

    @pytest.fixture
    def proxy(self, elsewhere: Registry, monkeypatch: pytest.MonkeyPatch) -> Registry:
        """A proxy that stands for ``layers.example``."""
        monkeypatch.setenv("http_proxy", elsewhere.url)
        monkeypatch.setenv("no_proxy", "")
        return elsewhere

    @pytest.mark.parametrize("form", ["oci", "oci-archive", "store"])
    def test_foreign_layers_are_fetched_with_the_option(
        self,
        proxy: Registry,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        form: str,
    ) -> None:
        monkeypatch.setenv("LAMELLA_ROOT", str(tmp_path / "store"))
        name = _stored(tmp_path, form, "http://layers.example")
        target = f"oci:{tmp_path}/complete:v1"
        assert run(["copy", "-q", name, target]) == 0
        assert proxy.requests == []
        assert run(["unpack", "-q", target, str(tmp_path / "root")]) == 7
        assert run(["unpack", "-q", "--plain-http", "--foreign-urls", target, str(tmp_path / "root")]) == 0
        assert sorted(os.listdir(tmp_path / "root/etc")) == ["base", "own"]
        capsys.readouterr()
        assert run(["verify", "--json", "--plain-http", "--foreign-urls", name]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["blobs"], told["foreign"]) == (4, [])
        assert run(["copy", "-q", "--plain-http", "--foreign-urls", name, target]) == 0
        assert (tmp_path / "complete/blobs" / FOREIGN.replace(":", "/")).read_bytes() == IMAGE.blobs[FOREIGN]
        assert proxy.credentials_seen() == []
        assert {request.method for request in proxy.requests} == {"GET"}

    def test_wrong_bytes_are_refused(self, proxy: Registry, tmp_path: Path) -> None:
        proxy.blobs[FOREIGN] = bytes(len(IMAGE.blobs[FOREIGN]))
        name = _stored(tmp_path, "oci", "http://layers.example")
        assert run(["copy", "-q", "--plain-http", "--foreign-urls", name, f"oci:{tmp_path}/new:v1"]) == 8
        assert not (tmp_path / "new").exists()

    def test_foreign_layers_without_tls_need_plain_http(
        self, proxy: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        name = _stored(tmp_path, "oci", "http://layers.example")
        assert run(["unpack", "-q", "--foreign-urls", name, str(tmp_path / "root")]) == 9
        assert "refused to fetch a layer without TLS from layers.example" in capsys.readouterr().err
        assert proxy.requests == []

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254"])
    def test_addresses_of_the_machines_own_services_are_refused(
        self, elsewhere: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str], host: str
    ) -> None:
        name = _stored(tmp_path, "oci", f"http://{host}:{elsewhere.host.rpartition(':')[2]}")
        assert run(["unpack", "-q", "--plain-http", "--foreign-urls", name, str(tmp_path / "root")]) == 9
        assert f"refused to connect to {host.strip('[]')}" in capsys.readouterr().err
        assert elsewhere.requests == []


def _stored(tmp_path: Path, form: str, base: str) -> str:
    """The name of an image in ``form`` that lacks a layer, whose URL is below ``base``."""
    foreign = {
        **IMAGE.manifest["layers"][0],
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "urls": [f"{base}/v2/base/blobs/{FOREIGN}"],
    }
    raw = compact({**IMAGE.manifest, "layers": [foreign, IMAGE.manifest["layers"][1]]})
    blobs = {name: blob for name, blob in IMAGE.blobs.items() if name not in (FOREIGN, IMAGE.descriptor["digest"])}
    entry = {"mediaType": IMAGE.manifest["mediaType"], "digest": digest(raw), "size": len(raw)}
    write_layout(f"{tmp_path}/layout", [tagged(entry, "v1")], {**blobs, digest(raw): raw})
    layout, place = f"oci:{tmp_path}/layout:v1", "registry.example/app" if form == "store" else f"{tmp_path}/other"
    if form == "oci":
        return layout
    assert lamella.copy(layout, f"{form}:{place}:v1").left == 1
    return f"{form}:{place}:v1"


def registry_digest(registry: Registry) -> str:
    return digest(registry.manifests["app", "v1"][1])
