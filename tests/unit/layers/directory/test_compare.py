# SPDX-License-Identifier: Apache-2.0
"""Two directories side by side: what is left out is the same, and what is said is what a plain comparison says."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest

from lamella.changes.apply import apply
from lamella.changes.diff import diff, same_bytes
from lamella.changes.dump import dump
from lamella.changes.model import Change, Entry, Put
from lamella.changes.tree import walk
from lamella.errors import Conflict, LamellaError
from lamella.layers.directory import compare
from lamella.layers.directory.compare import DirectoriesComparison, Pairs
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.directory.tree import DirectoryTree
from lamella.paths import ROOT, LayerPath
from lamella.testing.builders import WHEN, device, directory, fifo, file, link, sparse, symlink

pytestmark = [
    pytest.mark.root,
    # The tests' own threads hold nothing that a forked process takes.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

SECOND = 1_000_000_000
LARGE = bytes(range(256)) * 2048


def laid_out(root: Path, changes: Iterable[Change]) -> Path:
    root.mkdir()
    apply(changes, DirectorySink(root))
    os.utime(root, ns=(0, 0))
    return root


@pytest.fixture
def looked(tmp_path: Path) -> Looker:
    return Looker(tmp_path)


class Looker:
    """Lays out two directories and tells what is left out when both are looked at."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self._count = 0

    def __call__(self, lower: Iterable[Change], upper: Iterable[Change], *, exact: bool = False) -> str:
        self._count += 1
        one = laid_out(self._where / f"lower{self._count}", lower)
        other = laid_out(self._where / f"upper{self._count}", upper)
        with DirectoryTree(one) as before, DirectoryTree(other) as after:
            pairs = Pairs(before.descriptor, after.descriptor, exact=exact)
            _, lows, ups, linked, both = pairs.compare(ROOT)
            every = {entry.path for entry in before.entries(ROOT)} & {entry.path for entry in after.entries(ROOT)}
            same = every - {*lows, *ups, *both}
            assert not same & {*linked}
            return " ".join([*sorted(same), *(f"{name}+" for name in sorted(linked))])


@pytest.mark.parametrize("mtime", [5 * SECOND, WHEN])
@pytest.mark.parametrize("content", [b"", b"text", b"x" * compare._STEP, LARGE])
def test_files_that_are_the_same_in_all_respects_are_left_out(looked: Looker, mtime: int, content: bytes) -> None:
    one = [file("a", content, mtime=mtime, mode=0o640, uid=5, xattrs={"user.a": b"1"}), file("b", b"other")]

    assert looked(one, one) == "a b"
    assert looked(one, one, exact=True) == "a b"


@pytest.mark.parametrize(
    "changed",
    [
        file("a", b"text", mode=0o600),
        file("a", b"text", uid=1),
        file("a", b"text", gid=1),
        file("a", b"text", mtime=WHEN + 1),
        file("a", b"text", xattrs={"user.a": b"1"}),
        file("a", b"longer"),
        symlink("a", "text"),
        fifo("a"),
        directory("a"),
        device("a", 1, 3),
    ],
)
def test_files_that_differ_in_any_respect_are_not(looked: Looker, changed: Put) -> None:
    beside = [file("b"), file("z", b"z")]

    assert looked([file("a", b"text"), *beside], [changed, *beside]) == "b z"
    assert looked([changed, *beside], [file("a", b"text"), *beside]) == "b z"


def test_attributes_are_compared_by_their_values(looked: Looker) -> None:
    one, other = ([file("a", xattrs={"user.a": value, "user.b": b""})] for value in (b"1", b"2"))

    assert looked(one, other) == ""
    assert looked(one, one) == "a"


@pytest.mark.parametrize("size", [4, compare._STEP - 1, compare._STEP, compare._STEP + 1, 3 * compare._STEP + 5])
def test_content_is_compared_to_its_last_byte_where_times_are_not_believed(looked: Looker, size: int) -> None:
    content = bytearray(os.urandom(size))
    one = [file(name, bytes(content), mtime=5 * SECOND) for name in ("a", "b", "c")]
    content[-1] ^= 1
    last = bytes(content)
    content[0] ^= 1
    other = [one[0], file("b", last, mtime=5 * SECOND), file("c", bytes(content), mtime=5 * SECOND)]

    assert looked(one, other) == "a"
    believed = [[file(put.entry.path, put.content) for put in side if put.content] for side in (one, other)]
    assert looked(*believed) == "a b c"
    assert looked(*believed, exact=True) == "a"


def test_whether_a_time_is_believed_is_asked_of_each_file(looked: Looker) -> None:
    def side(content: bytes) -> list[Change]:
        return [file(f"{number}", content, mtime=WHEN if number % 3 else 5 * SECOND) for number in range(8)]

    assert looked(side(b"one"), side(b"two")) == "1 2 4 5 7"


