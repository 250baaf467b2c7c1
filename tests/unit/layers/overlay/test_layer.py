# SPDX-License-Identifier: Apache-2.0
"""Upper directories as they lie on disk; what a mount shows of them is tried in the interop tests."""

from __future__ import annotations

import os
import resource
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from lamella.changes.apply import apply
from lamella.changes.losses import Losses
from lamella.changes.model import Change, Kind, Put
from lamella.changes.tree import merge, walk
from lamella.errors import Conflict, InvalidInput, NotFound, Unsupported
from lamella.layers.overlay.layer import TRUSTED, USER, OverlayLayer
from lamella.layers.overlay.sink import OverlaySink
from lamella.layers.overlay.tree import OverlayChanges, OverlayTree
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath
from lamella.testing.builders import device, directory, file, link, opaque, symlink, whiteout
from lamella.testing.reading import outline

pytestmark = pytest.mark.root


class Layers:
    """Upper directories in one place, each above those before."""

    def __init__(self, where: Path, *, user: bool | None = None) -> None:
        self.where = where
        self.user = user
        self.layers: list[OverlayLayer] = []
        self.losses = Losses()

    def add(self, changes: Sequence[Change]) -> Path:
        """The upper directory of a further layer, its parents known."""
        return self._apply(changes, LayerStack(self.layers))

    def add_blindly(self, changes: Sequence[Change]) -> Path:
        """The same, its parents not known."""
        return self._apply(changes, None)

    def _apply(self, changes: Sequence[Change], parents: LayerStack[OverlayLayer] | None) -> Path:
        path = self.where / str(len(self.layers))
        path.mkdir()
        layer = OverlayLayer(path, self.user)
        apply(changes, OverlaySink(layer, parents=parents, losses=self.losses))
        self.layers.append(layer)
        return path

    def outline(self) -> dict[str, str]:
        with OverlayTree(LayerStack(self.layers)) as tree:
            return outline(tree)


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def bind(name: str) -> None:
    """Make a socket in the working directory: the path of one may be 107 bytes long."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(name)


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def mark(path: Path, prefix: str = TRUSTED) -> bytes | None:
    name = prefix + "opaque"
    return os.getxattr(path, name) if name in os.listxattr(path) else None


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def test_a_whiteout_is_a_device_and_an_opaque_directory_has_a_mark(layers: Layers) -> None:
    layers.add([file("gone"), file("d/old")])
    upper = layers.add([whiteout("gone"), directory("d"), opaque("d"), file("d/new")])
    assert is_whiteout(upper / "gone")
    assert mark(upper / "d") == b"y"
    assert names(upper / "d") == ["new"]


def test_no_marker_is_made_where_nothing_lies_below(layers: Layers) -> None:
    layers.add([file("a"), directory("d")])
    upper = layers.add(
        [whiteout("none"), whiteout("d/none"), whiteout("a/x"), directory("e"), opaque("e"), opaque("d")]
    )
    assert names(upper) == ["d", "e"]
    assert mark(upper / "e") is None
    assert names(upper / "d") == []


def test_the_base_layer_has_no_markers(layers: Layers) -> None:
    upper = layers.add([whiteout("a"), file("d/a"), opaque("d"), whiteout("d")])
    assert names(upper) == ["d"]
    assert mark(upper / "d") is None


def test_where_nobody_knows_what_lies_below_every_marker_is_kept(layers: Layers) -> None:
    upper = layers.add_blindly([whiteout("a"), whiteout("b/c"), opaque("d"), file("e/f"), whiteout("e")])
    assert is_whiteout(upper / "a")
    assert is_whiteout(upper / "b" / "c")
    assert mark(upper / "d") == b"y"
    assert mark(upper / "e") == b"y"
    assert (upper / "e" / "f").is_file()
    assert stat.S_IMODE((upper / "b").stat().st_mode) == 0o755


def test_what_replaces_a_whiteout_or_a_file_hides_what_they_hid(layers: Layers) -> None:
    layers.add([file("a/x"), file("b/x"), file("c")])
    upper = layers.add([whiteout("a"), directory("a"), file("b"), directory("b"), whiteout("c"), directory("c")])
    assert [mark(upper / name) for name in "abc"] == [b"y", b"y", None]
    assert layers.outline() == {"a": "directory", "b": "directory", "c": "directory"}


def test_whiteouts_in_a_directory_that_turns_opaque_go(layers: Layers) -> None:
    layers.add([file("d/a"), file("d/e/b")])
    upper = layers.add([whiteout("d/a"), whiteout("d/e/b"), file("d/e/c"), opaque("d")])
    assert names(upper / "d") == ["e"]
    assert names(upper / "d" / "e") == ["c"]
    assert stat.S_IMODE((upper / "d" / "e").stat().st_mode) == 0o755


def test_an_opaque_root_is_spelled_out(layers: Layers) -> None:
    layers.add([file("a"), file("d/x"), file("e/x"), file("f")])
    upper = layers.add([file("d/y"), file("f"), opaque("")])
    assert names(upper) == ["a", "d", "e", "f"]
    assert is_whiteout(upper / "a")
    assert is_whiteout(upper / "e")
    assert mark(upper / "d") == b"y"
    assert mark(upper) is None
    assert layers.outline() == {"d": "directory", "d/y": "file", "f": "file"}


def test_an_opaque_root_above_unknown_layers_is_lost(layers: Layers) -> None:
    layers.add_blindly([opaque(""), file("a")])
    assert [loss.what for loss in layers.losses] == ["opaque marker"]


def test_directories_on_the_way_are_copied_up_with_their_metadata(layers: Layers) -> None:
    layers.add([directory("a", mode=0o700, uid=5, gid=6, mtime=7, xattrs={"user.x": b"1"}), directory("a/b", mtime=8)])
    layers.add([file("a/b/c")])
    upper = layers.add([file("a/b/d")])
    status = (upper / "a").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns) == (0o700, 5, 6, 7)
    assert os.getxattr(upper / "a", "user.x") == b"1"
    assert (upper / "a" / "b").stat().st_mtime_ns == 8


def test_the_root_is_copied_up_unless_it_is_stated(layers: Layers) -> None:
    layers.add([directory("", mode=0o711, mtime=5)])
    upper = layers.add([file("a")])
    assert (stat.S_IMODE(upper.stat().st_mode), upper.stat().st_mtime_ns) == (0o711, 5)
    upper = layers.add([directory("", mode=0o700, mtime=6)])
    assert (stat.S_IMODE(upper.stat().st_mode), upper.stat().st_mtime_ns) == (0o700, 6)


def test_a_file_below_that_gets_a_further_name_is_copied_up(layers: Layers) -> None:
    layers.add([file("d/a", b"data", mode=0o4711, uid=5, mtime=7)])
    upper = layers.add([link("b", "d/a")])
    assert os.path.samefile(upper / "b", upper / "d" / "a")
    status = (upper / "b").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_mtime_ns) == (0o4711, 5, 7)
    assert (upper / "b").read_bytes() == b"data"
    assert layers.losses.count == 0


def test_names_below_that_stay_behind_are_reported(layers: Layers) -> None:
    layers.add([file("a", b"data"), link("b", "a")])
    layers.add([link("c", "a")])
    assert [(loss.path, loss.what) for loss in layers.losses] == [("a", "hard links to its other names below")]
    with OverlayTree(LayerStack(layers.layers)) as tree:
        one, other, third = (tree.identity(LayerPath(name)) for name in "abc")
    assert one == third != other


def test_a_link_to_what_is_not_there_is_an_error(layers: Layers) -> None:
    layers.add([file("a"), directory("d")])
    with pytest.raises(NotFound):
        layers.add([whiteout("a"), link("b", "a")])
    layers.where.joinpath("1").rename(layers.where / "failed")
    with pytest.raises(InvalidInput):
        layers.add([link("b", "d")])
    layers.where.joinpath("1").rename(layers.where / "failed too")
    with pytest.raises(NotFound, match="the layers below are unknown"):
        layers.add_blindly([link("b", "a")])


def test_links_below_lead_where_they_lead(layers: Layers) -> None:
    layers.add([directory("usr/lib"), symlink("lib", "usr/lib"), file("usr/lib/old")])
    upper = layers.add([file("lib/new"), whiteout("lib/old")])
    assert names(upper) == ["usr"]
    assert is_whiteout(upper / "usr" / "lib" / "old")
    assert (upper / "usr" / "lib" / "new").is_file()


def test_a_device_that_would_be_a_whiteout_is_lost(layers: Layers) -> None:
    layers.add([file("a"), file("d/b")])
    upper = layers.add([device("a", 0, 0), device("n", 0, 0), link("m", "a"), device("d/b", 0, 0), opaque("d")])
    assert [(loss.path, loss.what) for loss in layers.losses][:3] == [
        ("a", "character device 0:0"),
        ("n", "character device 0:0"),
        ("m", "hard link"),
    ]
    assert is_whiteout(upper / "a")
    assert names(upper) == ["a", "d"]
    assert names(upper / "d") == []
    assert layers.outline() == {"d": "directory"}


def test_an_upper_directory_takes_a_single_layer(layers: Layers, tmp_path: Path) -> None:
    upper = layers.add([file("a")])
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Conflict, match="not empty"):
        OverlaySink(OverlayLayer(upper), parents=LayerStack(layers.layers))
    assert len(os.listdir("/proc/self/fd")) == before


def test_all_is_closed_after_commit_and_abort(layers: Layers) -> None:
    layers.add([file("a/b")])
    before = len(os.listdir("/proc/self/fd"))
    layers.add([file("a/c"), whiteout("a/b")])
    with pytest.raises(NotFound):
        layers.add([file("x/y"), link("b", "none")])
    assert len(os.listdir("/proc/self/fd")) == before


class TestMarksOfTheUnprivileged:
    """``user.overlay.*`` marks, and whiteouts where no device can be made."""

    def test_opaque_marks_are_attributes_of_users(self, tmp_path: Path) -> None:
        layers = Layers(tmp_path, user=True)
        layers.add([file("d/a")])
        upper = layers.add([opaque("d")])
        assert mark(upper / "d", USER) == b"y"
        assert mark(upper / "d", TRUSTED) is None
        assert layers.outline() == {"d": "directory"}

    def test_whiteouts_are_marked_files_where_no_device_can_be_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_args: object, **_kwargs: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "mknod", refuse)
        layers = Layers(tmp_path, user=True)
        stack: list[list[Change]] = [
            [file("a"), file("d/x"), file("d/y"), file("e/z"), file("s", b"1")],
            [whiteout("a"), whiteout("d/x"), file("d/new"), whiteout("e/z"), opaque("e"), file("f"), whiteout("s")],
            [file("s"), whiteout("d/y")],
        ]
        uppers = [layers.add(changes) for changes in stack]
        assert os.getxattr(uppers[1] / "a", USER + "whiteout") == b"y"
        assert mark(uppers[1], USER) == b"x"
        assert mark(uppers[1] / "d", USER) == b"x"
        assert mark(uppers[1] / "e", USER) == b"y"
        assert outline(merge(stack)) == layers.outline()
        with OverlayTree(LayerStack(layers.layers)) as tree:
            assert tree.lookup(LayerPath("a")) is None
            assert tree.lookup(LayerPath("s")) is not None

    def test_a_marked_file_counts_only_where_the_kernel_looks_for_it(self, layers: Layers) -> None:
        layers.add([file("a", b"below")])
        upper = layers.add([file("a")])
        os.setxattr(upper / "a", TRUSTED + "whiteout", b"y")
        assert layers.outline() == {"a": "file"}
        os.setxattr(upper, TRUSTED + "opaque", b"x")
        assert layers.outline() == {}

    def test_marks_of_users_mean_nothing_to_a_mount_of_roots(self, layers: Layers) -> None:
        layers.add([file("d/a")])
        upper = layers.add([directory("d")])
        os.setxattr(upper / "d", USER + "opaque", b"y")
        assert layers.outline() == {"d": "directory", "d/a": "file"}


class TestReadingAnUpperDirectory:
    """What an overlay mount left in its upper directory, as changes."""

    def test_marks_become_markers(self, layers: Layers) -> None:
        layers.add([file("gone"), file("d/old"), file("e/old")])
        upper = layers.add([whiteout("gone"), directory("d"), opaque("d"), file("d/new"), link("n", "d/new")])
        with OverlayChanges(OverlayLayer(upper)) as changes:
            found = list(changes)
        stated = [change.entry.path if isinstance(change, Put) else change for change in found]
        assert ["", whiteout("gone"), "d", opaque("d"), "d/new", link("n", "d/new")] == stated

    @pytest.mark.parametrize("name", ["metacopy", "redirect"])
    def test_a_layer_that_does_not_stand_for_itself_is_refused(self, layers: Layers, name: str) -> None:
        upper = layers.add([file("f"), directory("d")])
        os.setxattr(upper / ("f" if name == "metacopy" else "d"), TRUSTED + name, b"/x")
        with OverlayChanges(OverlayLayer(upper)) as changes, pytest.raises(Unsupported, match=TRUSTED + name):
            list(changes)
        with OverlayTree(LayerStack(layers.layers)) as tree, pytest.raises(Unsupported, match=TRUSTED + name):
            list(walk(tree))

    def test_other_marks_of_the_kernel_are_nothing_to_tell(self, layers: Layers) -> None:
        upper = layers.add([file("f"), directory("d")])
        for name in ("origin", "impure", "nlink", "uuid"):
            os.setxattr(upper / "d", TRUSTED + name, b"x")
        with OverlayChanges(OverlayLayer(upper)) as changes:
            assert all(not put.entry.posix.xattrs for put in changes if isinstance(put, Put) and put.entry.posix)

    def test_a_socket_is_a_whiteout(self, layers: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        upper = layers.add([file("f")])
        monkeypatch.chdir(upper)
        bind("s")
        with OverlayChanges(OverlayLayer(upper)) as changes:
            assert [whiteout("s")] == [change for change in changes if not isinstance(change, Put)]

    def test_a_plain_directory_is_a_layer_too(self, layers: Layers, tmp_path: Path) -> None:
        (tmp_path / "plain").mkdir()
        (tmp_path / "plain" / "f").write_bytes(b"x")
        layers.layers.append(OverlayLayer(tmp_path / "plain"))
        layers.add([whiteout("f"), file("g")])
        assert layers.outline() == {"g": "file"}


@pytest.mark.parametrize("below", [file("s"), directory("s"), symlink("s", "f")])
def test_a_socket_hides_what_is_below(layers: Layers, monkeypatch: pytest.MonkeyPatch, below: Change) -> None:
    layers.add([below, file("f"), *([file("s/inside")] if below == directory("s") else [])])
    monkeypatch.chdir(layers.add([]))
    bind("s")
    with OverlayTree(LayerStack(layers.layers)) as tree:
        assert tree.lookup(LayerPath("s")) is None
        assert tree.seen(LayerPath("s")) is None
        assert tree.lookup(LayerPath("s/inside")) is None
        assert outline(tree) == {"f": "file"}
        for inside in (tree.entries, tree.open):
            with pytest.raises(NotFound):
                inside(LayerPath("s"))


def test_lookup_and_listing_agree_in_a_stack(layers: Layers) -> None:
    layers.add([file("a/1"), file("a/2", b"low"), file("b"), directory("c")])
    layers.add([file("a/2", b"high"), file("a/3"), whiteout("b"), file("c"), symlink("d", "a")])
    layers.add([whiteout("a/1"), directory("c"), file("c/x")])
    with OverlayTree(LayerStack(layers.layers)) as tree:
        for listed in (False, True):
            if listed:
                for where in ("", "a", "c"):
                    tree.entries(LayerPath(where))
            assert b"".join(map(bytes, tree.open(LayerPath("a/2")).chunks())) == b"high"
            assert b"".join(map(bytes, tree.open(LayerPath("a/3")).chunks())) == b""
            for gone in ("a/1", "b", "d/1", "none"):
                assert tree.lookup(LayerPath(gone)) is None
                with pytest.raises(NotFound):
                    tree.open(LayerPath(gone))
            assert tree.identity(LayerPath("a/2")) is None
        assert {entry.path: entry.kind for entry in tree.entries(LayerPath(""))} == {
            "a": Kind.DIRECTORY,
            "c": Kind.DIRECTORY,
            "d": Kind.SYMLINK,
        }
        with pytest.raises(InvalidInput):
            tree.entries(LayerPath("d"))
        with pytest.raises(InvalidInput):
            OverlayTree(LayerStack([]))


def test_a_stack_of_127_layers_needs_few_descriptors(tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        for number in range(126):
            path = f"a/{number % 5}/{number % 7}/{number % 11}/f{number}"
            layers.add_blindly([file(path), whiteout(f"a/{number % 5}/gone")])
        layers.add([file("a/0/0/0/new"), *(whiteout(f"a/{n % 5}/{n % 7}/{n % 11}/f{n}") for n in range(125))])
        found = [path for path, words in layers.outline().items() if words == "file"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found == ["a/0/0/0/new", "a/0/6/4/f125"]
