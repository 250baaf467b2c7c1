# SPDX-License-Identifier: Apache-2.0
"""One rule for each unusual Windows layer, whatever the layer is imported into."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from tests.unit.formats.regf.hives import changed
from tests.unit.formats.regf.test_log import new_log
from tests.unit.formats.tar.archives import END, buffers
from tests.unit.formats.tar.archives import file as member
from tests.unit.layers.cim.test_layer import directory, file, link, stream, whiteout
from tests.windows.stubs import StubCimfs, StubLoader, check_compiler

from lamella.changes.apply import apply
from lamella.changes.model import Change, Entry, Kind, Put
from lamella.errors import InvalidInput, NotFound
from lamella.formats.ntfs import reparse
from lamella.formats.regf import Hive, MemoryKey, encode_hive
from lamella.host.windows.cimfs import Cimfs, WindowsBuild
from lamella.layers.cim.block import BlockCimLayer, BlockCimSink
from lamella.layers.cim.image import CimLayer
from lamella.layers.cim.sink import CimSink
from lamella.layers.stack import LayerStack
from lamella.layers.windows.layout import HIVE_NAMES, WindowsLayer
from lamella.layers.windows.sink import WindowsSink
from lamella.layers.windows.tar_source import windows_tar_changes
from lamella.paths import LayerPath

CONFIG = "Files/Windows/System32/config"
FORMS = ("folder", "cim", "block")
READABLE = ("folder", "cim")
"""The forms whose parents can be read on every host."""

Import = Callable[[str, Iterable[Change], bool], Path]


def hive(*keys: str) -> bytes:
    root = MemoryKey("ROOT")
    for key in keys:
        root.make(key)
    return encode_hive(root)


def symlink(path: str, target: str) -> Put:
    found = directory(path).entry.windows
    assert found is not None
    found.reparse = reparse.encode(reparse.symlink(target))
    return Put(Entry(LayerPath(path), Kind.SYMLINK, None, 0, target, found), None)


def base() -> list[Change]:
    parts = CONFIG.split("/")
    ways = [directory("/".join(parts[: end + 1])) for end in range(len(parts))]
    hives = [file(f"{CONFIG}/{name}", hive("below")) for name in HIVE_NAMES]
    return [*ways, *hives, directory("Files/real"), file("Files/old", b"old"), symlink("Files/way", "real")]


@pytest.fixture
def importing(request: pytest.FixtureRequest, tmp_path: Path, needs: Callable[..., str]) -> Import:
    """Imports a layer, over the base layer if asked; returns the folder of its hives."""
    form = request.param
    if form == "block":
        check_compiler(needs)
        calls = Cimfs(StubLoader(cimfs=StubCimfs().library), WindowsBuild(27800))

    def write(name: str, changes: Iterable[Change], parent: bool) -> Path:
        place = tmp_path / name
        if form == "folder":
            below = LayerStack([WindowsLayer(tmp_path / "base")]) if parent else None
            apply(changes, WindowsSink(WindowsLayer(place), parents=below))
            return place / "Hives"
        if form == "cim":
            under = LayerStack([CimLayer(tmp_path / "base.cim")]) if parent else None
            layer = CimLayer(tmp_path / f"{name}.cim")
            apply(changes, CimSink(layer, parents=under))
            return layer.folder / "Hives"
        place.mkdir()
        blocks = LayerStack([BlockCimLayer(tmp_path / "base" / "layer.vhd", "layer.cim")]) if parent else None
        block = BlockCimLayer(place / "layer.vhd", "layer.cim")
        apply(changes, BlockCimSink(block, parents=blocks, calls=calls))
        return block.folder / "Hives"

    write("base", base(), False)
    return write


def merged(hives: Path, name: str) -> list[str]:
    (found,) = (one for one in hives.iterdir() if one.name.lower() == name.lower())
    return [key.name for key in Hive(found.read_bytes()).root_key.subkeys()]


def each(*forms: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("importing", forms, indirect=True)


@pytest.mark.parametrize("second", ["s", "S", "S:$DATA"])
@each(*FORMS)
def test_a_stream_that_occurs_twice_in_any_case_is_refused(importing: Import, second: str) -> None:
    names = ("Files/a", "Files/a:s", f"Files/a:{second}")
    data = b"".join(member(name.encode(), b"x") for name in names) + END
    with pytest.raises(InvalidInput, match=r"stream '[sS]' of 'Files/a' occurs twice"):
        importing("layer", windows_tar_changes(buffers(data, 512)), True)


@each(*FORMS)
def test_two_files_may_have_a_stream_of_the_same_name(importing: Import) -> None:
    changes: list[Change] = [directory("Files")]
    for path in ("Files/a", "Files/b"):
        changes += [file(path), stream(path, "s", b"1")]
    importing("layer", changes, True)


@pytest.mark.parametrize(
    "change",
    [directory("Hives/System_Delta"), directory("Hives/SYSTEM_DELTA"), symlink("Hives/System_Delta", "x")],
    ids=["directory", "other-case", "link"],
)
@each(*FORMS)
def test_a_hive_delta_must_be_a_file(importing: Import, change: Change) -> None:
    with pytest.raises(InvalidInput, match="a registry delta must be a file"):
        importing("layer", [directory("Files"), directory("Hives"), change], True)


@each(*FORMS)
def test_a_hive_delta_must_not_be_a_hard_link(importing: Import) -> None:
    changes: list[Change] = [directory("Files"), file("Files/d", hive()), directory("Hives")]
    changes.append(link("Hives/System_Delta", "Files/d"))
    with pytest.raises(InvalidInput):
        importing("layer", changes, True)


@each(*FORMS)
def test_an_empty_hive_delta_changes_nothing(importing: Import) -> None:
    hives = importing("layer", [directory("Files"), directory("Hives"), file("Hives/System_Delta")], True)
    assert merged(hives, "System_Base") == ["below"]


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize("name", ["System_Base", "SYSTEM_BASE"])
@each(*FORMS)
def test_a_layer_cannot_replace_a_merged_hive(importing: Import, name: str, delta: bool) -> None:
    changes: list[Change] = [directory("Files"), directory("Hives"), file(f"Hives/{name}", hive("forged"))]
    changes += [file("Hives/System_Delta", hive("above"))] * delta
    with pytest.raises(InvalidInput, match="merged hive"):
        importing("layer", changes, True)


@each(*FORMS)
def test_a_base_layer_cannot_state_a_merged_hive(importing: Import) -> None:
    changes = [*base(), directory("Hives"), file("Hives/System_Base", hive("forged"))]
    with pytest.raises(InvalidInput, match="merged hive"):
        importing("layer", changes, False)


@each(*READABLE)
def test_a_file_below_a_link_of_a_parent_is_refused(importing: Import) -> None:
    with pytest.raises(InvalidInput, match=r"link|reparse point"):
        importing("layer", [directory("Files"), file("Files/way/file", b"1")], True)


@each(*FORMS)
def test_a_directory_may_replace_a_link_of_a_parent(importing: Import) -> None:
    importing("layer", [directory("Files"), directory("Files/way"), file("Files/way/file", b"1")], True)


@each(*READABLE)
def test_a_hard_link_to_a_file_that_the_layer_has_removed_is_refused(importing: Import) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        importing("layer", [directory("Files"), whiteout("Files/old"), link("Files/new", "Files/old")], True)


@each(*FORMS)
def test_a_file_may_be_linked_and_then_removed(importing: Import) -> None:
    importing("layer", [directory("Files"), link("Files/new", "Files/old"), whiteout("Files/old")], True)


@each(*FORMS)
def test_a_refused_layer_leaves_nothing(importing: Import, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidInput):
        importing("layer", [directory("Files"), directory("Hives"), directory("Hives/System_Delta")], True)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and path.is_file()] == []


@each(*READABLE)
def test_the_logs_of_a_dirty_hive_below_are_replayed(importing: Import, tmp_path: Path) -> None:
    for path in [*tmp_path.iterdir()]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    clean = hive("below")
    dirty = changed(clean, 4, struct.pack("<II", 3, 2))
    logged = [file(f"{CONFIG}/SYSTEM.LOG1"), file(f"{CONFIG}/SYSTEM.LOG2", new_log(hive("logged")))]
    changes = [change for change in base() if not (isinstance(change, Put) and change.entry.path == f"{CONFIG}/SYSTEM")]
    importing("base", [*changes, file(f"{CONFIG}/SYSTEM", dirty), *logged], False)
    delta = [directory("Files"), directory("Hives"), file("Hives/System_Delta", hive("above"))]
    assert merged(importing("layer", delta, True), "System_Base") == ["above", "logged"]