def test_files_with_several_names_stay_and_their_content_is_compared_once(looked: Looker) -> None:
    one: list[Change] = [file("a", b"1", mtime=0), link("b", "a"), file("c", b"1", mtime=0), file("d"), link("e", "d")]
    other: list[Change] = [
        file("a", b"1", mtime=0),
        file("b", b"1", mtime=0),
        link("c", "a"),
        file("d"),
        link("e", "d"),
    ]

    assert looked(one, other) == "a+ b+ c+"


def test_large_files_with_holes_are_left_to_those_who_know_where_they_are(looked: Looker) -> None:
    one = [file("a", sparse(1 << 30, [(1 << 29, b"x")]), mtime=0), file("b", sparse(4096), mtime=0)]

    assert looked(one, one) == "b"


def test_nothing_but_regular_files_is_ever_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = [laid_out(tmp_path / name, [fifo("f"), device("d", 1, 3), symlink("l", "f"), file("a")]) for name in "xy"]
    for root in roots:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(root / "s"))
    opened: list[str] = []
    really = os.open

    def watching(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        opened.append(os.fspath(path))
        return really(path, flags, mode, dir_fd=dir_fd)

    with DirectoryTree(roots[0]) as before, DirectoryTree(roots[1]) as after:
        monkeypatch.setattr(os, "open", watching)
        _, lows, ups, _, _ = Pairs(before.descriptor, after.descriptor, exact=True).compare(ROOT)
    assert opened == ["a", "a"]
    assert sorted(lows) == sorted(ups) == ["d", "f", "l", "s"]


def test_directories_are_compared_by_their_own_metadata(tmp_path: Path) -> None:
    same = [directory("a", mode=0o700), directory("b"), directory("c", xattrs={"user.a": b"1"}), directory("d")]
    lower = laid_out(tmp_path / "lower", same)
    upper = laid_out(tmp_path / "upper", [directory("a"), directory("b"), directory("c"), directory("d", mtime=1)])
    with DirectoryTree(lower) as before, DirectoryTree(upper) as after:
        pairs = Pairs(before.descriptor, after.descriptor, exact=False)
        assert pairs.compare(ROOT)[4] == ["a", "b", "c", "d"]
        assert [pairs.compare(LayerPath(name))[0] for name in "abcd"] == [False, True, False, False]
        assert Pairs(before.descriptor, after.descriptor, exact=False, xattrs=False).compare(LayerPath("c"))[0]


def test_a_file_system_without_attributes_is_no_obstacle(looked: Looker, monkeypatch: pytest.MonkeyPatch) -> None:
    one = [file("a", b"text", xattrs={"user.a": b"1"})]

    def none(file: int) -> list[str]:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "listxattr", none)
    assert looked(one, [file("a", b"text")]) == "a"


# All of it


def wide(count: int, *, odd: bool = False) -> list[Change]:
    """A tree of ``count`` directories with some files each; ``odd`` is much like it."""
    changes: list[Change] = []
    for number in range(count):
        where = f"d{number % 7}/e{number % 11}/f{number}"
        changed = odd and number % 13 == 0
        changes += [
            directory(where, mode=0o711 if changed else 0o755),
            file(f"{where}/a", b"one" if changed else b"two", mtime=5 * SECOND),
            file(f"{where}/b\udcff", LARGE[: number * 100], mtime=5 * SECOND),
            symlink(f"{where}/l", "new" if changed else "old"),
            file(f"{where}/c", b"1", mtime=5 * SECOND),
            link(f"{where}/k", f"{where}/c"),
        ]
        if changed:
            changes.append(file(f"{where}/new/x", b"x"))
        elif number % 17 == 0:
            changes.append(file(f"{where}/{'m' if odd else 'n'}/x", b"x"))
    return changes


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    where = tmp_path_factory.mktemp("trees")
    return laid_out(where / "lower", wide(150)), laid_out(where / "upper", wide(150, odd=True))


def lines(changes: Iterable[Change]) -> list[str]:
    return list(dump(changes))


def expected(trees: tuple[Path, Path]) -> list[str]:
    """What a comparison says that knows nothing of directories."""

    class Plain(DirectoryTree):
        def comparison(self, lower: DirectoryTree, *, exact: bool) -> None:
            return None

    with Plain(trees[0]) as before, Plain(trees[1]) as after:
        return lines(diff(before, after))


