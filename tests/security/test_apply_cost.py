# SPDX-License-Identifier: Apache-2.0
"""Layers designed to be slow: the time to apply them grows linearly with their length.

Each attack is measured at two lengths. Quadratic work would take sixteen times as long for four times the length; the
limit is half of that, in processor time of this process, with slack for durations too short to measure.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator

import pytest

from lamella.changes.apply import MAX_LINK_TEXT, apply
from lamella.changes.diff import diff
from lamella.changes.limits import Limits
from lamella.changes.model import Change
from lamella.changes.tree import MemorySink, MemoryTree, fold, walk
from lamella.errors import Exhausted, InvalidInput
from lamella.testing.builders import directory, file, link, opaque, symlink, whiteout

Attack = Callable[[int], tuple[Iterator[Change], Iterator[Change]]]
"""Returns the base layer and the layer above it, for a length."""


def deep(length: int) -> str:
    return "/".join(["d"] * length)


def whiteouts_of_nothing(count: int) -> tuple[Iterator[Change], Iterator[Change]]:
    below = (file(f"a{number}") for number in range(10))
    return below, (whiteout(f"b{number}") for number in range(count))


def whiteouts_of_directories(count: int) -> tuple[Iterator[Change], Iterator[Change]]:
    def above() -> Iterator[Change]:
        for number in range(count):
            yield file(f"s/t/u/v/w/new{number}")
            yield whiteout(f"d{number}")

    return (file(f"d{number}/a") for number in range(count)), above()


def whiteouts_beside_files(count: int) -> tuple[Iterator[Change], Iterator[Change]]:
    def above() -> Iterator[Change]:
        for number in range(count):
            yield file(f"d/new{number}")
            yield whiteout(f"d/old{number}")

    return (file(f"d/old{number}") for number in range(count)), above()


def a_whiteout_in_every_directory(count: int) -> tuple[Iterator[Change], Iterator[Change]]:
    def above() -> Iterator[Change]:
        for number in range(count):
            yield file(f"d{number}/new")
            yield whiteout(f"d{number}")

    return (file(f"d{number}/old") for number in range(count)), above()


def an_opaque_marker_in_every_directory(count: int) -> tuple[Iterator[Change], Iterator[Change]]:
    def above() -> Iterator[Change]:
        for number in range(count):
            yield file(f"s/t/u/v/d{number}/new")
            yield opaque(f"s/t/u/v/d{number}")

    return (file(f"s/t/u/v/d{number}/old") for number in range(count)), above()


def one_opaque_marker_again_and_again(count: int) -> tuple[Iterator[Change], Iterator[Change]]:
    def above() -> Iterator[Change]:
        for number in range(count):
            yield file(f"d/new{number}")
            yield opaque("d")
            yield whiteout("d")

    return (file(f"d/old{number}") for number in range(count)), above()


def opaque_markers_up_a_deep_tree(count: int) -> tuple[Iterator[Change], Iterator[Change]]:
    def above() -> Iterator[Change]:
        for number in range(count // 8):
            yield file(f"{deep(count // 40)}/new{number}")
        for length in range(count // 40, 0, -1):
            yield opaque(deep(length))

    return iter([file(f"{deep(count // 40)}/old")]), above()


def links_replaced_on_the_way(count: int) -> tuple[Iterator[Change], Iterator[Change]]:
    def above() -> Iterator[Change]:
        for number in range(count):
            yield symlink("l", f"d{number % 2}")
            yield file(f"l/{number}")

    return iter([directory("d0"), directory("d1")]), above()


def directories_that_become_files_and_back(count: int) -> tuple[Iterator[Change], Iterator[Change]]:
    def above() -> Iterator[Change]:
        for number in range(count):
            yield file(f"s/t/u{number % 7}/v/w{number % 100}")
            yield file(f"s/t/u{number % 7}")

    return iter([file("s/t/old")]), above()


def many_entries_in_one_directory(count: int) -> tuple[Iterator[Change], Iterator[Change]]:
    def above() -> Iterator[Change]:
        for number in range(count):
            yield file(f"d/{number}")
        for number in range(0, count, 2):
            yield link(f"d/l{number}", f"d/{number}")

    return iter([file("d/old")]), above()


ATTACKS = [
    whiteouts_of_nothing,
    whiteouts_of_directories,
    whiteouts_beside_files,
    a_whiteout_in_every_directory,
    an_opaque_marker_in_every_directory,
    one_opaque_marker_again_and_again,
    opaque_markers_up_a_deep_tree,
    links_replaced_on_the_way,
    directories_that_become_files_and_back,
    many_entries_in_one_directory,
]


def seconds(work: Callable[[], object]) -> float:
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        work()
        return time.process_time() - start
    finally:
        gc.enable()


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_time_to_apply_a_layer_grows_with_its_length(attack: Attack) -> None:
    def took(count: int) -> float:
        below, above = attack(count)
        tree = fold(below)
        layer = list(above)
        return seconds(lambda: apply(layer, MemorySink(tree)))

    short = min(took(4000), took(4000))
    assert took(16000) < 8 * short + 0.1


def chain(length: int) -> list[Change]:
    """Return a tree of nested directories with a file in each."""
    changes: list[Change] = []
    for depth in range(1, length + 1):
        changes += (directory(deep(depth)), file(f"{deep(depth)}/f"))
    return changes


def test_four_thousand_levels_are_applied_walked_and_compared_in_time() -> None:
    changes = chain(4000)
    markers: list[Change] = [opaque(deep(depth)) for depth in range(1, 4001, 8)]
    markers += [whiteout(f"{deep(depth)}/f") for depth in range(1, 4001, 8)]
    tree = MemoryTree()

    def work() -> None:
        apply(changes, MemorySink(tree))
        assert sum(1 for _ in walk(tree)) == 8001
        assert not list(diff(tree, tree))
        apply(markers, MemorySink(tree))

    assert seconds(work) < 20


def test_a_path_follows_no_more_links_than_on_linux() -> None:
    long = "/".join(["."] * (MAX_LINK_TEXT // 2 + 1))
    knot: list[Change] = [*(symlink(f"l{number}", f"l{number + 1}/.") for number in range(60)), directory("l60")]

    with pytest.raises(InvalidInput, match="characters of link targets"):
        fold([symlink("a", long), file("a/b")])
    with pytest.raises(InvalidInput, match="more than 40 symbolic links"):
        fold([*knot, file("l0/b")])
    assert fold([*knot, file("l30/b")]).lookup(file("l60/b").entry.path) is not None
    # Forty links, each with forty more among its parents: Linux counts links over the whole path.
    nested = "/".join(["l25"] * 3)
    with pytest.raises(InvalidInput, match="more than 40 symbolic links"):
        fold([*knot, symlink("l60/l25", "/l25"), file(f"{nested}/b")])


def test_limits_stop_a_layer_that_is_too_long_or_too_deep() -> None:
    with pytest.raises(Exhausted, match="more than 10 entries"):
        fold((file("a") for _ in range(11)), limits=Limits(entries=10))
    fold((file("a") for _ in range(10)), limits=Limits(entries=10))
    with pytest.raises(Exhausted, match="more than 5 components"):
        fold([file(f"{deep(6)}/f")], limits=Limits(depth=5))
    fold([file(f"{deep(5)}/f")], limits=Limits(depth=5))


def test_an_endless_layer_is_stopped() -> None:
    def endless() -> Iterator[Change]:
        while True:
            yield file("a")

    with pytest.raises(Exhausted):
        fold(endless(), limits=Limits(entries=1000))
