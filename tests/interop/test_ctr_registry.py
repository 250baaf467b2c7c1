# SPDX-License-Identifier: Apache-2.0
"""What ctr pulls and pushes with a server of Lamella's: by itself, and where the server is to do it."""

from __future__ import annotations

import base64
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.interop.daemons import FIRST, SECOND, Ctr, Release, archive, lamella_serving, runnable
from tests.registry.docker_registry import PASSWORD, USER, DockerRegistry, running

from lamella.oci.platform import host_platform
from lamella.operations.copy import copy
from lamella.testing.images import SmallImage, index_of, small_image, tagged, write_layout

pytestmark = pytest.mark.interop

IMAGE = runnable(b"x" * 3_000_000)
ARM = small_image({"a": b"arm"}, platform="linux/s390x")
ENTRY, INDEX = index_of(ARM, IMAGE)
ALL = {**IMAGE.blobs, **ARM.blobs, ENTRY["digest"]: INDEX}
WAYS = ["--local=true", "--local=false"]
"""By ctr itself, or by the server, which is what ctr of containerd 2 does unless it is told otherwise."""


@pytest.fixture(scope="module")
def registry(needs: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with running(DockerRegistry(needs("docker-registry"), tmp_path_factory.mktemp("registry"))) as server:
        yield server


@pytest.fixture
def filled(registry: DockerRegistry, tmp_path: Path) -> DockerRegistry:
    """Return a registry with an image and an index of two."""
    entries = [tagged(ENTRY, "all"), tagged(IMAGE.descriptor, "one")]
    layout = f"oci:{write_layout(str(tmp_path / 'layout'), entries, ALL)}"
    copy(f"{layout}:one", f"docker://{registry.host}/small:one")
    copy(f"{layout}:all", f"docker://{registry.host}/small:all", all_platforms=True)
    return registry


@pytest.fixture
def ctr(where: Path, release: Release) -> Iterator[Ctr]:
    with lamella_serving(where, "--address", where / "d.sock"):
        yield Ctr(where / "d.sock", release=release)
    log = (where / "lamella.log").read_text()
    assert "Traceback" not in log


def digests(ctr: Ctr) -> set[str]:
    return set(ctr("content", "ls", "--quiet").split())


def names(ctr: Ctr) -> list[str]:
    return ctr("images", "ls", "--quiet").split()


def layers(image: SmallImage) -> set[str]:
    return {str(layer["digest"]) for layer in image.manifest["layers"]}


@pytest.mark.root
@pytest.mark.parametrize("way", WAYS)
def test_an_image_is_pulled_and_unpacked_and_lasts(way: str, ctr: Ctr, filled: DockerRegistry) -> None:
    name = f"{filled.host}/small:one"
    # The first release's ctr has the server unpack for platforms that are named.
    ctr("images", "pull", way, "--plain-http", "--platform", str(host_platform()), name)
    assert ctr.table("images", "ls")[0][:3] == [name, IMAGE.descriptor["mediaType"], IMAGE.descriptor["digest"]]
    ctr("leases", "rm", "--sync", ctr("leases", "create").strip())  # which collects
    assert digests(ctr) == set(IMAGE.blobs)
    assert len(ctr.table("snapshots", "ls")) == 2
    assert "complete (3/3)" in ctr("images", "check").replace("\t", " ")
    for row in ctr.table("content", "ls"):
        assert "containerd.io/distribution.source.127.0.0.1=small" in row[-1]
    ctr("images", "rm", "--sync", name)
    assert (digests(ctr), ctr.table("snapshots", "ls"), ctr.table("leases", "ls")) == (set(), [], [])


@pytest.mark.root
def test_of_an_index_come_the_platforms_that_are_wanted_and_the_documents_of_the_others(
    ctr: Ctr, filled: DockerRegistry
) -> None:
    name = f"{filled.host}/small:all"
    first = ctr.release is FIRST
    ctr("images", "pull", "--local=false", "--plain-http", *(["--all-metadata"] if first else []), name)
    assert digests(ctr) == set(ALL) - layers(ARM)
    ctr("images", "rm", "--sync", name)
    assert digests(ctr) == set()
    ctr("images", "pull", "--local=false", "--plain-http", *([] if first else ["--skip-metadata"]), name)
    assert digests(ctr) == {*IMAGE.blobs, ENTRY["digest"]}
    ctr("images", "pull", "--local=false", "--plain-http", "--all-platforms", name)
    assert digests(ctr) == set(ALL)
    assert "there is no image for" in ctr.refused(
        "images", "pull", "--local=false", "--plain-http", "--platform", "linux/riscv64", name
    )


@pytest.mark.root
def test_what_happens_to_each_part_is_told(ctr: Ctr, filled: DockerRegistry) -> None:
    name = f"{filled.host}/small:one"
    said = ctr("images", "pull", "--local=false", "--plain-http", name)
    assert "complete" in said
    assert "saved" in said
    assert f"Pulling from OCI Registry ({name})" in said
    again = ctr("images", "pull", "--local=false", "--plain-http", name)
    assert "already exists" in again


@pytest.mark.root
@pytest.mark.parametrize("release", [SECOND], indirect=True, ids=str)  # the first one's does not say it
def test_the_client_names_a_directory_of_mirrors_that_the_server_reads(
    ctr: Ctr, filled: DockerRegistry, where: Path
) -> None:
    hosts = where / "hosts/registry.example"
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text(f'[host."http://{filled.host}"]\ncapabilities = ["pull", "resolve"]\n')
    ctr("images", "pull", "--local=false", "--hosts-dir", where / "hosts", "registry.example/small:one")
    assert names(ctr) == ["registry.example/small:one"]
    assert digests(ctr) == set(IMAGE.blobs)


@pytest.mark.root
@pytest.mark.parametrize("release", [SECOND], indirect=True, ids=str)  # the first one's does not say it
def test_a_client_is_shown_what_is_said_to_the_registry_but_for_secrets(ctr: Ctr, closed: DockerRegistry) -> None:
    name = f"{closed.host}/small:one"
    call = ("--local=false", "--plain-http", "--user", f"{USER}:{PASSWORD}")
    brought(ctr, name)
    ctr("images", "push", *call, name)
    ctr("images", "rm", "--sync", name)
    said = ctr.told("images", "pull", *call, "--http-dump", name)
    assert f"GET http://{closed.host}/v2/small/manifests/one HTTP/1.1" in said
    assert f"HTTP 401 for GET http://{closed.host}/v2/small/manifests/one" in said
    assert f"docker-content-digest: {IMAGE.descriptor['digest']}" in said
    assert "Authorization: (not shown)" in said
    assert f"HTTP 200 for GET http://{closed.host}/v2/small/blobs/{IMAGE.manifest['config']['digest']}" in said
    assert PASSWORD not in said
    assert base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode() not in said
    assert "connections are not traced" in ctr.refused("images", "pull", "--local=false", "--http-trace", name)


@pytest.mark.root
@pytest.mark.parametrize("way", WAYS)
def test_what_was_pulled_is_pushed_elsewhere_byte_for_byte(
    way: str, ctr: Ctr, filled: DockerRegistry, tmp_path: Path
) -> None:
    name, target = f"{filled.host}/small:all", f"{filled.host}/other/{ctr.release.config}{way[-4:]}:again"
    ctr("images", "pull", "--local=false", "--plain-http", "--all-platforms", name)
    said = ctr("images", "push", way, "--plain-http", target, name)
    if way == "--local=false":
        assert f"Pushing to OCI Registry ({target})" in said
    copy(f"docker://{target}", f"oci:{tmp_path}/out:x", all_platforms=True)
    for digest, raw in ALL.items():
        assert raw == (tmp_path / "out/blobs" / digest.replace(":", "/")).read_bytes()


@pytest.mark.root
def test_an_image_without_all_its_layers_is_not_pushed(ctr: Ctr, filled: DockerRegistry) -> None:
    name = f"{filled.host}/small:all"
    ctr("images", "pull", "--local=false", "--plain-http", name)
    target = f"{filled.host}/none:x"
    assert "there is no blob" in ctr.refused("images", "push", "--local=false", "--plain-http", target, name)
    assert "MANIFEST_UNKNOWN" in ctr.refused("images", "pull", "--local=false", "--plain-http", target)


@pytest.mark.parametrize(
    ("reference", "said"),
    [("small:none", "MANIFEST_UNKNOWN"), ("small", "names a repository"), ("small@sha256:0", "malformed digest")],
)
def test_what_cannot_be_pulled_is_told_with_its_class(
    reference: str, said: str, ctr: Ctr, filled: DockerRegistry
) -> None:
    told = ctr.refused("images", "pull", "--local=false", "--plain-http", f"{filled.host}/{reference}")
    assert said in told
    assert (digests(ctr), ctr.table("leases", "ls"), ctr.table("images", "ls")) == (set(), [], [])


@pytest.fixture
def closed(needs: Callable[..., str], tmp_path: Path) -> Iterator[DockerRegistry]:
    """Return a registry that wants to know who asks."""
    with running(DockerRegistry(needs("docker-registry"), tmp_path / "closed", basic=True)) as server:
        yield server


@pytest.mark.root
def test_the_client_is_asked_who_it_is_and_nobody_elses_login_is_used(ctr: Ctr, closed: DockerRegistry) -> None:
    name = f"{closed.host}/small:one"
    call = ("--local=false", "--plain-http")
    brought(ctr, name)
    assert "give the server a login" in ctr.refused("images", "push", *call, name)
    assert ctr.refused("images", "push", *call, "--user", f"{USER}:wrong", name)
    ctr("images", "push", *call, "--user", f"{USER}:{PASSWORD}", name)
    ctr("images", "rm", "--sync", name)
    assert ctr.refused("images", "pull", *call, name)
    ctr("images", "pull", *call, "--user", f"{USER}:{PASSWORD}", name)
    assert digests(ctr) == set(IMAGE.blobs)


def brought(ctr: Ctr, name: str) -> None:
    """Have the image by that name."""
    base, _, tag = name.rpartition(":")
    ctr("images", "import", "--local", "--no-unpack", "--base-name", base, "-", stdin=archive(IMAGE, tag))


def test_a_pull_whose_client_is_killed_leaves_nothing_locked(ctr: Ctr, filled: DockerRegistry) -> None:
    call = [ctr.release.program("ctr"), "-a", str(ctr.address), "-n", "tests", "images", "pull", "--local=false"]
    call += ["--plain-http", f"{filled.host}/small:all"]
    for seconds in (0.05, 0.15, 0.3):
        with subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
            try:
                client.wait(seconds)
            except subprocess.TimeoutExpired:
                client.kill()
    ctr("images", "pull", "--local=false", "--plain-http", f"{filled.host}/small:one")
    assert set(IMAGE.blobs) <= digests(ctr)


@pytest.mark.root
def test_the_further_verbs_about_content_and_images(ctr: Ctr, filled: DockerRegistry) -> None:
    name, elsewhere = f"{filled.host}/small:one", f"{filled.host}/objects{ctr.release.config}:x"
    config, manifest = str(IMAGE.manifest["config"]["digest"]), str(IMAGE.descriptor["digest"])
    ctr("content", "fetch", "--plain-http", name)
    assert digests(ctr) == set(IMAGE.blobs)
    assert ctr.raw("content", "fetch-object", "--plain-http", name).strip() == IMAGE.blobs[manifest]
    assert ctr.raw("content", "fetch-blob", "--plain-http", name, config) == IMAGE.blobs[config]
    for blob in (*sorted(layers(IMAGE)), config):
        assert blob in ctr("content", "push-object", "--plain-http", elsewhere, blob, "application/octet-stream")
    ctr("content", "push-object", "--plain-http", elsewhere, manifest, IMAGE.descriptor["mediaType"])
    assert ctr.raw("content", "fetch-object", "--plain-http", elsewhere).strip() == IMAGE.blobs[manifest]
    edited = ctr("content", "edit", "--editor", "sed -i s/root/toor/", config).strip()
    assert edited in ctr("content", "ls", "--quiet")
    ctr("snapshots", "unpack", manifest)
    assert len(ctr.table("images", "usage", name)) == 2
    ctr("images", "convert", "--uncompress", name, "plain:1")
    assert names(ctr) == [name, "plain:1"]
    if ctr.release is not FIRST:
        assert manifest in ctr("images", "inspect", name)
    ctr("images", "rm", "--sync", "plain:1")
    # Layers that are unpacked are no longer held, and go.
    ctr("content", "prune", "references")
    assert digests(ctr) == set(IMAGE.blobs) - layers(IMAGE)
    ctr("images", "prune", "--all")
    end = time.monotonic() + 20
    while digests(ctr):
        assert time.monotonic() < end
    assert (names(ctr), ctr.table("snapshots", "ls")) == ([], [])