@pytest.fixture(params=["forked", "started"])
def eager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers are started at once, as forks or as new interpreters, whatever the machine."""
    monkeypatch.setattr("lamella.host.worker.can_fork", lambda: request.param == "forked")
    monkeypatch.setattr(compare, "_WORTH", 1)
    monkeypatch.setattr(compare, "_BATCH", 4)
    monkeypatch.setattr("lamella.host.worker.processors", lambda: 3)


def differences(trees: tuple[Path, Path]) -> list[str]:
    with DirectoryTree(trees[0]) as before, DirectoryTree(trees[1]) as after:
        return lines(diff(before, after))


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()


def test_one_process_says_what_a_plain_comparison_says(
    trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamella.host.worker.processors", lambda: 1)
    assert len(expected(trees)) > 100
    assert differences(trees) == expected(trees)


@pytest.mark.usefixtures("eager")
def test_several_processes_say_the_same_and_leave_no_trace(trees: tuple[Path, Path]) -> None:
    before = children()

    assert differences(trees) == expected(trees)
    assert children() == before


@pytest.mark.usefixtures("eager")
def test_other_processes_do_take_part(trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = 0
    really = compare._PairsWorker.take

    def counting(worker: compare._PairsWorker) -> list[tuple[compare._Job, compare.ComparedDirectory | None]]:
        nonlocal seen
        taken = really(worker)
        seen += sum(looked is not None for _, looked in taken)
        return taken

    monkeypatch.setattr(compare._PairsWorker, "take", counting)
    # This process is slow, so that the others, which have to start first, have the time to.
    slow = Pairs.compare

    def slowly(pairs: Pairs, path: LayerPath) -> compare.ComparedDirectory:
        import time

        time.sleep(0.005)
        return slow(pairs, path)

    monkeypatch.setattr(Pairs, "compare", slowly)
    assert differences(trees) == expected(trees)
    assert seen > 20


@pytest.mark.usefixtures("eager")
def test_the_directories_of_a_worker_that_dies_are_compared_here(
    trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = 0
    really = compare._PairsWorker.give

    def dying(worker: compare._PairsWorker, batch: list[compare._Job]) -> None:
        nonlocal given
        given += 1
        if given > 2:
            worker._worker._process.end()
        really(worker, batch)
        worker._worker._process.end()

    monkeypatch.setattr(compare._PairsWorker, "give", dying)
    assert differences(trees) == expected(trees)
    assert given > 0


@pytest.mark.usefixtures("eager")
def test_without_workers_this_process_compares_alone(trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("sys.executable", "/nowhere")
    monkeypatch.setattr(os, "fork", fail)
    assert differences(trees) == expected(trees)


@pytest.mark.usefixtures("eager")
def test_processes_end_with_a_diff_that_is_given_up(trees: tuple[Path, Path]) -> None:
    before = children()
    with DirectoryTree(trees[0]) as lower, DirectoryTree(trees[1]) as upper:
        changes = diff(lower, upper)
        for _ in range(50):
            next(changes)
        assert len(children()) > len(before)
        del changes
        assert children() == before


def test_an_exact_diff_of_large_trees_reads_all(trees: tuple[Path, Path]) -> None:
    with DirectoryTree(trees[0]) as lower, DirectoryTree(trees[0]) as same:
        assert not list(diff(lower, same, exact=True))


def test_trees_that_take_the_same_files_for_different_ones_are_compared_entry_by_entry(tmp_path: Path) -> None:
    root = laid_out(tmp_path / "root", [file("a", uid=1000)])
    with DirectoryTree(root, owners="recorded") as recorded, DirectoryTree(root) as actual:
        assert actual.comparison(recorded, exact=False) is None
        assert recorded.comparison(recorded, exact=False) is not None
    with DirectoryTree(root, xattrs="none") as bare, DirectoryTree(root) as actual:
        assert actual.comparison(bare, exact=False) is None


def test_a_directory_that_goes_while_it_is_looked_at_is_an_error(tmp_path: Path) -> None:
    roots = [laid_out(tmp_path / name, [directory("a/b"), directory("z")]) for name in "xy"]
    with DirectoryTree(roots[0]) as lower, DirectoryTree(roots[1]) as upper:
        comparison = DirectoriesComparison(lower, upper, exact=False, workers=0)
        comparison.entries(ROOT)
        for root in roots:
            (root / "a/b").rmdir()
            (root / "a").rmdir()
        with pytest.raises(LamellaError):
            comparison.entries(LayerPath("a"))


def test_a_file_that_changes_between_two_looks_is_said_as_it_is_or_an_error(tmp_path: Path) -> None:
    roots = [laid_out(tmp_path / name, [file("a", b"text", mtime=0), file("b", name.encode())]) for name in "xy"]
    with DirectoryTree(roots[0]) as lower, DirectoryTree(roots[1]) as upper:
        changes = diff(lower, upper)
        entries = upper.entries(ROOT)
        (roots[1] / "b").write_bytes(b"longer")
        assert [type(entry) for entry in entries] == [Entry, Entry]
        try:
            found = [change for change in changes if isinstance(change, Put)]
            for put in found:
                if put.content is not None:
                    assert same_bytes(put.content, upper.open(put.entry.path))
        except Conflict:
            return
        assert [put.entry.path for put in found] == ["b"]


def test_a_walk_after_a_diff_sees_everything(trees: tuple[Path, Path]) -> None:
    with DirectoryTree(trees[0]) as lower, DirectoryTree(trees[1]) as upper, DirectoryTree(trees[1]) as fresh:
        list(diff(lower, upper))
        assert lines(walk(fresh)) == lines(walk(upper))
