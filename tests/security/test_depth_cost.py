# SPDX-License-Identifier: Apache-2.0
"""The cost of a path of thousands of directories is linear in every sink and every reader.

Each piece of work is measured at two depths. Quadratic work would take sixteen times as long for four times the depth;
the limit is half of that, in processor time, with slack for durations too short to measure. With quadratic work the
longer case took 3 to 30 seconds.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.layers.windows.test_tar import file_at

from lamella.changes.apply import apply
from lamella.changes.contracts import Tree
from lamella.changes.model import Change, Entry, Kind, Put, Whiteout, Windows
from lamella.changes.tree import fold, merge, walk
from lamella.layers.cim.image import CimLayer, OpenCim
from lamella.layers.cim.sink import CimSink
from lamella.layers.cim.tree import CimTree
from lamella.layers.directory.dirfd_cache import remove_tree
from lamella.layers.erofs.overlay_sink import ErofsUpperSink
from lamella.layers.erofs.sink import ErofsSink
from lamella.layers.erofs.tree import ErofsImage, ErofsLayer
from lamella.layers.overlay.layer import OverlayLayer
from lamella.layers.overlay.sink import OverlaySink
from lamella.layers.stack import LayerStack
from lamella.layers.windows.layout import WindowsLayer
from lamella.layers.windows.sink import WindowsSink
from lamella.layers.windows.tar_sink import WindowsTarSink
from lamella.paths import LayerPath
from lamella.testing.builders import directory, file, whiteout

SHORT, LONG = 900, 3600

Work = Callable[[int, Path], Callable[[], object]]
"""Prepares a depth and returns the work to measure."""


def deep(levels: int) -> str:
    return "/".join(["d"] * levels)


def below(levels: int) -> list[Change]:
    return [file(f"{deep(levels)}/f")]


def above(levels: int) -> list[Change]:
    """Changes deep in the lower layer, whose parents only the lower layer states."""
    return [file(f"{deep(levels)}/g"), whiteout(f"{deep(levels)}/f")]


def below_of_windows(levels: int) -> list[Change]:
    return [file_at(f"Files/{deep(levels)}/f")]


def above_of_windows(levels: int) -> list[Change]:
    return [file_at(f"Files/{deep(levels)}/g"), Whiteout(LayerPath(f"Files/{deep(levels)}/f"))]


def comb(levels: int) -> Iterator[Change]:
    """A chain of directories, each with a sibling of the next one, in walk order."""
    facet = Windows(0x10)

    def one(path: str) -> Put:
        made = directory(path).entry
        return Put(Entry(made.path, Kind.DIRECTORY, made.posix, 0, "", facet), None)

    for level in range(1, levels + 1):
        yield one(deep(level))
    for level in range(levels, 0, -1):
        yield one(f"{deep(level)}/e")


def onto_an_overlay(levels: int, place: Path) -> Callable[[], object]:
    lower, upper = OverlayLayer(place / "lower"), OverlayLayer(place / "upper")
    lower.path.mkdir()
    upper.path.mkdir()
    apply(below(levels), OverlaySink(lower))
    return lambda: apply(above(levels), OverlaySink(upper, parents=LayerStack([lower])))


def onto_erofs(levels: int, place: Path) -> Callable[[], object]:
    lower, upper = ErofsLayer(place / "lower"), ErofsLayer(place / "upper")
    apply(below(levels), ErofsSink(lower))
    return lambda: apply(above(levels), ErofsSink(upper, parents=LayerStack([lower])))


def onto_erofs_of_an_overlay(levels: int, place: Path) -> Callable[[], object]:
    lower, upper = ErofsLayer(place / "lower"), ErofsLayer(place / "upper")
    apply(below(levels), ErofsUpperSink(lower, parents=LayerStack([])))
    return lambda: apply(above(levels), ErofsUpperSink(upper, parents=LayerStack([lower])))


def onto_a_composite_image(levels: int, place: Path) -> Callable[[], object]:
    lower, upper = CimLayer(place / "lower.cim"), CimLayer(place / "upper.cim")
    apply(below_of_windows(levels), CimSink(lower, windows=False))
    return lambda: apply(
        above_of_windows(levels), CimSink(upper, parents=LayerStack([lower]), windows=False, contents=bytes)
    )


def onto_a_folder_of_windows(levels: int, place: Path) -> Callable[[], object]:
    lower, upper = WindowsLayer(place / "lower"), WindowsLayer(place / "upper")
    apply([Put(Entry(LayerPath("Files"), Kind.DIRECTORY, None, 0, "", Windows(0x10)), None)], WindowsSink(lower))
    return lambda: apply(below_of_windows(levels), WindowsSink(upper, parents=LayerStack([lower])))


def into_a_tar_of_windows(levels: int, place: Path) -> Callable[[], object]:
    del place
    changes = list(comb(levels))[:levels]

    def work() -> None:
        sink = WindowsTarSink(lambda data: None)
        for number in range(0, levels, 30):
            sink.put(changes[number].entry, None)  # type: ignore[union-attr]

    return work


def merged(levels: int, place: Path) -> Callable[[], object]:
    del place
    return lambda: merge([below(levels), above(levels)])


WORK: list[Work] = [
    onto_an_overlay,
    onto_erofs,
    onto_erofs_of_an_overlay,
    onto_a_composite_image,
    onto_a_folder_of_windows,
    into_a_tar_of_windows,
    merged,
]


def seconds(work: Callable[[], object]) -> float:
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def measured(work: Work, levels: int, place: Path) -> float:
    place.mkdir()
    try:
        return seconds(work(levels, place))
    finally:
        parent = os.open(place.parent, os.O_RDONLY)
        remove_tree(parent, place.name)  # too deep for shutil
        os.close(parent)


@pytest.mark.parametrize("work", WORK)
def test_the_cost_of_a_deep_path_is_linear(work: Work, memory: Path) -> None:
    short = min(measured(work, SHORT, memory / "a"), measured(work, SHORT, memory / "b"))
    long = min(measured(work, LONG, memory / "c"), measured(work, LONG, memory / "d"))
    assert long < 8 * short + 0.1


def walked(tree: Tree) -> int:
    return sum(1 for _ in walk(tree))


def test_a_walk_that_climbs_back_up_a_deep_path_does_not_start_at_the_root_each_time(memory: Path) -> None:
    def took(levels: int) -> list[float]:
        image, composite = ErofsLayer(memory / f"{levels}.erofs"), CimLayer(memory / f"{levels}.cim")
        held = fold(comb(levels))
        apply(walk(held), ErofsSink(image))
        apply(comb(levels), CimSink(composite, windows=False))
        with ErofsImage(image) as erofs, OpenCim(composite) as opened:
            return [seconds(lambda tree=tree: walked(tree)) for tree in (held, erofs, CimTree(opened))]  # type: ignore[misc]

    for short, long in zip(took(SHORT), took(LONG), strict=True):
        assert long < 8 * short + 0.1
