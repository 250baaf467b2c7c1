# SPDX-License-Identifier: Apache-2.0
"""lamella hive on Windows images: what the layers come to, what each of them changes, and what would be missed."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path

import pytest
from tests.unit.cli.conftest import Run
from tests.unit.formats.regf.hives import changed
from tests.unit.formats.regf.test_log import new_log
from tests.unit.layers.windows.test_tar import file_at
from tests.unit.operations.windows.test_images import ABOVE, BASE, CONFIG, TOP, hive, image

from lamella.changes.model import Change, Put, Whiteout
from lamella.formats.regf import Hive, MemoryKey, encode_hive
from lamella.paths import LayerPath

PLATFORM = ("--platform", "windows/amd64")
SYSTEM = f"{CONFIG}/SYSTEM"


@pytest.fixture
def name(tmp_path: Path) -> str:
    """An image whose base has a=1 b=2 in SYSTEM; a layer changes b and c, one above it a."""
    return image(tmp_path, BASE, ABOVE, TOP)


def values(lamella: Run, place: str, *options: str) -> tuple[dict[str, str], str]:
    """The values at the root of a hive, and what was said of it."""
    done = lamella("hive", "get", place, "--json", *options, *PLATFORM)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {one["name"]: base64.b64decode(one["base64"]).decode("utf-16-le") for one in found}, done.stderr


def test_a_container_starts_with_the_merged_hive(lamella: Run, name: str) -> None:
    assert values(lamella, f"{name}::Hives/System_Base") == ({"a": "5", "b": "3", "c": "4"}, "")
    assert values(lamella, f"{name}::hives/SYSTEM_BASE") == ({"a": "5", "b": "3", "c": "4"}, "")


def test_the_merged_hive_is_that_of_a_flattened_image_to_the_byte(lamella: Run, name: str, tmp_path: Path) -> None:
    flat = f"oci:{tmp_path}/flat:v"
    assert lamella("flatten", name, flat, *PLATFORM).returncode == 0
    output = tmp_path / "merged"
    done = lamella("hive", "merge", f"{name}::Hives/System_Base", "-o", output, *PLATFORM)
    assert done.returncode == 0, done.stderr
    assert Hive(output.read_bytes()).layered is False
    again = lamella("hive", "merge", f"{flat}::{SYSTEM}", "-o", tmp_path / "flat.hive", *PLATFORM)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "flat.hive").read_bytes() == output.read_bytes()


def test_the_merged_hive_is_what_the_folders_of_the_layers_have(lamella: Run, name: str, tmp_path: Path) -> None:
    assert lamella("unpack", name, tmp_path / "layers", "--as", "windows", *PLATFORM).returncode == 0
    for layer in ("0", "1", "2"):
        in_folder = lamella("hive", "dump", tmp_path / "layers" / layer / "Hives/System_Base")
        of_image = lamella("hive", "dump", f"{name}::Hives/System_Base", "--layer", layer, *PLATFORM)
        assert in_folder.returncode == 0, in_folder.stderr
        assert in_folder.stdout == of_image.stdout


def test_layer_selects_the_hive_merged_up_to_that_layer(lamella: Run, name: str) -> None:
    merged = f"{name}::Hives/System_Base"
    assert values(lamella, merged, "--layer", "0")[0] == {"a": "1", "b": "2"}
    assert values(lamella, merged, "--layer", "1")[0] == {"a": "1", "b": "3", "c": "4"}
    assert values(lamella, merged, "--layer", "2")[0] == {"a": "5", "b": "3", "c": "4"}


def test_the_delta_is_that_of_the_topmost_layer_and_others_are_listed(lamella: Run, name: str) -> None:
    delta = f"{name}::Hives/System_Delta"
    found, said = values(lamella, delta)
    assert found == {"a": "5"}
    assert "the delta of SYSTEM of the last of layers 1, 2" in said
    assert "Hives/System_Base" in said
    assert values(lamella, delta, "--layer", "1") == ({"b": "3", "c": "4"}, "")
    assert values(lamella, delta, "--layer", "2") == ({"a": "5"}, "")
    done = lamella("hive", "ls", delta, "--layer", "0", *PLATFORM)
    assert (done.returncode, "layer 0 has no" in done.stderr) == (4, True)


def test_the_hive_of_the_base_is_read_with_a_warning_about_deltas(lamella: Run, name: str) -> None:
    found, said = values(lamella, f"{name}::{SYSTEM}")
    assert found == {"a": "1", "b": "2"}
    assert "this file lacks the deltas of SYSTEM of layers 1, 2" in said
    assert values(lamella, f"{name}::{SYSTEM}", "--layer", "0") == ({"a": "1", "b": "2"}, "")


def test_an_image_without_deltas_has_the_hive_of_its_base(lamella: Run, tmp_path: Path) -> None:
    base = image(tmp_path, BASE)
    for path in (SYSTEM, "Hives/System_Base"):
        assert values(lamella, f"{base}::{path}") == ({"a": "1", "b": "2"}, "")
    for path in ("Hives/System_Delta", "Hives/Sam_Base", f"{CONFIG}/SAM"):
        done = lamella("hive", "ls", f"{base}::{path}", *PLATFORM)
        assert done.returncode == 4, done.stderr


def test_an_empty_hive_of_the_base_is_as_good_as_none(lamella: Run, tmp_path: Path) -> None:
    base: list[Change] = [*BASE, file_at(f"{CONFIG}/SAM", b"")]
    name = image(tmp_path, base, [file_at("Hives/Sam_Delta", hive(x="1"))])
    assert values(lamella, f"{name}::Hives/Sam_Base")[0] == {"x": "1"}


def test_a_hive_that_a_layer_takes_away_is_gone(lamella: Run, tmp_path: Path) -> None:
    name = image(tmp_path, BASE, [Whiteout(LayerPath("Files/windows/system32"))])
    assert lamella("hive", "ls", f"{name}::Hives/System_Base", *PLATFORM).returncode == 4


def test_layers_are_those_of_windows_images_alone(lamella: Run, name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(encode_hive(MemoryKey("ROOT")))
    for place in (str(tmp_path / "file"), f"dir:{tmp_path}::file", f"{name}::Files/old"):
        done = lamella("hive", "ls", place, "--layer", "0", *PLATFORM)
        assert (done.returncode, done.stdout) == (3, ""), place
    done = lamella("hive", "ls", f"{name}::Hives/System_Base", "--layer", "3", *PLATFORM)
    assert done.returncode == 3
    assert "the image has 3 layers, which count from 0 at the base" in done.stderr


def test_keys_are_named_behind_the_hive(lamella: Run, tmp_path: Path) -> None:
    root = MemoryKey("ROOT")
    root.make("Setup").put("Type", 1, "x".encode("utf-16-le"))
    name = image(tmp_path, BASE, [file_at("Hives/System_Delta", encode_hive(root))])
    assert lamella("hive", "ls", f"{name}::Hives/System_Base::Setup", *PLATFORM).stdout == "Type\n"
    assert lamella("hive", "dump", f"{name}::Hives/System_Base::Setup", *PLATFORM).stdout.startswith("[\\Setup]")


def dirty_base(*logs: Change) -> list[Change]:
    """Return the base layer with a dirty SYSTEM and ``logs``."""
    dirty = changed(hive(a="1", b="2"), 4, struct.pack("<II", 3, 2))
    rest = [change for change in BASE if not (isinstance(change, Put) and change.entry.path == SYSTEM)]
    return [*rest, file_at(SYSTEM, dirty), *logs]


def test_the_logs_of_a_dirty_hive_are_replayed(lamella: Run, tmp_path: Path) -> None:
    name = image(tmp_path, dirty_base(file_at(f"{SYSTEM}.LOG1", new_log(hive(a="logged", b="2")))), ABOVE)
    assert values(lamella, f"{name}::{SYSTEM}")[0] == {"a": "logged", "b": "2"}
    assert values(lamella, f"{name}::Hives/System_Base")[0] == {"a": "logged", "b": "3", "c": "4"}
    flat = f"oci:{tmp_path}/flat:v"
    done = lamella("flatten", name, flat, *PLATFORM)
    assert done.returncode == 0, done.stderr
    assert values(lamella, f"{flat}::{SYSTEM}")[0] == {"a": "logged", "b": "3", "c": "4"}


def test_the_log_beside_a_file_is_replayed(lamella: Run, tmp_path: Path) -> None:
    place = tmp_path / "SYSTEM"
    place.write_bytes(changed(hive(a="1"), 4, struct.pack("<II", 3, 2)))
    assert lamella("hive", "ls", place).returncode == 7
    (tmp_path / "SYSTEM.LOG1").write_bytes(new_log(hive(a="logged")))
    assert values(lamella, str(place))[0] == {"a": "logged"}


@pytest.mark.parametrize("kind", ["windows", "cim"])
def test_a_dirty_hive_without_a_log_is_merged_on_request(lamella: Run, tmp_path: Path, kind: str) -> None:
    others = [file_at(f"{CONFIG}/{one}", hive()) for one in ("SOFTWARE", "SAM", "SECURITY", "DEFAULT")]
    name = image(tmp_path, dirty_base(*others), ABOVE)
    flat = f"oci:{tmp_path}/flat:v"
    for verb in (("flatten", name, flat), ("unpack", name, tmp_path / "out", "--as", kind)):
        refused = lamella(*verb, *PLATFORM)
        assert (refused.returncode, "--dirty" in refused.stderr) == (7, True), refused.stderr
        done = lamella(*verb, "--dirty", *PLATFORM)
        assert done.returncode == 0, done.stderr
    assert values(lamella, f"{flat}::{SYSTEM}")[0] == {"a": "1", "b": "3", "c": "4"}
