# SPDX-License-Identifier: Apache-2.0
"""Implied parent directories are bounded in every sink: a few bytes can imply many of them.

One name of 4,000 levels implies sixteen million characters of paths. Before there was a bound, sixteen of them took
400 to 900 MB.
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.security.routes import CommandFailed, category, gzipped, image_of, lamella
from tests.security.tars import Tar
from tests.unit.layers.windows.test_tar import file_at, write

from lamella.changes.apply import apply
from lamella.changes.limits import Limits
from lamella.changes.model import Change, Whiteout
from lamella.changes.tree import MemorySink, MemoryTree, fold, merge
from lamella.errors import Exhausted
from lamella.layers.cim.image import CimLayer
from lamella.layers.cim.sink import CimSink
from lamella.layers.directory.dirfd_cache import remove_tree
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.erofs.overlay_sink import ErofsUpperSink
from lamella.layers.erofs.sink import ErofsSink
from lamella.layers.erofs.tree import ErofsLayer
from lamella.layers.overlay.layer import OverlayLayer
from lamella.layers.overlay.sink import OverlaySink
from lamella.layers.stack import LayerStack
from lamella.layers.windows.layout import WindowsLayer
from lamella.layers.windows.names import Spelling
from lamella.layers.windows.sink import WindowsSink
from lamella.paths import ROOT, LayerPath
from lamella.store.store import Store
from lamella.testing.builders import directory, file, whiteout
from lamella.testing.images import image_of_tars, tagged, write_layout

MIB = 1 << 20
MOST = 300 * MIB
BOUND = "too many directories that it does not state, such as '.*, exceed 67108864 characters"

NAMES = [f"{number:02}/" + "d/" * 3999 + "f" for number in range(16)]


def linux() -> Iterator[Change]:
    return (file(name) for name in NAMES)


def of_windows() -> Iterator[Change]:
    return (file_at(f"Files/{name}") for name in NAMES)


def into_a_directory(place: Path) -> None:
    place.mkdir()
    apply(linux(), DirectorySink(place))


def onto_a_directory(place: Path) -> None:
    place.mkdir()
    apply([file("a")], DirectorySink(place))
    apply(linux(), DirectorySink(place))


def into_an_overlay_over_what_is_unknown(place: Path) -> None:
    place.mkdir()
    apply(linux(), OverlaySink(OverlayLayer(place)))


def markers_into_an_overlay_over_what_is_unknown(place: Path) -> None:
    place.mkdir()
    apply((whiteout(name) for name in NAMES), OverlaySink(OverlayLayer(place)))


def onto_an_overlay(place: Path) -> None:
    lower, upper = OverlayLayer(place / "lower"), OverlayLayer(place / "upper")
    lower.path.mkdir(parents=True)
    upper.path.mkdir()
    apply([file("a")], OverlaySink(lower))
    apply(linux(), OverlaySink(upper, parents=LayerStack([lower])))


def into_erofs(place: Path) -> None:
    apply(linux(), ErofsSink(ErofsLayer(place)))


def onto_erofs(place: Path) -> None:
    place.mkdir()
    apply([file("a")], ErofsSink(ErofsLayer(place / "lower")))
    apply(linux(), ErofsSink(ErofsLayer(place / "upper"), parents=LayerStack([ErofsLayer(place / "lower")])))


def into_erofs_of_an_overlay(place: Path) -> None:
    apply(linux(), ErofsUpperSink(ErofsLayer(place), parents=None))


def into_a_composite_image(place: Path) -> None:
    place.mkdir()
    apply(of_windows(), CimSink(CimLayer(place / "layer.cim"), windows=False))


def onto_a_composite_image(place: Path) -> None:
    place.mkdir()
    lower, upper = CimLayer(place / "lower.cim"), CimLayer(place / "upper.cim")
    apply([file_at("Files/a")], CimSink(lower, windows=False))
    apply(of_windows(), CimSink(upper, parents=LayerStack([lower]), windows=False, contents=bytes))


def into_a_folder_of_windows(place: Path) -> None:
    apply(of_windows(), WindowsSink(WindowsLayer(place)))


def into_memory(place: Path) -> None:
    del place
    fold(linux())


def many_layers_into_memory(place: Path) -> None:
    del place
    merge([change] for change in linux())


def many_layers_into_a_view_of_windows(place: Path) -> None:
    del place
    spelling = Spelling()
    for change in of_windows():
        for _ in spelling.respell([change]):
            pass


def markers_into_a_view_of_windows(place: Path) -> None:
    del place
    for _ in Spelling().respell(Whiteout(LayerPath(f"Files/{name}")) for name in NAMES):
        pass


WAYS: list[Callable[[Path], None]] = [
    into_a_directory,
    onto_a_directory,
    into_an_overlay_over_what_is_unknown,
    markers_into_an_overlay_over_what_is_unknown,
    onto_an_overlay,
    into_erofs,
    onto_erofs,
    into_erofs_of_an_overlay,
    into_a_composite_image,
    onto_a_composite_image,
    into_a_folder_of_windows,
    into_memory,
    many_layers_into_memory,
    many_layers_into_a_view_of_windows,
    markers_into_a_view_of_windows,
]


@pytest.fixture
def place(memory: Path) -> Iterator[Path]:
    yield memory / "place"
    parent = os.open(memory, os.O_RDONLY)  # too deep for shutil
    for name in os.listdir(memory):
        remove_tree(parent, name)
    os.close(parent)


@pytest.mark.parametrize("way", WAYS)
def test_deep_names_without_stated_directories_are_refused_early(way: Callable[[Path], None], place: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Exhausted, match=BOUND):
            way(place)
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()


def test_a_layer_over_many_deep_ones_does_not_load_all_their_directories(place: Path) -> None:
    """No single layer exceeds the limit."""
    place.mkdir()
    for name in NAMES:
        apply([file(name)], DirectorySink(place))
    with pytest.raises(Exhausted, match=BOUND):
        apply((file(f"{name}g") for name in NAMES), DirectorySink(place))


def test_the_error_quotes_a_short_path_and_the_limit() -> None:
    # The first implied directory of a file is free; 'a/b' counts 3 + 512, and 'a/b/c' 5 + 512.
    fold([file("a/b/c/f")], limits=Limits(implied=1032))
    with pytest.raises(Exhausted, match=r"such as 'a/b/c': their paths, plus 512 for each, exceed 1031 "):
        fold([file("a/b/c/f")], limits=Limits(implied=1031))


def test_one_implied_directory_per_file_and_any_stated_directories_are_free() -> None:
    none = Limits(implied=0)
    assert len(fold((file(f"{number}/f") for number in range(1000)), limits=none).entries(ROOT)) == 1000
    stated = [directory("/".join(["d"] * level)) for level in range(1, 1000)]
    deepest = file("/".join(["d"] * 999 + ["f"]))
    for tree in (MemoryTree(), fold([file("a")])):
        apply([*stated, deepest, whiteout("a/b/c/d")], MemorySink(tree), limits=none)
        assert tree.lookup(deepest.entry.path) == deepest.entry


def refused(*words: str | Path) -> None:
    with pytest.raises(CommandFailed) as told:
        lamella(*words)
    assert told.value.code == category(Exhausted)


class TestTheCommandLine:
    @pytest.fixture
    def tar(self) -> bytes:
        made = Tar()
        for name in NAMES:
            made.file(name, b"")
        return made.done()

    @pytest.fixture
    def blob(self, tar: bytes, tmp_path: Path) -> Path:
        path = tmp_path / "blob"
        path.write_bytes(gzipped(tar))
        return path

    @pytest.fixture
    def image(self, tar: bytes, tmp_path: Path) -> str:
        return image_of(tmp_path / "image", [gzipped(tar)], [tar])

    @pytest.mark.parametrize("kind", ["directory", "overlay", "erofs"])
    def test_does_not_apply_such_a_layer(self, kind: str, blob: Path, place: Path) -> None:
        refused("apply", "-q", "--as", kind, blob, place)

    @pytest.mark.parametrize("kind", ["windows", "cim"])
    def test_does_not_apply_such_a_layer_of_windows(self, kind: str, place: Path, tmp_path: Path) -> None:
        (tmp_path / "blob").write_bytes(write(list(of_windows()))[0])
        place.mkdir()
        refused("apply", "-q", "--as", kind, tmp_path / "blob", place / "layer.cim")

    def test_does_not_unpack_list_or_flatten_such_an_image(self, image: str, place: Path, tmp_path: Path) -> None:
        refused("unpack", "-q", image, place)
        refused("unpack", "-q", "--as", "erofs", image, place)
        refused("ls", "-q", image)
        refused("flatten", "-q", image, f"oci:{tmp_path}/flat:x")
        assert not os.path.lexists(place)

    def test_verify_names_the_layer(self, image: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(CommandFailed):
            lamella("verify", "-q", image)
        assert "directories that it does not state" in "".join(capsys.readouterr())

    def test_no_store_unpacks_such_an_image(self, image: str, place: Path) -> None:
        with Store.open(place):
            pass
        refused("--root", place, "store", "import", "-q", "--unpack", "--name", "it:1", image)

    def test_does_not_look_into_such_an_image_of_windows(self, tmp_path: Path) -> None:
        made = image_of_tars([write(list(of_windows()))[0]], "windows/amd64")
        write_layout(str(tmp_path / "images"), [tagged(made.descriptor, "v")], made.blobs)
        refused("ls", "-q", "--platform", "windows/amd64", f"oci:{tmp_path}/images:v")
