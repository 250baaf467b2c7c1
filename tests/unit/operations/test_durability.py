# SPDX-License-Identifier: Apache-2.0
"""Outputs are on the disk, bytes before names, when a call returns."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamella.cli.main import run
from lamella.host.durability import durable_outputs
from lamella.images.resolve import open_platform_image
from lamella.layers.cim.image import CimLayer
from lamella.layers.cim.writer import NewCim
from lamella.operations.atomic_file import replacing
from lamella.operations.copy import copy
from lamella.operations.runtime.bundle import unpack_bundle
from lamella.operations.unpack import UnpackOptions, unpack
from lamella.testing.images import small_image, tagged, write_layout

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the paths of descriptors from /proc")

IMAGE = small_image({"a": b"1"}, {"b": b"2"})
Steps = list[tuple[str, str]]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Steps:
    """Return the calls that sync or name files below ``tmp_path``, in order, each with the file's identity or path."""
    seen: Steps = []

    def record(call: str, name_at: int | None) -> None:
        real: Callable[..., Any] = getattr(os, call)

        def recorded(*given: Any, **named: Any) -> Any:
            if name_at is None:
                seen.append((call, os.path.relpath(os.readlink(f"/proc/self/fd/{given[0]}"), tmp_path)))
            else:
                at = named.get("dst_dir_fd")
                parent = "" if at is None else os.readlink(f"/proc/self/fd/{at}")
                seen.append((call, os.path.relpath(os.path.join(parent, given[name_at]), tmp_path)))
            return real(*given, **named)

        monkeypatch.setattr(os, call, recorded)

    record("fsync", None)
    for call in ("rename", "replace", "link"):
        record(call, 1)
    return seen


@pytest.fixture
def source(tmp_path: Path) -> str:
    return f"oci:{write_layout(str(tmp_path / 'source'), [tagged(IMAGE.descriptor, 'it')], IMAGE.blobs)}:it"


def position(steps: Steps, call: str, path: str, after: int = -1) -> int:
    """Return the index of the first such step after ``after``."""
    return steps.index((call, path), after + 1)


def synced(steps: Steps) -> list[str]:
    return [path for call, path in steps if call == "fsync"]


def test_a_layout_is_on_the_disk_before_its_index_and_its_index_before_the_end(
    source: str, tmp_path: Path, steps: Steps
) -> None:
    copy(source, f"oci:{tmp_path}/new/layout:it")
    assert {".", "new", "new/layout/blobs", "new/layout/blobs/sha256"} <= set(synced(steps))
    names = position(steps, "rename", "new/layout/index.json")
    for digest in IMAGE.blobs:
        blob = position(steps, "rename", f"new/layout/blobs/sha256/{digest.removeprefix('sha256:')}")
        assert position(steps, "fsync", "new/layout/blobs/sha256", blob) < names
    staged = [path for path in synced(steps[:names]) if "/.lamella-" in path]
    assert len([path for path in staged if "/part-" in path]) == len(IMAGE.blobs)
    assert len([path for path in staged if path.endswith("/index.json")]) == 1
    assert steps[-1] == ("fsync", "new/layout")


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_an_archive_is_on_the_disk_before_it_has_its_name(source: str, tmp_path: Path, steps: Steps, form: str) -> None:
    copy(source, f"{form}:{tmp_path}/image.tar")
    *_, written, named, last = [step for step in steps if step[1] in (".", "image.tar") or "archive" in step[1]]
    assert written[0] == "fsync"
    assert written[1].endswith("/archive")
    assert (named, last) == (("link", "image.tar"), ("fsync", "."))


def test_a_file_is_on_the_disk_before_it_replaces_another(tmp_path: Path, steps: Steps) -> None:
    with replacing(tmp_path / "report") as file:
        file.write(b"text")
    (first, path), named, last = steps
    assert (first, path.startswith(".report.unfinished-")) == ("fsync", True)
    assert (named, last) == (("replace", "report"), ("fsync", "."))


def test_an_erofs_image_is_on_the_disk_before_it_has_its_name(source: str, tmp_path: Path, steps: Steps) -> None:
    with open_platform_image(source) as image:
        unpack(image, tmp_path / "image.erofs", UnpackOptions("erofs"))
    (first, path), named, last = steps
    assert (first, path.startswith(".image.erofs.")) == ("fsync", True)
    assert (named, last) == (("link", "image.erofs"), ("fsync", "."))


def test_the_files_of_a_composite_image_are_on_the_disk_before_the_image_names_them(
    tmp_path: Path, steps: Steps
) -> None:
    NewCim(CimLayer(tmp_path / "new.cim")).commit()
    named = position(steps, "link", "new.cim")
    parts = [path for call, path in steps if call == "replace"]
    assert parts
    assert len([path for path in synced(steps[:named]) if ".unfinished-" in path]) == len(parts) + 1
    assert position(steps, "fsync", ".") < named
    assert steps[-1] == ("fsync", ".")


def test_a_scratch_output_is_not_synced(source: str, tmp_path: Path, steps: Steps) -> None:
    with durable_outputs(False):
        copy(source, f"oci:{tmp_path}/layout:it")
        copy(source, f"oci-archive:{tmp_path}/image.tar")
        with replacing(tmp_path / "report") as file:
            file.write(b"text")
        NewCim(CimLayer(tmp_path / "new.cim")).commit()
    assert synced(steps) == []


def test_no_durable_before_a_verb_makes_its_outputs_scratch(source: str, tmp_path: Path, steps: Steps) -> None:
    assert run(["--no-durable", "copy", "-q", source, f"oci:{tmp_path}/one:it"]) == 0
    assert synced(steps) == []
    assert run(["copy", "-q", source, f"oci:{tmp_path}/two:it"]) == 0
    assert "two" in synced(steps)


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Return the directories whose file systems are flushed."""
    from lamella.host import linux

    seen: list[str] = []

    def record(descriptor: int) -> None:
        seen.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path))

    monkeypatch.setattr(linux, "sync_file_system", record)
    return seen


def test_a_directory_is_flushed_before_it_has_its_name_if_that_is_asked_for(
    source: str, tmp_path: Path, steps: Steps, flushed: list[str]
) -> None:
    with open_platform_image(source) as image:
        unpack(image, tmp_path / "fast")
        unpack_bundle(image, tmp_path / "bundle")
        assert (flushed, synced(steps)) == ([], [])
        unpack(image, tmp_path / "safe", UnpackOptions(durable=True))
        assert [path.startswith(".safe.unfinished-") for path in flushed] == [True]
        assert synced(steps) == ["."]
        unpack(image, tmp_path / "safe", UnpackOptions(durable=True, merge=True))
        assert flushed[1:] == ["safe"]


def test_a_bundle_is_on_the_disk_if_that_is_asked_for(
    source: str, tmp_path: Path, steps: Steps, flushed: list[str]
) -> None:
    assert run(["unpack", "-q", "--durable", "--bundle", source, str(tmp_path / "bundle")]) == 0
    assert len(flushed) == 1
    assert synced(steps)[0] == "bundle"
    assert synced(steps)[1].startswith("bundle/.config.json.unfinished-")
    assert synced(steps)[2:] == ["bundle", "."]
