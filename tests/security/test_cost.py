# SPDX-License-Identifier: Apache-2.0
"""Cost of hostile layers: time proportional to their size, and little memory."""

from __future__ import annotations

import itertools
import os
import resource
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.security.routes import apply_tar
from tests.security.tars import Tar

from lamella.changes.apply import apply
from lamella.changes.limits import Limits
from lamella.changes.model import Change
from lamella.errors import Exhausted, InvalidInput
from lamella.formats.erofs.structures import crc32c
from lamella.layers.directory import dirfd_cache
from lamella.layers.erofs.overlay_sink import ErofsUpperSink
from lamella.layers.erofs.tree import ErofsLayer
from lamella.layers.stack import LayerStack
from lamella.testing.builders import file, whiteout

Layers = Callable[[int], list[Tar]]


def files(count: int, name: str = "d/f{}") -> Tar:
    tar = Tar()
    for number in range(count):
        tar.file(name.format(number), b"")
    return tar


def whiteouts(count: int, name: str = "d/f{}") -> Tar:
    tar = Tar()
    for number in range(count):
        tar.whiteout(name.format(number))
    return tar


def opaque_each(count: int) -> list[Tar]:
    lower, upper = files(count, "d/e{}/f"), Tar().file("d/x")
    for number in range(count):
        upper.opaque(f"d/e{number}").file(f"d/e{number}/g", b"").opaque("d")
    return [lower, upper.opaque()]


def replaced(count: int) -> list[Tar]:
    tar = Tar()
    for _ in range(count):
        tar.file("d/e/f/g/x", b"").file("d/e", b"")
    return [tar, tar]


def each_kind(count: int) -> list[Tar]:
    tar = Tar()
    for _ in range(count):
        tar.file("d/x", b"").directory("d/x").symlink("d/x", "y").node("d/x", b"6")
    return [tar, tar]


def aliases(count: int) -> list[Tar]:
    tar = Tar().directory("real/a/b/c")
    for number in range(count):
        tar.symlink("l", "real/a").file(f"l/b/c/f{number}", b"").whiteout(f"l/b/c/g{number}")
    return [tar, tar]


def many_aliases(count: int) -> list[Tar]:
    tar = Tar()
    for number in range(count):
        tar.symlink(f"l{number}", "r")
    for number in range(count):
        tar.file(f"l{number}/f", b"").symlink("r/f", "x")
    return [tar, tar]


def forks(count: int) -> list[Tar]:
    """Directories that are parents of a thousand others are removed repeatedly."""
    tar = Tar()
    for number in range(0, count, 200):
        for inner in range(200):
            tar.directory(f"d/{number}/{inner}/x")
        tar.symlink("d/e", "x").whiteout("d/e").file(f"d/{number}/0", b"")
    return [tar, tar]


def links(count: int) -> list[Tar]:
    tar = Tar().file("f")
    for number in range(count):
        tar.link(f"d{number % 100}/f{number}", "f")
    return [tar, tar]


LAYERS: dict[str, tuple[Layers, int]] = {
    "whiteouts of files": (lambda n: [files(n), whiteouts(n)], 12_500),
    "whiteouts of nothing": (lambda n: [files(1), whiteouts(n)], 25_000),
    "whiteouts in directories that are not there": (lambda n: [files(1), whiteouts(n, "e/f{}/g/h")], 12_500),
    "a whiteout in every directory": (lambda n: [files(n, "d/e{}/f"), whiteouts(n, "d/e{}/f")], 3_000),
    "whiteouts of directories": (lambda n: [files(n, "d/e{}/f"), whiteouts(n, "d/e{}")], 3_000),
    "an opaque marker in every directory": (opaque_each, 2_500),
    "one large directory, and its whiteout": (lambda n: [files(n), Tar().whiteout("d")], 25_000),
    "one large directory, and its opaque marker": (lambda n: [files(n), Tar().opaque("d")], 25_000),
    "one large directory of directories": (lambda n: [files(n, "d/{}/e"), Tar().file("d")], 4_000),
    "directories replaced by files and back": (replaced, 1_000),
    "every kind in place of another": (each_kind, 2_000),
    "a link replaced again and again": (aliases, 2_000),
    "many links to one directory": (many_aliases, 2_000),
    "directories that hold the way to many": (forks, 4_000),
    "hard links": (links, 7_500),
}


