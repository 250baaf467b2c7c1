# SPDX-License-Identifier: Apache-2.0
"""The driver: calls of the sink, their order, and how it ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from lamella.changes.apply import Counts, apply
from lamella.changes.contracts import Seen
from lamella.changes.dump import dump
from lamella.changes.limits import Limits
from lamella.changes.model import Change, Content, Entry, Inline, Kind, Link, Opaque, Put, Stream, Whiteout
from lamella.changes.tree import MemorySink, MemoryTree, fold
from lamella.changes.whiteouts import PutRecord
from lamella.errors import Cancelled, Exhausted, InvalidInput, NotFound, UnsafePath
from lamella.paths import LayerPath
from lamella.progress import Cancellation
from lamella.testing.builders import directory, file, link, opaque, stream, symlink, whiteout


class Recorder:
    """A sink that stores changes as they are, as a tar does; records its calls."""

    def __init__(self, *, layered: bool = True) -> None:
        self.layered = layered
        self.taken: list[Change] = []
        self.ends: list[str] = []
        self.fails_to_commit = False

    @property
    def view(self) -> None:
        return None

    def put(self, entry: Entry, content: Content | None) -> bool | None:
        self.taken.append(Put(entry, content))
        return None

    def link(self, path: LayerPath, target: LayerPath) -> bool | None:
        self.taken.append(Link(path, target))
        return None

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        self.taken.append(Stream(path, name, content))

    def whiteout(self, path: LayerPath) -> bool | None:
        self.taken.append(Whiteout(path))
        return None

    def opaque(self, path: LayerPath, record: PutRecord) -> bool | None:
        self.taken.append(Opaque(path))
        return None

    def commit(self) -> str:
        self.ends.append("commit")
        if self.fails_to_commit:
            raise OSError("no space")
        return "result"

    def abort(self) -> None:
        self.ends.append("abort")


EVERY: list[Change] = [
    directory(""),
    file("a/b", b"text"),
    link("c", "a/b"),
    stream("a/b", "s", b"1"),
    whiteout("x/y"),
    opaque("z"),
    symlink("l", "a"),
    file("l/d"),
]


def test_a_sink_of_changes_receives_each_change_as_it_is() -> None:
    sink = Recorder()

    assert apply(EVERY, sink) == "result"
    assert list(dump(EVERY)) == list(dump(sink.taken))
    assert sink.ends == ["commit"]


def test_a_base_layer_has_no_markers() -> None:
    sink = Recorder(layered=False)
    apply(EVERY, sink)

    assert list(dump(change for change in EVERY if not isinstance(change, (Whiteout, Opaque)))) == list(
        dump(sink.taken)
    )


@pytest.mark.parametrize("broken", [UnsafePath("..", "why"), KeyboardInterrupt(), OSError()])
def test_after_any_error_the_sink_is_aborted_and_never_committed(broken: BaseException) -> None:
    def changes() -> Iterator[Change]:
        yield file("a")
        raise broken

    sink = Recorder()
    with pytest.raises(type(broken)):
        apply(changes(), sink)
    assert sink.ends == ["abort"]


def test_a_commit_that_fails_is_aborted() -> None:
    sink = Recorder()
    sink.fails_to_commit = True
    with pytest.raises(OSError, match="no space"):
        apply([], sink)
    assert sink.ends == ["commit", "abort"]


def test_the_changes_are_counted() -> None:
    counts = Counts()
    apply(EVERY, Recorder(), counts=counts)

    assert len(EVERY) == counts.changes


def test_a_layer_over_the_entry_limit_is_stopped() -> None:
    sink = Recorder()
    with pytest.raises(Exhausted):
        apply((file(str(number)) for number in range(100_000)), sink, limits=Limits(entries=100))
    assert len(sink.taken) < 512
    assert sink.ends == ["abort"]


def test_a_cancelled_layer_is_aborted() -> None:
    cancel = Cancellation()
    sink = Recorder()

    def changes() -> Iterator[Change]:
        for number in range(100_000):
            if number == 1000:
                cancel.cancel()
            yield file(str(number))

    with pytest.raises(Cancelled):
        apply(changes(), sink, cancel=cancel)
    assert len(sink.taken) < 1512
    assert sink.ends == ["abort"]


@pytest.mark.parametrize(
    "path", ["/a", "a//b", "a/", "./a", "a/.", "a/..", "../a", "a/../b", "a\0", "a\0/b", "//", "/"]
)
def test_sinks_of_changes_get_no_unsafe_names(path: str) -> None:
    unsafe: list[Change] = [
        *(file(path), directory(path), whiteout(path), opaque(path), stream(path, "s", b"")),
        *(link(path, "t"), link("l", path)),
    ]
    for change in unsafe:
        sink = Recorder()
        with pytest.raises(UnsafePath):
            apply([file("a/a"), file("t"), change], sink)
        assert len(sink.taken) == 2


@pytest.mark.parametrize("change", [file(""), symlink("", "a"), link("", "a"), link("a", ""), whiteout("")])
def test_the_root_stays_a_directory(change: Change) -> None:
    sink = Recorder()
    with pytest.raises(InvalidInput):
        apply([file("a"), change], sink)


def test_content_of_a_directory_is_not_passed_to_the_sink() -> None:
    sink = Recorder()
    apply([Put(directory("").entry, Inline(b"x"))], sink)

    assert sink.taken == [directory("")]


def test_a_subclass_of_put_raises_type_error() -> None:
    class Special(Put):
        pass

    with pytest.raises(TypeError, match="subclassed"):
        fold([Special(file("a").entry, None)])


class Watching(MemorySink):
    """A sink of files that records the canonical paths it receives."""

    def __init__(self, tree: MemoryTree) -> None:
        super().__init__(tree)
        self.given: list[str] = []
        self.looked: list[str] = []

    @property
    def view(self) -> Watching:
        return self

    def seen(self, path: LayerPath) -> Seen | None:
        self.looked.append(path)
        return super().seen(path)

    def put(self, entry: Entry, content: Content | None) -> bool | None:
        self.given.append(f"put {entry.path}")
        return super().put(entry, content)

    def link(self, path: LayerPath, target: LayerPath) -> bool | None:
        self.given.append(f"link {path} {target}")
        return super().link(path, target)

    def whiteout(self, path: LayerPath) -> bool | None:
        self.given.append(f"whiteout {path}")
        return super().whiteout(path)

    def opaque(self, path: LayerPath, record: PutRecord) -> bool | None:
        self.given.append(f"opaque {path}")
        return super().opaque(path, record)

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        self.given.append(f"stream {path} {name}")


def given(below: Iterable[Change], *layer: Change) -> list[str]:
    sink = Watching(fold(below))
    apply(layer, sink)
    return sink.given


def test_sinks_of_files_get_paths_without_links_among_the_parents() -> None:
    below: list[Change] = [directory("usr/lib"), symlink("lib", "usr/lib"), file("usr/lib/a"), directory("usr/lib/d")]
    layer: list[Change] = [
        *(
            file("lib/b"),
            link("lib/c", "lib/a"),
            whiteout("lib/a"),
            opaque("lib/d"),
            opaque("lib"),
            stream("lib/b", "s", b""),
        ),
    ]
    assert given(below, *layer) == [
        "put usr/lib/b",
        "link usr/lib/c usr/lib/a",
        "whiteout usr/lib/a",
        "opaque usr/lib/d",
        "opaque usr/lib",
        "stream usr/lib/b s",
        "put usr/lib/d",  # it was hidden by the second marker, and the first implies it
    ]


def test_implied_directories_are_put_once_and_top_down() -> None:
    assert given([], file("a/b/c"), file("a/b/d"), file("a/e")) == [
        "put a",
        "put a/b",
        "put a/b/c",
        "put a/b/d",
        "put a/e",
    ]


def test_a_stream_needs_its_directory() -> None:
    with pytest.raises(NotFound):
        given([], stream("a/b", "s", b""))


def test_known_parents_are_not_looked_up_again() -> None:
    below = [directory("a/b"), symlink("l", "a"), directory("x/y"), directory("x/z"), file("f"), file("a/g")]
    sink = Watching(fold(below))

    def changes() -> Iterator[Change]:
        yield from (file("a/b/1"), file("l/b/1"), file("x/y/1"))
        assert sink.looked == ["a", "a/b", "l", "a", "a/b", "x", "x/y"]
        sink.looked.clear()
        # None of the removed paths is the parent of a known place.
        yield from (
            whiteout("f"),
            whiteout("a/g"),
            whiteout("x/z"),
            symlink("m", "a"),
            symlink("m", "x"),
            file("a/b/1"),
        )
        yield from (file("a/b/2"), file("l/b/2"), file("x/y/2"))
        assert not sink.looked
        # This one is the parent of one, and may be the target of links.
        yield file("x/y")
        yield from (file("a/b/3"), file("x/3"))
        assert not sink.looked
        yield from (file("x/y/3"), file("l/b/3"))
        assert sink.looked == ["x/y", "l", "a", "a/b"]

    apply(changes(), sink)


def test_a_known_parent_is_forgotten_when_a_link_to_it_is_replaced() -> None:
    below = [directory("1/s"), directory("2/s"), symlink("l", "k"), symlink("k", "1"), symlink("1/t", "s")]

    assert given(below, file("l/t/a"), symlink("k", "2"), file("l/s/b"), file("l/t/c")) == [
        *("put 1/s/a", "put k", "put 2/s/b", "put 2/t", "put 2/t/c"),
    ]


def test_a_known_parent_is_forgotten_when_the_target_of_a_link_is_removed() -> None:
    below = [directory("1/2/3"), symlink("l", "1/2"), file("z")]

    assert given(below, file("l/3/a"), whiteout("1/2/3"), file("l/3/b")) == [
        # The whiteout does not hide files of its own layer, so it can only remove metadata.
        *("put 1/2/3/a", "opaque 1/2/3", "put 1/2/3", "put 1/2/3/b"),
    ]
    assert given(below, file("l/3/a"), file("1"), file("l/3/b")) == [
        *("put 1/2/3/a", "put 1", "put 1", "put 1/2", "put 1/2/3", "put 1/2/3/b"),
    ]


def test_a_marker_with_another_spelling_does_not_hide_files_of_its_layer() -> None:
    below = [directory("d"), file("d/old"), symlink("l", "d")]
    tree = apply([file("l/new"), opaque("d")], MemorySink(fold(below)))

    assert [entry.path for entry in tree.entries(LayerPath("d"))] == ["d/new"]
    tree = apply([file("d/new"), opaque("l")], MemorySink(fold(below)))
    assert [entry.path for entry in tree.entries(LayerPath("d"))] == ["d/new"]


def test_a_hard_link_after_the_whiteout_of_its_target_is_an_error() -> None:
    below = [file("a")]

    with pytest.raises(NotFound):
        given(below, whiteout("a"), link("b", "a"))
    assert given(below, link("b", "a"), whiteout("a")) == ["link b a", "whiteout a"]


def test_a_sink_that_cannot_tell_whether_it_hid_anything_is_assumed_to_have() -> None:
    class Silent(Watching):
        def opaque(self, path: LayerPath, record: PutRecord) -> bool | None:
            super().opaque(path, record)
            return None

    sink = Silent(fold([directory("a/b/c"), file("a/b/d")]))
    apply([file("a/b/c/1"), opaque("a/b"), file("a/b/c/2")], sink)
    assert sink.looked == ["a", "a/b", "a/b/c", "a/b/c"]
    assert sink.given == ["put a/b/c/1", "opaque a/b", "put a/b/c", "put a/b/c/2"]


def test_the_view_reports_the_kinds_of_the_tree() -> None:
    sink = MemorySink(fold([symlink("l", "t")]))

    assert sink.seen(LayerPath("l")) == Seen(Kind.SYMLINK, "t")
    assert sink.seen(LayerPath("m")) is None
