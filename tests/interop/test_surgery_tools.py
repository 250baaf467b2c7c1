# SPDX-License-Identifier: Apache-2.0
"""What surgery makes, in the hands of skopeo and umoci: they read it, and copy it without a change of digest."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.registry.docker_registry import DockerRegistry, running

import lamella
from lamella.changes.dump import dump
from lamella.changes.tree import walk
from lamella.images.resolve import open_platform_image
from lamella.layers.directory.tree import DirectoryTree
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import encode
from lamella.operations.surgery.new_layers import FileLike
from lamella.operations.trees.open import open_tree
from lamella.registry.reader import RegistryReader

pytestmark = [pytest.mark.interop, pytest.mark.root]

Needs = Callable[..., str]


@pytest.fixture(scope="module")
def registry(needs: Needs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Return a registry on loopback."""
    with running(DockerRegistry(needs("docker-registry"), tmp_path_factory.mktemp("registry"))) as server:
        yield server


def run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def place(tmp_path: Path) -> str:
    """Return a layout with a base, another base, and an image on the first."""
    for number in ("1", "2"):
        root = tmp_path / f"base{number}"
        (root / "usr/lib").mkdir(parents=True)
        (root / "usr/lib/version").write_text(number)
        (root / "usr/lib/large").write_bytes(os.urandom(200_000))
        lamella.pack(
            root, f"oci:{tmp_path}/images:base{number}", lamella.Settings(env={"PATH": "/bin"}, platform="linux/amd64")
        )
    files: dict[str, FileLike] = {
        "app": lamella.File(b"program", mode=0o4755, uid=7),
        "latest": lamella.Symlink("app"),
        "usr/lib/x": "x",
    }
    lamella.append(f"oci:{tmp_path}/images:base1", [files, {"usr/lib/x": None}], f"oci:{tmp_path}/images:app")
    return f"oci:{tmp_path}/images"


def made(place: str) -> dict[str, str]:
    """Return images of every operation."""
    app = f"{place}:app"
    lamella.mutate(
        app,
        f"{place}:mutated",
        lamella.Settings(cmd=["/app"], user="7", labels={"k": "v"}, exposed_ports=["80"], volumes=["/data"]),
        annotations={"a": "b"},
    )
    lamella.flatten(app, f"{place}:range", layers="1..2")
    lamella.rebase(app, f"{place}:rebased", old_base=f"{place}:base1", new_base=f"{place}:base2")
    lamella.convert(app, f"{place}:zstd", lamella.ConvertOptions(compression="zstd"))
    lamella.convert(app, f"{place}:plain", lamella.ConvertOptions(compression="none"))
    lamella.Image.open(app).append({"more": b""}).write(f"{place}:built")
    names = ("mutated", "range", "rebased", "zstd", "plain", "built")
    return {name: f"{place}:{name}" for name in names}


def test_skopeo_reads_and_copies_each_without_a_change(place: str, needs: Needs, tmp_path: Path) -> None:
    skopeo = needs("skopeo")
    for what, name in made(place).items():
        with open_platform_image(name) as image:
            expected = image.descriptor.digest
            config = json.loads(run(skopeo, "inspect", "--config", name))
            assert config["rootfs"]["diff_ids"] == [layer.diff_id for layer in image.layers]
        run(skopeo, "--insecure-policy", "copy", "--preserve-digests", name, f"dir:{tmp_path}/{what}")
        assert lamella.Digest.of((tmp_path / what / "manifest.json").read_bytes()) == expected
    config = json.loads(run(skopeo, "inspect", "--config", f"{place}:mutated"))["config"]
    assert config == {
        "User": "7",
        "ExposedPorts": {"80": {}},
        "Env": ["PATH=/bin"],
        "Cmd": ["/app"],
        "Volumes": {"/data": {}},
        "Labels": {"k": "v"},
    }


