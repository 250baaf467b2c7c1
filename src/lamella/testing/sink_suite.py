# SPDX-License-Identifier: Apache-2.0
"""Contract suites of sinks that store files, run through `lamella.changes.apply` as users run it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from lamella.changes.apply import apply
from lamella.changes.contracts import Sink, Tree
from lamella.changes.losses import Losses
from lamella.changes.model import Buffer, Change, Content, Entry, Kind, Put, dense
from lamella.errors import InvalidInput, NotFound, StreamConsumed, UnsafePath, Unsupported
from lamella.paths import ROOT, LayerPath
from lamella.testing.builders import (
    WHEN,
    device,
    directory,
    fifo,
    file,
    link,
    opaque,
    sparse,
    stream,
    symlink,
    whiteout,
)
from lamella.testing.reading import at, closed_after, held, outline, raises


class Place(Protocol):
    """Target for a stack of layers, and view of the result."""

    @property
    def losses(self) -> Losses:
        """Metadata that the sinks could not store."""
        ...

    def sink(self) -> Sink[Any]:
        """Return a sink for the next layer, above the committed ones."""
        ...

    def tree(self) -> Tree:
        """Return the merged tree of the committed layers."""
        ...


class _Broken:
    """Content that fails after its first chunk."""

    size = 10
    extents = None
    stored = False

    def chunks(self) -> Iterator[Buffer]:
        yield b"12345"
        raise BrokenStreamError


class BrokenStreamError(Exception):
    """Error of a broken blob."""


class _SinkSuite:
    def make(self, tmp_path: Path) -> Place:
        """Return an empty place; ``tmp_path`` is an empty directory for it."""
        raise NotImplementedError

    def stacked(self, tmp_path: Path, *layers: Iterable[Change]) -> Place:
        """Return a new place with ``layers``, base first."""
        root = tmp_path / f"place{len(list(tmp_path.iterdir()))}"
        root.mkdir()
        place = self.make(root)
        for layer in layers:
            apply(layer, place.sink())
        return place

    def outline(self, tmp_path: Path, *layers: Iterable[Change]) -> dict[str, str]:
        """Return the outline of ``layers``, applied to a new place."""
        with closed_after(self.stacked(tmp_path, *layers).tree()) as tree:
            return outline(tree)

    def entries(self, tmp_path: Path, *layers: Iterable[Change], paths: str) -> list[Entry]:
        """Return the entries at ``paths``, separated by spaces, in a new place with ``layers``."""
        with closed_after(self.stacked(tmp_path, *layers).tree()) as tree:
            return [at(tree, path.removeprefix("/")) for path in paths.split()]


def _mode_and_time(entry: Entry) -> tuple[int, int]:
    assert entry.posix is not None
    return entry.posix.mode, entry.posix.mtime


KINDS = (file("x", b"text"), directory("x"), symlink("x", "nowhere"), fifo("x"))


class SinkTests(_SinkSuite):
    """Contract of sinks. A binding defines ``make``."""

    def test_a_place_without_layers_is_an_empty_root(self, tmp_path: Path) -> None:
        assert self.outline(tmp_path) == {}

    def test_each_kind_of_file_keeps_its_metadata(self, tmp_path: Path) -> None:
        layer = [
            file("a", b"text", mode=0o640, mtime=1),
            directory("b", mode=0o700, mtime=2_000_000_001),
            symlink("c", "../some where/else", mtime=WHEN),
            fifo("d", mode=0o620),
            file("e", mode=0o4755),
        ]
        with closed_after(self.stacked(tmp_path, layer).tree()) as tree:
            assert tree.entries(ROOT) == [put.entry for put in layer]
            assert held(tree.open(LayerPath("a"))) == b"text"
            assert held(tree.open(LayerPath("e"))) == b""

    def test_every_kind_replaces_every_kind(self, tmp_path: Path) -> None:
        child = file("x/child")
        for old in KINDS:
            for new in KINDS:
                below: list[Change] = [old, child] if old.entry.kind is Kind.DIRECTORY else [old]
                both = old.entry.kind is new.entry.kind is Kind.DIRECTORY
                for layers in ([below, [new]], [[*below, new]], [[whiteout("x"), *below, new]]):
                    found = self.outline(tmp_path, *layers)
                    assert list(found) == (["x", "x/child"] if both else ["x"])
                    assert found["x"].startswith(new.entry.kind.value)

    def test_a_directory_over_a_directory_changes_only_its_metadata(self, tmp_path: Path) -> None:
        below = [directory("a", mode=0o700, xattrs={}), file("a/b", b"kept"), directory("a/c"), file("a/c/d")]
        place = self.stacked(tmp_path, below, [directory("a", mode=0o711, mtime=5)])

        with closed_after(place.tree()) as tree:
            assert outline(tree) == {"a": "directory", "a/b": "file kept", "a/c": "directory", "a/c/d": "file"}
            assert _mode_and_time(at(tree, "a")) == (0o711, 5)

    def test_a_directory_keeps_its_time_when_files_are_added_later(self, tmp_path: Path) -> None:
        below = [directory("a", mtime=5), directory("a/b", mtime=6)]
        above: list[Change] = [directory("a", mtime=7), file("a/b/c"), link("a/d", "a/b/c"), whiteout("a/none")]

        (a, b) = self.entries(tmp_path, below, above, paths="a a/b")
        assert [_mode_and_time(a)[1], _mode_and_time(b)[1]] == [7, 6]

    def test_the_root_keeps_its_metadata(self, tmp_path: Path) -> None:
        (root, a) = self.entries(tmp_path, [directory("", mode=0o711, mtime=5), file("a")], paths="/ a")
        assert _mode_and_time(root) == (0o711, 5)
        assert a.kind is Kind.FILE

    def test_the_last_of_two_files_of_one_name_wins(self, tmp_path: Path) -> None:
        assert self.outline(tmp_path, [file("a", b"1"), file("a", b"2")]) == {"a": "file 2"}

    # Parents

    def test_missing_parents_are_implied(self, tmp_path: Path) -> None:
        found = self.entries(tmp_path, [file("a/b/c")], paths="a a/b")
        assert [_mode_and_time(entry) for entry in found] == [(0o755, 0), (0o755, 0)]
        assert [(entry.posix.uid, entry.posix.gid) for entry in found if entry.posix] == [(0, 0), (0, 0)]

    def test_existing_parents_keep_their_metadata(self, tmp_path: Path) -> None:
        below = [directory("a", mode=0o711, mtime=5), directory("a/b", mode=0o700, mtime=6)]

        found = self.entries(tmp_path, below, [file("a/b/c")], paths="a a/b")
        assert [_mode_and_time(entry) for entry in found] == [(0o711, 5), (0o700, 6)]

    def test_an_implied_parent_replaces_a_file(self, tmp_path: Path) -> None:
        assert self.outline(tmp_path, [file("a")], [file("a/b")]) == {"a": "directory", "a/b": "file"}

    def test_links_among_the_parents_are_followed_inside_the_root(self, tmp_path: Path) -> None:
        below = [
            *(directory("usr"), directory("usr/lib"), directory("deep"), directory("deep/er")),
            *(symlink("lib", "usr/lib"), symlink("deep/er/abs", "/usr/lib"), symlink("deep/er/up", "../../usr")),
            *(
                symlink("deep/er/out", "../../../../../usr"),
                symlink("chain", "deep/er/abs"),
                symlink("dot", "./usr/./"),
            ),
        ]
        above = [
            *(file("lib/1"), file("deep/er/abs/2"), file("deep/er/up/lib/3"), file("deep/er/out/lib/4")),
            *(file("chain/5"), file("dot/lib/6"), directory("chain/d"), file("lib/d/7")),
        ]
        new = self.outline(tmp_path, below, above).keys() - self.outline(tmp_path, below).keys()
        assert new == {*(f"usr/lib/{number}" for number in range(1, 7)), "usr/lib/d", "usr/lib/d/7"}

    def test_a_link_of_the_same_layer_is_followed(self, tmp_path: Path) -> None:
        layer = [directory("usr"), symlink("lib", "usr"), file("lib/a", b"1"), file("usr/a", b"2"), file("lib/b")]

        expected = {"lib": "symlink usr", "usr": "directory", "usr/a": "file 2", "usr/b": "file"}
        assert self.outline(tmp_path, layer) == expected

    def test_a_file_below_a_dangling_link_creates_the_target_directory(self, tmp_path: Path) -> None:
        expected = {"a": "symlink b/c", "b": "directory", "b/c": "directory", "b/c/d": "file"}
        assert self.outline(tmp_path, [symlink("a", "b/c"), file("a/d")]) == expected

    def test_a_replaced_link_leads_later_files_to_its_new_target(self, tmp_path: Path) -> None:
        layer = [directory("1"), directory("2"), symlink("a", "1"), file("a/x"), symlink("a", "2"), file("a/y")]

        expected = {"1": "directory", "1/x": "file", "2": "directory", "2/y": "file", "a": "symlink 2"}
        assert self.outline(tmp_path, layer) == expected
        expected = {"1": "directory", "1/x": "file", "2": "directory", "a": "directory", "a/y": "file"}
        assert self.outline(tmp_path, [*layer[:4], directory("a"), file("a/y")]) == expected

    def test_a_link_that_replaces_a_directory_redirects_later_files(self, tmp_path: Path) -> None:
        layer = [file("a/b/x"), directory("c"), symlink("a", "c"), file("a/b/y")]

        expected = {"a": "symlink c", "c": "directory", "c/b": "directory", "c/b/y": "file"}
        assert self.outline(tmp_path, layer) == expected

    def test_a_loop_of_symbolic_links_is_an_error(self, tmp_path: Path) -> None:
        with raises(InvalidInput):
            self.outline(tmp_path, [symlink("a", "b"), symlink("b", "a"), file("a/c")])

    def test_a_file_put_at_a_link_replaces_the_link(self, tmp_path: Path) -> None:
        below = [directory("d"), file("d/f", b"kept"), symlink("l", "d"), symlink("m", "d/f")]

        expected = {"d": "directory", "d/f": "file kept", "l": "directory", "m": "file new"}
        assert self.outline(tmp_path, below, [directory("l"), file("m", b"new")]) == expected

    # Hard links

    def test_a_hard_link_shares_the_file_of_its_target(self, tmp_path: Path) -> None:
        layer: list[Change] = [file("b", b"text", mode=0o600), link("a", "b"), directory("d"), link("d/c", "a")]
        with closed_after(self.stacked(tmp_path, layer).tree()) as tree:
            assert outline(tree) == {"a": "file text", "b": "link a", "d": "directory", "d/c": "link a"}
            assert at(tree, "d/c").posix == at(tree, "b").posix

    def test_a_hard_link_can_target_a_lower_layer(self, tmp_path: Path) -> None:
        found = self.outline(tmp_path, [directory("d"), file("d/a", b"text")], [link("b", "d/a")])
        assert found == {"b": "file text", "d": "directory", "d/a": "link b"}

    def test_a_file_survives_the_loss_of_one_of_its_names(self, tmp_path: Path) -> None:
        below: list[Change] = [file("a", b"old"), link("b", "a"), link("c", "a")]

        expected = {"a": "file new", "b": "file old", "c": "link b"}
        assert self.outline(tmp_path, below, [file("a", b"new")]) == expected
        assert self.outline(tmp_path, below, [whiteout("a")]) == {"b": "file old", "c": "link b"}

    def test_a_hard_link_replaces_a_file_of_any_kind(self, tmp_path: Path) -> None:
        for old in KINDS:
            layer: list[Change] = [file("y", b"1"), old, link("x", "y")]
            assert self.outline(tmp_path, layer) == {"x": "file 1", "y": "link x"}

    def test_a_hard_link_to_a_symbolic_link_does_not_follow_it(self, tmp_path: Path) -> None:
        layer: list[Change] = [file("f"), symlink("a", "f"), link("b", "a")]
        with closed_after(self.stacked(tmp_path, layer).tree()) as tree:
            assert at(tree, "b").target == "f"
            assert at(tree, "b").kind is Kind.SYMLINK
            assert tree.identity(LayerPath("a")) == tree.identity(LayerPath("b")) is not None

    def test_symbolic_links_among_the_parents_of_a_hard_link_target_are_followed(self, tmp_path: Path) -> None:
        layer: list[Change] = [directory("d"), file("d/a", b"text"), symlink("l", "/d"), link("l/b", "l/a")]

        expected = {"d": "directory", "d/a": "file text", "d/b": "link d/a", "l": "symlink /d"}
        assert self.outline(tmp_path, layer) == expected

    def test_a_hard_link_to_a_missing_path_or_a_directory_is_an_error(self, tmp_path: Path) -> None:
        wrong: list[tuple[list[Change], type[Exception]]] = [
            ([link("a", "b")], NotFound),
            ([link("a", "b/c")], NotFound),
            ([link("a", "a")], NotFound),
            ([file("b"), link("a", "b/c")], NotFound),
            ([directory("b"), link("a", "b")], InvalidInput),
            ([directory("b"), link("b", "b")], InvalidInput),
            ([file("b/c"), link("b", "b/c")], InvalidInput),
            ([file("b"), link("", "b")], InvalidInput),
            ([link("a", "")], InvalidInput),
        ]
        for layer, error in wrong:
            with raises(error):
                self.outline(tmp_path, layer)

    def test_a_hard_link_to_itself_changes_nothing(self, tmp_path: Path) -> None:
        assert self.outline(tmp_path, [file("a", b"text"), link("a", "a")]) == {"a": "file text"}

    # Markers

    def test_a_whiteout_hides_a_lower_file_of_any_kind(self, tmp_path: Path) -> None:
        below = [file("a"), directory("b"), directory("b/c"), file("b/c/d"), symlink("e", "b"), fifo("f"), file("g")]
        layer = [whiteout(name) for name in ("a", "b", "e", "f")]

        assert self.outline(tmp_path, below, layer) == {"g": "file"}

    def test_a_whiteout_of_a_missing_path_changes_nothing(self, tmp_path: Path) -> None:
        below = [file("a"), directory("d")]
        layer = [whiteout(path) for path in ("b", "d/e", "a/b", "none/at/all")]

        assert self.outline(tmp_path, below, layer) == {"a": "file", "d": "directory"}

    def test_a_whiteout_never_hides_files_of_its_own_layer(self, tmp_path: Path) -> None:
        below = [directory("a", mode=0o700), file("a/old"), directory("a/b", mode=0o700), file("a/b/old")]
        puts = [file("a/b/new")]
        expected = {"a": "directory", "a/b": "directory", "a/b/new": "file"}
        for layer in _orders([whiteout("a")], puts):
            place = self.stacked(tmp_path, below, layer)
            with closed_after(place.tree()) as tree:
                assert outline(tree) == expected
                # The whiteout also removes the metadata of the lower directory.
                assert [_mode_and_time(at(tree, path)) for path in ("a", "a/b")] == [(0o755, 0)] * 2

    def test_a_whiteout_keeps_the_metadata_that_its_layer_states(self, tmp_path: Path) -> None:
        below = [directory("a", mode=0o700), file("a/old")]
        for layer in _orders([whiteout("a")], [directory("a", mode=0o711, mtime=5), file("a/new")]):
            place = self.stacked(tmp_path, below, layer)
            with closed_after(place.tree()) as tree:
                assert outline(tree) == {"a": "directory", "a/new": "file"}
                assert _mode_and_time(at(tree, "a")) == (0o711, 5)

    def test_a_whiteout_follows_parent_links_but_not_the_last_component(self, tmp_path: Path) -> None:
        below = [directory("d"), file("d/a"), file("d/b"), symlink("l", "d"), symlink("m", "/d")]

        expected = {"d": "directory", "d/b": "file", "l": "symlink d"}
        assert self.outline(tmp_path, below, [whiteout("l/a"), whiteout("m")]) == expected

    def test_an_opaque_marker_hides_lower_files_at_any_position_in_the_layer(self, tmp_path: Path) -> None:
        below = [
            *(directory("a", mode=0o700, mtime=5), file("a/old"), file("a/both", b"old")),
            *(directory("a/d", mode=0o700), file("a/d/old"), file("z")),
        ]
        puts = [file("a/both", b"new"), file("a/d/new")]
        expected = {
            "a": "directory",
            "a/both": "file new",
            "a/d": "directory",
            "a/d/new": "file",
            "z": "file",
        }
        for layer in _orders([opaque("a")], puts):
            place = self.stacked(tmp_path, below, layer)
            with closed_after(place.tree()) as tree:
                assert outline(tree) == expected
                assert _mode_and_time(at(tree, "a")) == (0o700, 5)
                assert _mode_and_time(at(tree, "a/d")) == (0o755, 0)

    def test_nested_markers_hide_the_lower_files(self, tmp_path: Path) -> None:
        below = [file("a/b/c/old"), file("a/b/old"), file("a/old")]
        markers: list[Change] = [opaque("a"), whiteout("a/b"), opaque("a/b/c")]
        for layer in _orders(markers, [file("a/b/c/new")]):
            expected = {"a": "directory", "a/b": "directory", "a/b/c": "directory", "a/b/c/new": "file"}
            assert self.outline(tmp_path, below, layer) == expected

    def test_the_root_can_be_opaque(self, tmp_path: Path) -> None:
        assert self.outline(tmp_path, [file("a"), file("b/c")], [file("b/d"), opaque("")]) == {
            "b": "directory",
            "b/d": "file",
        }

    def test_an_opaque_marker_implies_its_directory(self, tmp_path: Path) -> None:
        expected = {"a": "directory", "b": "directory", "b/c": "directory"}
        assert self.outline(tmp_path, [file("a/old")], [opaque("a"), opaque("b/c")]) == expected
        assert self.outline(tmp_path, [opaque("a")]) == {"a": "directory"}

    def test_a_directory_that_replaced_a_file_hides_the_layers_below(self, tmp_path: Path) -> None:
        below = [file("a/old"), file("b/old")]
        above: list[Change] = [file("a"), directory("a"), file("a/new"), whiteout("b"), directory("b")]

        assert self.outline(tmp_path, below, above) == {"a": "directory", "a/new": "file", "b": "directory"}

    def test_three_layers_hide_put_and_hide_again(self, tmp_path: Path) -> None:
        layers: list[list[Change]] = [
            [file("a/1"), file("b/1"), file("c")],
            [opaque("a"), file("a/2"), whiteout("b"), whiteout("c")],
            [file("a/3"), file("b/3"), directory("c"), file("c/3")],
            [opaque("b"), whiteout("c/3")],
        ]
        expected = {"a": "directory", "a/2": "file", "a/3": "file", "b": "directory", "c": "directory"}
        assert self.outline(tmp_path, *layers) == expected

    def test_the_base_layer_has_nothing_to_hide(self, tmp_path: Path) -> None:
        layer: list[Change] = [file("a"), whiteout("a"), whiteout("b"), file("c/d"), opaque("c"), opaque("")]

        assert self.outline(tmp_path, layer) == {"a": "file", "c": "directory", "c/d": "file"}

    # Names and content

    def test_unsafe_names_are_refused(self, tmp_path: Path) -> None:
        for path in ("..", "a/../b", "/a", "a//b", "a/", ".", "a\0b", "a\0b/c", "/", "../a"):
            unsafe: list[Change] = [
                *(file(path), directory(path), symlink(path, "a"), whiteout(path), opaque(path)),
                *(link(path, "t"), link("l", path)),
            ]
            for change in unsafe:
                with raises(UnsafePath):
                    self.outline(tmp_path, [file("t"), change])
        roots: list[Change] = [file(""), symlink("", "a"), whiteout("")]
        for change in roots:
            with raises(InvalidInput):
                self.outline(tmp_path, [change])

    def test_all_other_names_are_kept_byte_for_byte(self, tmp_path: Path) -> None:
        names = [
            "a b",
            "a\nb",
            "\udcff",
            "e\u0301",
            "\u00e9",
            "...",
            "..a",
            "\\",
            "'\"`$*?",
            "\x01\x7f",
            "-rf",
            "~",
            "x" * 255,
        ]
        found = self.outline(tmp_path, [file(name, name.encode("utf-8", "surrogateescape")[:8]) for name in names])

        assert set(names) == set(found)

    def test_content_is_stored_without_change(self, tmp_path: Path) -> None:
        big = bytes(range(256)) * 9000
        holed = sparse(3 << 20, [(0, b"first"), (1 << 20, b"second"), ((3 << 20) - 1, b"!")])
        layer = [file("big", big), file("holed", holed), file("zeros", sparse(1 << 20)), file("none")]
        with closed_after(self.stacked(tmp_path, layer).tree()) as tree:
            for put in layer:
                content = put.content
                assert content is not None
                found = tree.open(put.entry.path)
                assert found.size == at(tree, put.entry.path).size == content.size
                assert held(found) == b"".join(map(bytes, dense(content)))

    def test_metadata_that_cannot_be_stored_is_reported(self, tmp_path: Path) -> None:
        put = file("a", b"text", xattrs={"user.one": b"\0\xff", "user.two": b""})
        place = self.stacked(tmp_path, [put])
        with closed_after(place.tree()) as tree:
            kept = at(tree, "a").posix
            assert kept is not None
            missing = {name for name in ("user.one", "user.two") if name not in kept.xattrs}
            assert {loss.what.split()[-1] for loss in place.losses if loss.path == "a"} == missing

    def test_alternate_streams_are_never_dropped_silently(self, tmp_path: Path) -> None:
        place = self.stacked(tmp_path)
        try:
            apply([file("a"), stream("a", "zone", b"1")], place.sink())
        except Unsupported:
            return
        assert len(place.losses) == 1

    # Direct calls of the sink

    def test_the_view_returns_the_entry_at_a_path(self, tmp_path: Path) -> None:
        sink = self.stacked(tmp_path, [symlink("l", "some/where"), file("f")]).sink()
        view = sink.view
        assert view is not None
        sink.put(directory("d").entry, None)
        try:
            seen = [view.seen(LayerPath(path)) for path in ("l", "f", "d", "d/none")]
            assert [None if thing is None else thing.kind for thing in seen] == [
                *(Kind.SYMLINK, Kind.FILE, Kind.DIRECTORY, None),
            ]
            assert seen[0] is not None
            assert seen[0].target == "some/where"
        finally:
            sink.abort()

    def test_a_sink_reports_removed_directories_and_links(self, tmp_path: Path) -> None:
        below = [file("f"), directory("d"), symlink("l", "f"), directory("e"), directory("g"), symlink("m", "f")]
        sink = self.stacked(tmp_path, [*below, file("t"), symlink("n", "f")]).sink()
        assert sink.layered
        try:
            assert not _put(sink, file("f"))
            assert not _put(sink, file("new"))
            assert not _put(sink, directory("d", mode=0o711))
            assert _put(sink, file("d"))
            assert _put(sink, symlink("l", "t"))
            assert _put(sink, symlink("l", "f"))
            assert sink.whiteout(LayerPath("e"))
            assert not sink.whiteout(LayerPath("f"))
            assert not sink.whiteout(LayerPath("none"))
            assert sink.link(LayerPath("g"), LayerPath("t"))
            assert sink.link(LayerPath("m"), LayerPath("t"))
            assert sink.whiteout(LayerPath("n"))
        finally:
            sink.abort()

    def test_the_first_layer_is_not_layered(self, tmp_path: Path) -> None:
        sink = self.stacked(tmp_path).sink()
        assert not sink.layered
        sink.abort()

    def test_a_broken_stream_is_an_error(self, tmp_path: Path) -> None:
        content: Content = _Broken()
        with raises(BrokenStreamError, InvalidInput, Unsupported, StreamConsumed):
            self.outline(tmp_path, [file("a", content)])


def _put(sink: Sink[Any], put: Put) -> bool | None:
    return sink.put(put.entry, put.content)


def _orders(markers: Sequence[Change], puts: Sequence[Change]) -> Iterator[list[Change]]:
    """Yield ``puts`` with the markers before, after and between them, and with everything twice."""
    yield [*markers, *puts]
    yield [*puts, *markers]
    yield [*puts, *reversed(markers)]
    yield [*puts[:1], *markers, *puts[1:]]
    yield [*markers, *puts, *markers]


class DeviceSinkTests(_SinkSuite):
    """For places that store devices, owners and system attributes; most need root for it."""

    def test_devices_and_owners_are_kept(self, tmp_path: Path) -> None:
        layer = [
            device("a", 1, 3, mode=0o666),
            device("b", 8, 300, block=True, uid=5, gid=6),
            directory("c", uid=1000, gid=1001, mode=0o2755),
            file("d", uid=1000, gid=1001, mode=0o6755),
            symlink("e", "a", uid=7, gid=8),
            fifo("f", uid=9, gid=10),
        ]
        place = self.stacked(tmp_path, layer)
        with closed_after(place.tree()) as tree:
            assert tree.entries(ROOT) == [put.entry for put in layer]
        assert len(place.losses) == 0

    def test_capabilities_are_kept(self, tmp_path: Path) -> None:
        capability = bytes.fromhex("0100000200040000000000000000000000000000")
        place = self.stacked(tmp_path, [file("a", b"text", uid=1000, xattrs={"security.capability": capability})])
        with closed_after(place.tree()) as tree:
            posix = at(tree, "a").posix
            assert posix is not None
            assert posix.xattrs == {"security.capability": capability}

    def test_replaced_metadata_leaves_no_old_attributes(self, tmp_path: Path) -> None:
        below = [directory("a", uid=1000, mode=0o3777, xattrs={"user.a": b"1", "user.b": b"2"})]
        new = directory("a", mode=0o755, xattrs={"user.b": b"3"})

        assert self.entries(tmp_path, below, [new], paths="a") == [new.entry]


class AtomicSinkTests(_SinkSuite):
    """For places where a failed layer leaves no trace."""

    def test_an_aborted_layer_leaves_no_trace(self, tmp_path: Path) -> None:
        below = [file("a", b"old"), file("d/b"), symlink("l", "d")]
        layer: list[Change] = [file("a", b"new"), whiteout("d"), file("l/c"), file("e", b"1"), opaque("")]
        place = self.stacked(tmp_path, below)
        before = self.outline(tmp_path, below)
        sink = place.sink()
        with raises(BrokenStreamError):
            apply(_failing(layer), sink)
        with closed_after(place.tree()) as tree:
            assert before == outline(tree)
        apply([file("next")], place.sink())
        with closed_after(place.tree()) as tree:
            assert outline(tree) == {**before, "next": "file"}


def _failing(layer: Iterable[Change]) -> Iterator[Change]:
    yield from layer
    raise BrokenStreamError