def seconds(layers: list[Tar], place: Path) -> float:
    """Return the processor time of applying ``layers``, which other load affects little."""
    place.mkdir()
    taken = 0.0
    for layer in layers:
        data = layer.done()
        start = time.process_time()
        apply_tar(data, place)
        taken += time.process_time() - start
    return taken


@pytest.mark.parametrize("kind", LAYERS)
def test_twice_the_layer_takes_twice_the_time(kind: str, memory: Path) -> None:
    build, count = LAYERS[kind]
    ratios = []
    for attempt in range(4):
        half = seconds(build(count // 2), memory / f"half-{attempt}")
        whole = seconds(build(count), memory / f"whole-{attempt}")
        ratios.append(whole / half)
        assert whole < 20
        if ratios[-1] <= 2.6:
            break
    assert min(ratios) <= 2.6, ratios


def deep(levels: int) -> str:
    return "/".join("d" * levels)


@pytest.mark.parametrize("how", ["a whiteout", "an opaque marker", "a file in its place"])
def test_four_thousand_levels_are_applied_in_time(how: str, memory: Path) -> None:
    top = memory / "out"
    top.mkdir()
    start = time.process_time()
    way = deep(4000)
    apply_tar(Tar().file(f"{way}/f").symlink("h", deep(2000)).symlink("l", f"h/{deep(2000)}"), top)
    apply_tar(Tar().whiteout(f"{way}/f").file(f"{way}/g").link(f"{way}/h", f"{way}/g").directory(way, 0o700), top)
    apply_tar(Tar().file("l/i").opaque("l").file("l/j/k"), top)
    here = os.open(top, os.O_RDONLY)
    for _ in range(4000):
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    assert sorted(os.listdir(here)) == ["i", "j"]
    os.close(here)
    match how:
        case "a whiteout":
            apply_tar(Tar().whiteout("d"), top)
        case "an opaque marker":
            apply_tar(Tar().opaque(), top)
        case _:
            apply_tar(Tar().file("d"), top)
    assert "d" not in os.listdir(top) or (top / "d").is_file()
    assert time.process_time() - start < 20


def test_a_stack_of_127_layers_is_applied_in_time(memory: Path) -> None:
    def stack(layers: int) -> list[Tar]:
        tars = []
        for number in range(layers):
            tar = Tar().directory("usr/lib").symlink("lib", "usr/lib").file(f"usr/lib/f{number}", b"").file("lib/same")
            for inner in range(50):
                tar.file(f"lib/d{number}/f{inner}", b"").file(f"usr/lib/shared/f{inner}", b"")
            tars.append(tar.whiteout(f"usr/lib/f{number - 1}").opaque(f"usr/lib/d{number - 1}"))
        return tars

    ratios = []
    for attempt in range(4):
        half = seconds(stack(64), memory / f"half-{attempt}")
        ratios.append(seconds(stack(127), memory / f"whole-{attempt}") / half)
        if ratios[-1] <= 2.6:
            break
    assert min(ratios) <= 2.6, ratios


def test_each_image_of_a_stack_has_its_checksum_computed_once(memory: Path) -> None:
    count = 40
    images = [ErofsLayer(memory / f"{number}.erofs") for number in range(count)]
    before = crc32c.cache_info().misses
    for number, image in enumerate(images):
        changes: list[Change] = [file("d/same"), file(f"d/f{number}"), whiteout(f"d/f{number - 1}")]
        apply(changes, ErofsUpperSink(image, parents=LayerStack(images[:number])))
    assert crc32c.cache_info().misses - before <= 3 * count


def peak(layers: list[Tar], place: Path, expect: type[Exception] | None = None) -> int:
    """Return the peak memory of applying ``layers``, without the tars themselves."""
    place.mkdir()
    data = [layer.done() for layer in layers]
    tracemalloc.start()
    try:
        for each in data:
            if expect is None:
                apply_tar(each, place)
            else:
                with pytest.raises(expect):
                    apply_tar(each, place)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


MIB = 1 << 20


def test_a_long_path_is_refused_before_it_costs_memory(memory: Path) -> None:
    """A path of 1 MiB has about 4,000 directories, whose paths add up to 2 GiB."""
    way = ("n" * 250 + "/") * 1000
    for tar in (Tar().file(f"{way}f"), Tar().whiteout(f"{way}f"), Tar().opaque(way[:-1]), Tar().link("a", f"{way}f")):
        assert peak([tar], memory / str(id(tar)), Exhausted) < 4 * MIB


def test_links_cannot_extend_a_path_beyond_the_limit(memory: Path) -> None:
    step = ("n" * 200 + "/") * 15
    tar = Tar().directory(f"a0/{step}")
    for number in range(40):
        tar.symlink(f"a{number + 1}", f"a{number}/{step}").directory(f"a{number + 1}/{step}")
    assert peak([tar], memory / "out", InvalidInput) < 16 * MIB


def test_alternative_spellings_of_one_directory_do_not_fill_memory(memory: Path) -> None:
    tar = Tar()
    for number in range(60):
        tar.file("./" * 100_000 + f"d{number}/f")
    assert peak([tar], memory / "out") < 8 * MIB


def test_directories_below_a_long_path_need_no_extra_memory(memory: Path) -> None:
    def wide(way: str) -> Tar:
        tar = Tar().directory(way).symlink("l", way)
        for number in range(3000):
            tar.directory(f"l/{number}")
        return tar

    short, long = peak([wide("n")], memory / "short"), peak([wide("/".join(["n" * 200] * 20))], memory / "long")
    assert long < short + 2 * MIB


def test_a_large_directory_is_removed_in_little_memory(memory: Path) -> None:
    """Its names are not all in memory at once."""
    top = memory / "out"
    top.mkdir()
    apply_tar(files(20_000, "d/" + "n" * 100 + "{}"), top)
    tracemalloc.start()
    apply_tar(Tar().whiteout("d"), top)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert os.listdir(top) == []
    assert taken < 2 * MIB


def test_memory_grows_by_less_than_a_hundred_bytes_an_entry(memory: Path) -> None:
    few, many = (
        peak([files(1), files(count, "usr/share/doc/package/file-{}")], memory / str(count))
        for count in (2_000, 22_000)
    )
    assert many - few < 100 * 20_000


def test_the_number_of_entries_is_bounded(target: Path) -> None:
    with pytest.raises(Exhausted, match="more than 300 entries"):
        apply_tar(files(10_000), target, limits=Limits(entries=300))
    assert len(os.listdir(target / "d")) < 600


def test_the_depth_is_bounded(target: Path) -> None:
    with pytest.raises(Exhausted, match="more than 20 components"):
        apply_tar(Tar().file("d/" * 21 + "f"), target, limits=Limits(depth=20))
    assert os.listdir(target) == []


def test_links_that_lead_back_and_forth_are_bounded(memory: Path) -> None:
    """Forty links of 2,000 components each would take 80,000 steps for one name."""
    tar = Tar().directory("a").symlink("l0", "a/.." + "/a/.." * 700)
    for number in range(39):
        tar.symlink(f"l{number + 1}", "a/../" * 800 + f"l{number}")
    start = time.process_time()
    with pytest.raises(InvalidInput, match="characters of link targets"):
        apply_tar(tar.file("l39/f"), memory)
    assert time.process_time() - start < 2


def test_few_descriptors_are_enough(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links between directories with more parents than file descriptors."""
    ways = [f"{side}/" + "/".join(str(number) for number in range(12)) for side in "abc"]
    lower, upper = Tar(), Tar()
    for way in ways:
        lower.file(f"{way}/f", way.encode()).directory(way, 0o2755)
    for one, other in itertools.permutations(ways, 2):
        upper.link(f"{one}/from-{other[0]}", f"{other}/f").file(f"{one}/new-{other[0]}")
        upper.directory(other, 0o755, mtime=7)
    monkeypatch.setattr(dirfd_cache, "_budget", lambda: 8)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + 14, hard))
    try:
        apply_tar(lower, memory)
        apply_tar(upper, memory)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for one, other in itertools.permutations(ways, 2):
        assert (memory / one / f"from-{other[0]}").read_bytes() == other.encode()
        assert os.lstat(memory / one).st_mtime_ns == 7