def test_umoci_unpacks_each_to_the_tree_that_it_is(place: str, needs: Needs, tmp_path: Path) -> None:
    umoci = needs("umoci")
    for what, name in made(place).items():
        if what == "zstd":  # not every release of umoci reads it
            continue
        run(umoci, "unpack", "--image", name.removeprefix("oci:"), tmp_path / what)
        with DirectoryTree(tmp_path / what / "rootfs", owners="actual") as there, open_tree(name) as view:
            # umoci gives directories that a layer has something put into another time.
            assert list(without_directory_times(walk(there))) == list(without_directory_times(walk(view)))


def without_directory_times(changes: Any) -> list[str]:
    lines = []
    for line in dump(changes, extents=False):
        words = line.split(" ")
        if words[1] == "directory":
            words[4] = "-"
        lines.append(" ".join(words))
    return lines[1:]


def test_skopeo_finds_the_same_layers_in_dockers_format(
    place: str, registry: DockerRegistry, needs: Needs, tmp_path: Path
) -> None:
    target = f"{registry.host}/surgery/docker:it"
    lamella.convert(f"{place}:app", f"docker://{target}", lamella.ConvertOptions(format="docker"))
    skopeo = needs("skopeo")
    run(skopeo, "--insecure-policy", "copy", "--format", "v2s2", f"{place}:app", f"dir:{tmp_path}/docker")
    theirs = json.loads((tmp_path / "docker/manifest.json").read_bytes())
    ours = json.loads(run(skopeo, "inspect", "--tls-verify=false", "--raw", f"docker://{target}"))
    assert ours == theirs


def test_surgery_in_a_registry_leaves_the_layers_of_the_base_where_they_are(
    place: str, registry: DockerRegistry, needs: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = f"docker://{registry.host}/surgery"
    lamella.copy(f"{place}:base1", f"{remote}/base:1")
    lamella.copy(f"{place}:base2", f"{remote}/base:2")
    real = RegistryReader.open_blob

    def documents_only(reader: RegistryReader, descriptor: Descriptor) -> object:
        assert descriptor.size < 100_000
        return real(reader, descriptor)

    monkeypatch.setattr(RegistryReader, "open_blob", documents_only)
    app = f"{remote}/app:it"
    lamella.append(f"{remote}/base:1", {"app": b"program"}, app)
    lamella.mutate(app, app, lamella.Settings(cmd=["/app"]))
    lamella.rebase(app, app, old_base=f"{remote}/base:1", new_base=f"{remote}/base:2")
    local = lamella.Image.open(f"{place}:base2").append({"app": b"program"}).with_config(cmd=["/app"])
    raw = run(needs("skopeo"), "inspect", "--tls-verify=false", "--raw", app)
    assert json.loads(raw)["layers"] == json.loads(encode(local.manifest))["layers"]
    annotations = json.loads(raw)["annotations"]
    assert annotations["org.opencontainers.image.base.name"] == f"{registry.host}/surgery/base:2"
    lamella.rebase(app, app, new_base=f"{remote}/base:1")  # the old one is found by the annotations


def test_skopeo_finds_the_platforms_of_an_index(place: str, needs: Needs, tmp_path: Path) -> None:
    skopeo = needs("skopeo")
    lamella.mutate(f"{place}:app", f"{place}:arm", lamella.Settings(platform="linux/arm64/v8"))
    lamella.index([f"{place}:app", f"{place}:arm"], f"{place}:multi")
    for architecture in ("amd64", "arm64"):
        about = json.loads(run(skopeo, "--override-arch", architecture, "inspect", f"{place}:multi"))
        assert about["Architecture"] == architecture
    run(skopeo, "--insecure-policy", "copy", "--all", "--preserve-digests", f"{place}:multi", f"oci:{tmp_path}/copy:it")
    index = json.loads((tmp_path / "copy/index.json").read_bytes())["manifests"][0]
    listed = json.loads((tmp_path / "images/index.json").read_bytes())["manifests"]
    assert index["digest"] in {entry["digest"] for entry in listed}
    lamella.subset(f"{place}:multi", f"{place}:one", ["linux/arm64"])
    raw = json.loads(run(skopeo, "inspect", "--raw", f"{place}:one"))
    assert [entry["platform"]["architecture"] for entry in raw["manifests"]] == ["arm64"]
