# SPDX-License-Identifier: Apache-2.0
"""A real containerd whose snapshots, layers and blobs Lamella keeps, unpacks and makes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.interop.daemons import (
    Ctr,
    Release,
    archive,
    compiled,
    containerd_running,
    lamella_serving,
    runnable,
)

from lamella.service.endpoints.plugin import CONTENT

pytestmark = [pytest.mark.interop, pytest.mark.root]

KINDS = {"lamella": "overlayfs", "lamella-native": "native", "lamella-erofs": "erofs"}
SPEAKS = "lower -1 0\n"
"""What the image's program says."""


@pytest.fixture(scope="module")
def program(needs: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compiled(needs("gcc"), tmp_path_factory.mktemp("program"))


@pytest.fixture
def where(where: Path, needs: Callable[..., str]) -> Path:
    needs("runc")
    return where


def printed(where: Path, version: str = "1.7") -> str:
    """The configuration that Lamella prints, without the line that containerd's own begins with."""
    command = [sys.executable, "-m", "lamella", "--root", str(where / "store"), "serve", "--plugin"]
    command += [str(where / "p.sock"), "--print-containerd-config", version]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split("\n", 1)[1]


@pytest.fixture
def ctr(where: Path, release: Release) -> Iterator[Ctr]:
    with (
        lamella_serving(where, "--plugin", where / "p.sock", "--containerd", where / "containerd/socket"),
        containerd_running(where / "containerd", printed(where, release.name), release=release) as ctr,
    ):
        yield ctr


def imported(ctr: Ctr, program: bytes, *options: str) -> str:
    """Import the image without unpacking it; its name."""
    data = archive(runnable(program), "one")
    ctr("images", "import", "--no-unpack", *options, "--base-name", "example.org/small", "-", stdin=data)
    return "example.org/small:one"


def unpacked(ctr: Ctr, program: bytes, kind: str) -> str:
    """Import the image and unpack it into the snapshotter; its name."""
    name = imported(ctr, program)
    digest = runnable(program).descriptor["digest"]
    ctr("snapshots", "--snapshotter", kind, "unpack", "--snapshotter", kind, digest)
    return name


def places(where: Path, kind: str) -> list[str]:
    """The directories of the snapshots that Lamella has."""
    home = where / "store/plugin/snapshots" / KINDS[kind]
    return sorted(os.listdir(home)) if home.exists() else []


def logged(where: Path) -> str:
    return (where / "lamella.log").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_a_container_runs_and_what_it_changed_is_a_layer(kind: str, ctr: Ctr, program: bytes, where: Path) -> None:
    image = unpacked(ctr, program, kind)
    assert len(places(where, kind)) == 2
    assert ctr("run", "--snapshotter", kind, image, "box", code=7) == SPEAKS
    media_type = "application/vnd.oci.image.layer.v1.tar"
    call = ("snapshots", "--snapshotter", kind)
    with tarfile.open(fileobj=io.BytesIO(ctr.raw(*call, "diff", "--media-type", media_type, "--keep", "box"))) as tar:
        assert {"made", "real/.wh.lower"} <= set(tar.getnames())
    ctr(*call, "commit", "result", "box")
    ctr(*call, "label", "result", "containerd.io/gc.root=now")
    ctr("containers", "rm", "box")
    ctr(*call, "rm", "result")
    ctr("images", "rm", "--sync", image)
    # Containerd's collector asks for all that is here, and takes away what it knows no more.
    assert ctr.table(*call, "ls") == []
    assert places(where, kind) == []
    assert "ERROR" not in logged(where)
    assert "Traceback" not in logged(where)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_goes_all_its_way(kind: str, ctr: Ctr, program: bytes, where: Path) -> None:
    """Imported, unpacked, run, what changed made a layer of a new image, that exported, all removed, and again."""
    first, second = "example.org/small:one", "example.org/small:two"
    target = where / "target"
    target.mkdir()

    def seen(name: str) -> None:
        ctr("snapshots", "--snapshotter", kind, "unpack", "--snapshotter", kind, ctr.digest(name))
        ctr("images", "mount", "--snapshotter", kind, name, target)
        try:
            assert (target / "made").read_text() == "made"
            assert sorted(os.listdir(target / "real")) == []
            assert not (target / "gone").exists()
        finally:
            ctr("images", "unmount", "--snapshotter", kind, "--rm", target)

    def all_removed(*names: str) -> None:
        for row in ctr.table("leases", "ls"):
            ctr("leases", "rm", row[0])
        ctr("images", "rm", "--sync", *names)
        assert ctr.table("images", "ls") == []
        assert ctr.table("content", "ls") == []
        assert ctr.table("snapshots", "--snapshotter", kind, "ls") == []
        assert places(where, kind) == []

    assert unpacked(ctr, program, kind) == first
    assert ctr("run", "--snapshotter", kind, first, "box", code=7) == SPEAKS
    media_type = "application/vnd.oci.image.layer.v1.tar"
    change = where / "change.tar"
    change.write_bytes(ctr.raw("snapshots", "--snapshotter", kind, "diff", "--media-type", media_type, "box"))
    ctr("containers", "rm", "box")
    command = [sys.executable, "-m", "lamella", "append", f"containerd:{first}", str(change), f"containerd:{second}"]
    command += ["--containerd", str(ctr.address), "--containerd-namespace", ctr.namespace]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    seen(second)
    exported = where / "exported.tar"
    ctr("images", "export", "--local", exported, second)
    all_removed(first, second)
    ctr("images", "import", "--no-unpack", exported)
    seen(second)
    all_removed(second)
    assert "ERROR" not in logged(where)
    assert "Traceback" not in logged(where)


def test_an_import_unpacks_into_the_snapshotter_that_the_namespace_names(ctr: Ctr, program: bytes, where: Path) -> None:
    ctr("namespaces", "create", "tests")
    ctr("namespaces", "label", "tests", "containerd.io/defaults/snapshotter=lamella")
    data = archive(runnable(program), "one")
    ctr("images", "import", "--local", "--base-name", "example.org/small", "-", stdin=data)
    assert len(places(where, "lamella")) == 2
    assert ctr("images", "ls", "-q").strip() == "example.org/small:one"
    exported = where / "exported.tar"
    # By way of the server, containerd's client may end before all that it has received is in the file.
    ctr("images", "export", "--local", exported, "example.org/small:one")
    with tarfile.open(exported) as tar:
        assert runnable(program).blobs.keys() <= {
            name.removeprefix("blobs/").replace("/", ":") for name in tar.getnames()
        }


def test_a_transfer_unpacks_into_the_snapshotter_that_it_names(ctr: Ctr, program: bytes, where: Path) -> None:
    data = archive(runnable(program), "one")
    options = ("--local=false", "--snapshotter", "lamella", "--base-name", "example.org/small")
    ctr("images", "import", *options, "-", stdin=data)
    assert len(places(where, "lamella")) == 2
    assert ctr("run", "--snapshotter", "lamella", "example.org/small:one", "box", code=7) == SPEAKS


def test_containerds_own_snapshots_are_unpacked_and_compared_too(ctr: Ctr, program: bytes, where: Path) -> None:
    image = unpacked(ctr, program, "native")
    assert places(where, "lamella") == []
    assert ctr("run", "--snapshotter", "native", image, "box", code=7) == SPEAKS
    with tarfile.open(fileobj=io.BytesIO(ctr.raw("snapshots", "--snapshotter", "native", "diff", "box"))) as tar:
        assert {"made", "real/.wh.lower"} <= set(tar.getnames())


def test_a_layer_that_lamella_makes_lasts_until_the_client_has_used_it(ctr: Ctr, program: bytes, where: Path) -> None:
    image = unpacked(ctr, program, "lamella")
    ctr("run", "--snapshotter", "lamella", image, "box", code=7)
    before = {row[0] for row in ctr.table("content", "ls")}
    ctr.raw("snapshots", "--snapshotter", "lamella", "diff", "--keep", "box")
    (made,) = {row[0] for row in ctr.table("content", "ls")} - before
    ctr("images", "rm", "--sync", image)
    assert made in {row[0] for row in ctr.table("content", "ls")}
    (lease,) = [row[0] for row in ctr.table("leases", "ls") if "gc.expire" in " ".join(row)]
    assert lease.startswith("lamella-")


def is_away(said: str) -> bool:
    """Whether this is about a plugin that does not answer."""
    return "dial unix" in said or "unavailable" in said.lower()


def await_plugin(ctr: Ctr) -> None:
    """Return when containerd has found the plugin; it tries again after some three seconds at the latest."""
    end = time.monotonic() + 20
    while is_away(ctr.said("snapshots", "--snapshotter", "lamella", "ls")):
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_plugin_that_was_away_is_found_again(where: Path, program: bytes, release: Release) -> None:
    serving = partial(lamella_serving, where, "--plugin", where / "p.sock", "--containerd", where / "containerd/socket")
    with containerd_running(where / "containerd", printed(where, release.name), release=release) as ctr:
        with serving():
            await_plugin(ctr)  # containerd may have looked for it when it began
            image = unpacked(ctr, program, "lamella")
        assert is_away(ctr.refused("run", "--snapshotter", "lamella", image, "one"))
        with serving():
            await_plugin(ctr)
            assert ctr("run", "--snapshotter", "lamella", image, "two", code=7) == SPEAKS


def test_blobs_may_be_lamellas_as_well(where: Path, program: bytes, release: Release) -> None:
    socket = where / "p.sock"
    further = printed(where, release.name) + f'[proxy_plugins.{CONTENT}]\n  type = "content"\n  address = "{socket}"\n'
    with (
        lamella_serving(where, "--plugin", socket, "--containerd", where / "containerd/socket"),
        containerd_running(where / "containerd", further, '"io.containerd.content.v1.content"', release) as ctr,
    ):
        image = unpacked(ctr, program, "lamella")
        blobs = where / "store/plugin/blobs/sha256"
        kept = {f"sha256:{name}" for name in os.listdir(blobs)}
        assert runnable(program).blobs.keys() <= kept
        assert ctr("run", "--snapshotter", "lamella", image, "box", code=7) == SPEAKS
        ctr.raw("snapshots", "--snapshotter", "lamella", "diff", "box")
        ctr("containers", "rm", "box")
        for row in ctr.table("leases", "ls"):
            ctr("leases", "rm", row[0])
        ctr("images", "rm", "--sync", image)
        assert ctr.table("content", "ls") == []
        assert os.listdir(blobs) == []
        assert places(where, "lamella") == []
        assert "Traceback" not in logged(where)


@pytest.mark.parametrize(("version", "number"), [("1.7", 2), ("2", 3)])
def test_what_is_printed_is_a_configuration(version: str, number: int, where: Path) -> None:
    text = f"version = {number}\n{printed(where, version)}"
    config = tomllib.loads(text)
    assert number == config["version"]
    assert {str(where / "p.sock")} == {plugin["address"] for plugin in config["proxy_plugins"].values()}
    assert [*KINDS, "lamella-diff"] == list(config["proxy_plugins"])
    unpacking = config["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"]
    assert [*KINDS, "overlayfs"] == [row["snapshotter"] for row in unpacking]


def test_containerd_takes_all_of_it(ctr: Ctr, where: Path) -> None:
    states = {row[1]: row[-1] for row in ctr.table("plugins", "ls")}
    assert {"ok"} == {states[name] for name in (*KINDS, "lamella-diff", "walking", "local")}
    described = ctr("plugins", "ls", "-d", "id==lamella")
    assert str(where / "store/plugin/snapshots/overlayfs") in described
    assert "multiple differs" not in (where / "containerd/containerd.log").read_text()
