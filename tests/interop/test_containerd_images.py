# SPDX-License-Identifier: Apache-2.0
"""Images of a real containerd, named ``containerd:REF``: what every verb reads and writes there."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.interop.daemons import Ctr, Release, archive, containerd_running, folder, runnable

from lamella.errors import AlreadyExists, NotFound
from lamella.images.options import ContainerdOptions, containerd_options
from lamella.images.resolve import open_platform_image
from lamella.images.transports import open_reader, parse_image_name
from lamella.operations.copy import copy
from lamella.testing.images import index_of, small_image, tagged, write_layout

pytestmark = [pytest.mark.interop, pytest.mark.root]

NAME = "example.org/small:one"
IMAGE = runnable()
OTHER = small_image({"a": b"other"})


@pytest.fixture(scope="module")
def ctr(release: Release) -> Iterator[Ctr]:
    with folder() as where, containerd_running(where / "containerd", release=release) as ctr:
        yield ctr


@pytest.fixture
def imported(ctr: Ctr) -> Iterator[Ctr]:
    """Return ctr, with the small image in a namespace that nobody else has."""
    space = ctr.within(f"n{time.monotonic_ns()}")
    space("images", "import", "--no-unpack", "--base-name", "example.org/small", "-", stdin=archive(IMAGE, "one"))
    with containerd_options(ContainerdOptions(str(space.address), space.namespace)):
        yield space


def lamella(ctr: Ctr, *words: str | Path, code: int = 0) -> str:
    """What the command line says; on standard error where it is to fail."""
    options = ["--containerd", str(ctr.address), "--containerd-namespace", ctr.namespace]
    command = [sys.executable, "-m", "lamella", *map(str, words), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert code == done.returncode, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def collected(ctr: Ctr) -> set[str]:
    """The blobs that are left by a collection."""
    ctr("leases", "rm", "--sync", ctr("leases", "create").strip())
    return set(ctr("content", "ls", "--quiet").split())


def test_an_image_is_unpacked_into_a_directory(imported: Ctr, tmp_path: Path) -> None:
    lamella(imported, "unpack", f"containerd:{NAME}", tmp_path / "tree")
    assert (tmp_path / "tree/real/lower").read_text() == "lower"
    assert not (tmp_path / "tree/gone").exists()


def test_verbs_that_look_into_images_take_it(imported: Ctr) -> None:
    assert lamella(imported, "cat", f"containerd:{NAME}::/link/lower") == "lower"
    assert lamella(imported, "ls", f"containerd:{NAME}::/bin") == "it\n"
    shown = json.loads(lamella(imported, "inspect", "--json", f"containerd:{NAME}"))
    assert IMAGE.descriptor["digest"] == shown["manifest"]["digest"]
    lamella(imported, "verify", f"containerd:{NAME}")
    lamella(imported, "compare", f"containerd:{NAME}", f"containerd:{NAME}")


def test_an_image_is_copied_out_byte_for_byte(imported: Ctr, tmp_path: Path) -> None:
    lamella(imported, "copy", f"containerd:{NAME}", f"oci:{tmp_path}/out:x")
    for name, raw in IMAGE.blobs.items():
        assert raw == (tmp_path / "out/blobs" / name.replace(":", "/")).read_bytes()


def test_a_layout_is_copied_in_and_outlasts_a_collection(imported: Ctr, tmp_path: Path) -> None:
    layout = write_layout(str(tmp_path / "layout"), [tagged(OTHER.descriptor, "x")], OTHER.blobs)
    lamella(imported, "copy", f"oci:{layout}:x", "containerd:example.org/other:1")
    assert set(OTHER.blobs) | set(IMAGE.blobs) == collected(imported)
    assert imported.table("leases", "ls") == []
    (row,) = imported.table("images", "check", "name==example.org/other:1")
    assert "complete" in row
    imported("images", "mount", "example.org/other:1", _made(tmp_path / "seen"))
    try:
        assert (tmp_path / "seen/a").read_bytes() == b"other"
    finally:
        imported("images", "unmount", "--rm", tmp_path / "seen")
    imported("images", "rm", "--sync", "example.org/other:1")
    assert set(IMAGE.blobs) == collected(imported)


def test_an_index_of_several_platforms_goes_in_and_out(imported: Ctr, tmp_path: Path) -> None:
    arm = small_image({"a": b"arm"}, platform="linux/arm64")
    descriptor, raw = index_of(OTHER, arm)
    blobs = {**OTHER.blobs, **arm.blobs, descriptor["digest"]: raw}
    layout = write_layout(str(tmp_path / "layout"), [tagged(descriptor, "many")], blobs)
    lamella(imported, "copy", "--all", f"oci:{layout}:many", "containerd:many")
    assert set(blobs) | set(IMAGE.blobs) == collected(imported)
    lamella(imported, "copy", "--all", "containerd:many", f"oci:{tmp_path}/out:x")
    assert raw == (tmp_path / "out/blobs" / descriptor["digest"].replace(":", "/")).read_bytes()
    assert lamella(imported, "cat", "--platform", "linux/arm64", "containerd:many::/a") == "arm"


def test_an_image_that_is_changed_shares_its_layers_with_the_old_one(imported: Ctr, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more/new").write_text("new")
    lamella(imported, "append", f"containerd:{NAME}", tmp_path / "more", f"containerd:{NAME}", "--replace")
    assert lamella(imported, "cat", f"containerd:{NAME}::/new") == "new"
    assert len(json.loads(lamella(imported, "inspect", "--json", f"containerd:{NAME}"))["layers"]) == 3
    assert "complete" in imported("images", "check")


def test_a_name_that_has_another_image_gives_way_only_when_asked(imported: Ctr, tmp_path: Path) -> None:
    layout = write_layout(str(tmp_path / "layout"), [tagged(OTHER.descriptor, "x")], OTHER.blobs)
    with pytest.raises(AlreadyExists, match="has another image"):
        copy(f"oci:{layout}:x", f"containerd:{NAME}")
    assert imported.table("leases", "ls") == []
    copy(f"oci:{layout}:x", f"containerd:{NAME}", replace=True)
    assert OTHER.descriptor["digest"] == imported.table("images", "ls")[0][2]


def test_names_are_those_of_dockers_users_and_else_taken_as_they_stand(imported: Ctr, tmp_path: Path) -> None:
    copy(f"containerd:{NAME}", "containerd:busybox")
    assert "docker.io/library/busybox:latest" in imported("images", "ls", "--quiet").split()
    for name in ("bare", "bare:one", "import-2026-11-26:one"):
        imported("images", "tag", NAME, name)
        with open_platform_image(f"containerd:{name}") as image:
            assert IMAGE.descriptor["digest"] == image.descriptor.digest
    with open_platform_image(f"containerd:example.org/small@{IMAGE.descriptor['digest']}") as image:
        assert IMAGE.descriptor["digest"] == image.descriptor.digest


def test_what_is_not_there_is_told_with_where_it_was_looked_for(imported: Ctr) -> None:
    said = lamella(imported, "ls", "containerd:none", code=4)
    assert f"there is no such image in namespace '{imported.namespace}' of containerd at" in said
    assert "images ls lists the images" in said
    with pytest.raises(NotFound):
        open_platform_image("containerd:none")


def test_blobs_that_are_open_stay_so_after_the_reader_is_closed(imported: Ctr) -> None:
    reader = open_reader(parse_image_name(f"containerd:{NAME}"))
    (image,) = reader.images()
    with reader.open_blob(image.descriptor) as blob:
        reader.close()
        assert IMAGE.blobs[image.descriptor.digest] == blob.read()


def test_a_store_takes_images_from_it(imported: Ctr, tmp_path: Path) -> None:
    lamella(imported, "--root", tmp_path / "store", "store", "import", f"containerd:{NAME}")
    assert lamella(imported, "--root", tmp_path / "store", "cat", f"store:{NAME}::/link/lower") == "lower"


def test_the_variables_of_containerds_clients_say_where_it_is(imported: Ctr, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINERD_ADDRESS", str(imported.address))
    monkeypatch.setenv("CONTAINERD_NAMESPACE", imported.namespace)
    command = [sys.executable, "-m", "lamella", "cat", f"containerd:{NAME}::/link/lower"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "lower"


def test_a_containerd_that_is_away_is_told_in_a_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lamella", "ls", "containerd:x", "--containerd", str(tmp_path / "nobody")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 10, done.stderr
    assert f"containerd at '{tmp_path}/nobody' does not answer" in done.stderr


def test_what_ctr_exports_of_an_image_that_was_copied_in_is_the_same(imported: Ctr, tmp_path: Path) -> None:
    lamella(imported, "copy", f"containerd:{NAME}", "containerd:example.org/again:1")
    (tmp_path / "x.tar").write_bytes(imported.raw("images", "export", "--local", "-", "example.org/again:1"))
    with open_platform_image(f"oci-archive:{tmp_path}/x.tar") as image:
        assert IMAGE.descriptor["digest"] == image.descriptor.digest


def _made(path: Path) -> Path:
    path.mkdir()
    return path
