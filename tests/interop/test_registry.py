# SPDX-License-Identifier: Apache-2.0
"""Images keep their digests through the distribution project's registry and skopeo."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.registry.docker_registry import DockerRegistry, running

from lamella.cli.main import run as lamella
from lamella.digests import parse_digest
from lamella.errors import NotFound
from lamella.images.resolve import open_platform_image
from lamella.operations.copy import copy
from lamella.registry.client import Client
from lamella.testing.images import compact, digest, index_of, small_image, tagged, write_layout

Needs = Callable[..., str]

pytestmark = pytest.mark.interop

IMAGE = small_image({"etc/name": b"lamella", "bin/sh": b"#!"}, {"etc/.wh.name": b"", "etc/x": b"x" * 5000}, Cmd=["sh"])
ARM = small_image({"etc/name": b"arm"}, platform="linux/arm64/v8")
ENTRY, INDEX = index_of(ARM, IMAGE)
NOISE = random.Random(11).randbytes(20 << 20)
"""More than one range, and more than one piece."""


@pytest.fixture(scope="module")
def registry(needs: Needs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with running(DockerRegistry(needs("docker-registry"), tmp_path_factory.mktemp("registry"))) as server:
        yield server


@pytest.fixture
def skopeo(needs: Needs) -> Callable[..., str]:
    tool = needs("skopeo")

    def call(*arguments: str) -> str:
        command = [tool, "--insecure-policy", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    return call


@pytest.fixture
def layout(tmp_path: Path) -> str:
    blobs = {**IMAGE.blobs, **ARM.blobs, digest(INDEX): INDEX}
    entries = [tagged(ENTRY, "all"), tagged(IMAGE.descriptor, "one")]
    return f"oci:{write_layout(str(tmp_path / 'layout'), entries, blobs)}"


def named(registry: DockerRegistry, name: str) -> str:
    return f"docker://{registry.host}/{name}"


def test_an_image_pushed_by_skopeo_is_pulled(
    registry: DockerRegistry, skopeo: Callable[..., str], layout: str, tmp_path: Path
) -> None:
    name = named(registry, "from/skopeo:all")
    skopeo("copy", "-q", "--all", "--dest-tls-verify=false", f"{layout}:all", name)
    copied = copy(name, f"oci:{tmp_path}/back:all", all_platforms=True)
    assert copied.entry.digest == ENTRY["digest"]
    with open_platform_image(name, "linux/amd64") as image:
        assert image.descriptor.digest == IMAGE.descriptor["digest"]


def test_a_pushed_image_is_pulled_by_skopeo(
    registry: DockerRegistry, skopeo: Callable[..., str], layout: str, tmp_path: Path
) -> None:
    name = named(registry, "for/skopeo:all")
    copy(f"{layout}:all", name, all_platforms=True)
    assert skopeo("inspect", "--raw", "--tls-verify=false", name).encode() == INDEX
    skopeo("copy", "-q", "--all", "--src-tls-verify=false", name, f"oci:{tmp_path}/back:all")
    index = json.loads((tmp_path / "back/index.json").read_text())
    assert [entry["digest"] for entry in index["manifests"]] == [ENTRY["digest"]]
    inspected = json.loads(skopeo("inspect", "--tls-verify=false", "--override-arch=amd64", name))
    assert inspected["Layers"] == [layer["digest"] for layer in IMAGE.manifest["layers"]]


def test_docker_media_types_are_unchanged(
    registry: DockerRegistry, skopeo: Callable[..., str], layout: str, tmp_path: Path
) -> None:
    name = named(registry, "of/docker:v1")
    skopeo("copy", "-q", "--format=v2s2", "--dest-tls-verify=false", f"{layout}:one", name)
    raw = skopeo("inspect", "--raw", "--tls-verify=false", name).encode()
    copied = copy(name, named(registry, "of/docker-too:v1"))
    assert copied.entry.digest == digest(raw)
    assert copied.entry.media_type == "application/vnd.docker.distribution.manifest.v2+json"
    with open_platform_image(name) as image:
        assert [str(layer.diff_id) for layer in image.layers] == IMAGE.config["rootfs"]["diff_ids"]


def test_an_image_is_unpacked_from_a_registry(registry: DockerRegistry, layout: str, tmp_path: Path) -> None:
    name = named(registry, "unpacked:v1")
    copy(f"{layout}:one", name)
    assert lamella(["unpack", name, str(tmp_path / "root")]) == 0
    assert sorted(os.listdir(tmp_path / "root/etc")) == ["x"]


@pytest.mark.parametrize("verb", [["ls"], ["inspect"], ["tree"], ["verify"], ["cat"]])
def test_the_verbs_take_images_in_registries(
    registry: DockerRegistry, layout: str, verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = named(registry, "verbs:v1")
    copy(f"{layout}:one", name)
    assert lamella([*verb, f"{name}::etc/x" if verb == ["cat"] else name]) == 0
    assert capsys.readouterr().out


def test_large_blobs_are_pushed_in_pieces_and_pulled_in_ranges(registry: DockerRegistry, tmp_path: Path) -> None:
    image = small_image({"noise": NOISE}, compress=False)
    source = write_layout(str(tmp_path / "large"), [tagged(image.descriptor, "v1")], image.blobs)
    name = named(registry, "large:v1")
    copy(f"oci:{source}:v1", name)
    back = copy(name, f"oci:{tmp_path}/back:v1")
    assert back.entry.digest == image.descriptor["digest"]
    lamella(["unpack", name, str(tmp_path / "root")])
    assert (tmp_path / "root/noise").read_bytes() == NOISE


def test_blobs_are_mounted_between_repositories(registry: DockerRegistry, layout: str) -> None:
    copy(f"{layout}:one", named(registry, "mount/from:v1"))
    copied = copy(named(registry, "mount/from:v1"), named(registry, "mount/to:v1"))
    assert copied.blobs == 1  # the manifest
    assert copied.entry.digest == IMAGE.descriptor["digest"]


def test_tags_and_repositories_are_listed_and_deleted(registry: DockerRegistry, layout: str) -> None:
    for tag in ("b", "a", "c"):
        copy(f"{layout}:one", named(registry, f"listed/here:{tag}"))
    client = Client(registry.host, "listed/here")
    assert sorted(client.tags()) == ["a", "b", "c"]
    assert "listed/here" in list(Client(registry.host).catalog())
    client.delete_manifest(IMAGE.descriptor["digest"])
    assert client.find_manifest("a") is None
    client.delete_blob(parse_digest(IMAGE.manifest["layers"][0]["digest"]))
    with pytest.raises(NotFound):
        list(Client(registry.host, "not/there").tags())
    client.close()


def test_referrers_are_listed_without_the_api(registry: DockerRegistry, layout: str) -> None:
    copy(f"{layout}:one", named(registry, "referred:v1"))
    client = Client(registry.host, "referred")
    subject = parse_digest(IMAGE.descriptor["digest"])
    assert client.referrers(subject) == []
    signature = compact({**IMAGE.manifest, "subject": IMAGE.descriptor, "artifactType": "application/x.signature"})
    client.put_manifest(digest(signature), IMAGE.manifest["mediaType"], signature)
    assert [one.digest for one in client.referrers(subject, "application/x.signature")] == [digest(signature)]
    client.close()


def test_six_blobs_at_once_take_little_memory(registry: DockerRegistry, tmp_path: Path) -> None:
    """Peak memory of a process that reads six large blobs concurrently in ranges."""
    image = small_image(*({"noise": NOISE + bytes([number])} for number in range(6)), compress=False)
    source = write_layout(str(tmp_path / "large"), [tagged(image.descriptor, "v1")], image.blobs)
    name = named(registry, "memory:v1")
    copy(f"oci:{source}:v1", name)
    script = """if True:
        import hashlib, re, sys, threading
        from lamella.images.resolve import open_platform_image
        from lamella.registry import blob_fetch
        blob_fetch.FAST_RATE = 1e18
        with open_platform_image(sys.argv[1]) as image:
            streams = [layer.open() for layer in image.layers]
            bad = []
            def read(layer, stream):
                state = hashlib.sha256()
                while piece := stream.read(1 << 20):
                    state.update(piece)
                if layer.descriptor.digest.hex != state.hexdigest():
                    bad.append(layer)
            threads = [threading.Thread(target=read, args=pair) for pair in zip(image.layers, streams)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            for stream in streams: stream.close()
        peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
        print(len(bad), int(peak[1]) >> 10)
    """
    done = subprocess.run([sys.executable, "-c", script, name], capture_output=True, text=True, check=True)
    bad, peak = map(int, done.stdout.split())
    assert bad == 0
    assert peak < 120
