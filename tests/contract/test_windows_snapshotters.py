# SPDX-License-Identifier: Apache-2.0
"""Contracts of the snapshotters for Windows layers, which have images instead of mounts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from tests.unit.layers.cim.test_layer import directory, file, tar_of, whiteout, windows_base
from tests.windows.stubs import StubCimfs, StubLoader, check_compiler

from lamella.changes.apply import apply
from lamella.changes.model import Change, Kind
from lamella.errors import Conflict, InvalidInput, NotFound, Unsupported
from lamella.formats.regf.keys import MemoryKey
from lamella.formats.regf.writer import encode_hive
from lamella.host.windows.cimfs import Cimfs, WindowsBuild
from lamella.layers.cim.block import BlockOptions
from lamella.layers.policy import Policy
from lamella.layers.windows.transforms import windows_from_posix
from lamella.oci.platform import parse_platform
from lamella.paths import ROOT, LayerPath
from lamella.store.check.check import check
from lamella.store.contract import BlockCimMount, CimMount, SnapshotKind
from lamella.store.disk_layout import snapshotter_path
from lamella.store.mounting import mount_all
from lamella.store.snapshots.drivers.blockcim import BlockCimDriver
from lamella.store.snapshots.snapshotter import LocalSnapshots, open_snapshotter
from lamella.store.store import Store
from lamella.store.unpack.image import unpack_image
from lamella.testing.images import image_of_tars, put_image
from lamella.testing.snapshot_graph_suite import SnapshotGraphTests

CONFIG = "Files/Windows/System32/config"


def layer_of(changes: Iterable[Change], parent: str) -> Iterable[Change]:
    """Return a Windows layer with ``changes``."""
    yield from () if parent else windows_base()
    yield from windows_from_posix(changes)


def committed(snapshots: LocalSnapshots, name: str, changes: Iterable[Change], parent: str = "") -> None:
    snapshots.prepare(f"extract {name}", parent)
    apply(changes, snapshots.sink(f"extract {name}"))
    snapshots.commit(name, f"extract {name}")


def names(snapshots: LocalSnapshots, key: str, path: str = "Files") -> list[str]:
    with snapshots.tree(key) as tree:
        return [entry.path.rpartition("/")[2] for entry in tree.entries(LayerPath(path))]


class TestCim(SnapshotGraphTests):
    def make(self, tmp_path: Path) -> LocalSnapshots:
        return open_snapshotter("cim", Store.open(tmp_path / "store").namespace("tests").context)

    def layer(self, changes: Iterable[Change], parent: str) -> Iterable[Change]:
        return layer_of(changes, parent)


class TestBlockCim(SnapshotGraphTests):
    @pytest.fixture(autouse=True)
    def compiler(self, needs: Callable[..., str]) -> None:
        check_compiler(needs)

    def make(self, tmp_path: Path) -> LocalSnapshots:
        return blocks(Store.open(tmp_path / "store"), StubCimfs())

    def layer(self, changes: Iterable[Change], parent: str) -> Iterable[Change]:
        return layer_of(changes, parent)


def blocks(store: Store, stub: StubCimfs, options: BlockOptions | None = None) -> LocalSnapshots:
    calls = Cimfs(StubLoader(cimfs=stub.library), WindowsBuild(27800))
    return LocalSnapshots(
        store.namespace("tests").context, BlockCimDriver(snapshotter_path(store.root, "blockcim"), options, calls=calls)
    )


class TestImagesOfSnapshots:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store.open(tmp_path / "store")

    @pytest.fixture
    def snapshots(self, store: Store) -> LocalSnapshots:
        return open_snapshotter("cimfs", store.namespace("tests").context)

    @pytest.fixture
    def images(self, store: Store) -> Path:
        return snapshotter_path(store.root, "cimfs") / "cim-layers"

    def test_show_what_the_layers_come_to(self, snapshots: LocalSnapshots) -> None:
        committed(snapshots, "base", windows_base(file("Files/kept", b"1"), file("Files/gone", b"2")))
        committed(snapshots, "top", [directory("Files"), file("Files/new", b"3"), whiteout("Files/gone")], "base")
        assert names(snapshots, "base") == ["Windows", "gone", "kept"]
        assert names(snapshots, "top") == ["Windows", "kept", "new"]
        snapshots.view("view", "top")
        snapshots.prepare("active", "top")
        assert names(snapshots, "view") == names(snapshots, "active") == ["Windows", "kept", "new"]
        with snapshots.tree("view") as tree:
            assert b"".join(tree.open(LayerPath("files/NEW")).chunks()) == b"3"
        snapshots.view("nothing")
        with snapshots.tree("nothing") as tree:
            root = tree.lookup(ROOT)
            assert (root is not None and root.kind, tree.entries(ROOT)) == (Kind.DIRECTORY, [])

    def test_carry_hives_from_layer_to_layer(self, snapshots: LocalSnapshots) -> None:
        committed(snapshots, "base", windows_base())
        delta = MemoryKey("d")
        delta.make("added")
        snapshots.prepare("of nothing", "base")
        snapshots.commit("middle", "of nothing")
        committed(snapshots, "top", [directory("Hives"), file("Hives/Sam_Delta", encode_hive(delta))], "middle")
        base, top = snapshots.directory("base") / "Hives", snapshots.directory("top") / "Hives"
        assert sorted(os.listdir(base)) == sorted(set(os.listdir(top)) - {"Sam_Delta"})
        assert (base / "SYSTEM_BASE").samefile(top / "SYSTEM_BASE")
        assert not (base / "SAM_BASE").samefile(top / "SAM_BASE")

    def test_are_what_mounts_name(self, store: Store, snapshots: LocalSnapshots, images: Path) -> None:
        (first,) = snapshots.prepare("extract 1")
        assert isinstance(first, CimMount)
        assert first.image is not None
        assert (first.image.parent, first.image.exists()) == (images, False)
        apply(windows_base(), snapshots.sink("extract 1"))
        assert first.image.exists()
        snapshots.commit("1", "extract 1")
        committed(snapshots, "2", [], "1")
        places = [snapshots.directory(name) for name in ("2", "1")]
        (active,), (view,) = snapshots.prepare("active", "2"), snapshots.view("view", "2")
        assert isinstance(active, CimMount)
        assert isinstance(view, CimMount)
        assert active.images[1] == first.image
        assert active == CimMount(snapshots.directory("active"), active.image, tuple(places), active.images)
        assert view.image == images / f"{snapshots.directory('view').name}.cim"
        assert not view.image.exists()
        assert view == CimMount(snapshots.directory("view"), view.image, tuple(places), active.images, readonly=True)
        with pytest.raises(Unsupported, match="only Windows"):
            mount_all((view,), store.root)

    def test_go_with_their_snapshots(self, snapshots: LocalSnapshots, images: Path) -> None:
        committed(snapshots, "base", windows_base())
        before = sorted(os.listdir(images))
        committed(snapshots, "top", [directory("Files"), file("Files/f", bytes(9000))], "base")
        assert len(os.listdir(images)) == 2 * len(before) == 14
        snapshots.remove("top")
        assert sorted(os.listdir(images)) == before

        def broken() -> Iterable[Change]:
            yield directory("Files")
            yield file("Files/f", b"1" * 300_000)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            committed(snapshots, "top", broken(), "base")
        assert sorted(os.listdir(images)) == before
        # The state that a killed process leaves.
        snapshots.prepare("extract killed", "base")
        sink = snapshots.sink("extract killed")
        for change in broken_off():
            sink.put(change.entry, change.content)  # type: ignore[union-attr]
        assert sorted(os.listdir(images)) != before
        snapshots.remove("extract killed")
        assert sorted(os.listdir(images)) == before
        snapshots.remove("extract top")
        snapshots.remove("base")
        assert os.listdir(images) == []
        snapshots.cleanup()

    def test_that_windows_wrote_go_too(self, snapshots: LocalSnapshots, images: Path) -> None:
        """Each image that Windows writes names its region files by a GUID."""
        from lamella.layers.cim.image import CimLayer
        from lamella.layers.cim.sink import CimSink

        (mount,) = snapshots.prepare("extract")
        assert isinstance(mount, CimMount)
        assert mount.image is not None
        apply(windows_base(), CimSink(CimLayer(mount.image, mount.folder)))
        snapshots.commit("base", "extract")
        assert len(os.listdir(images)) == 7
        snapshots.remove("base")
        assert os.listdir(images) == []

    def test_count_for_the_snapshot_alone(self, snapshots: LocalSnapshots) -> None:
        block = os.urandom(300_000)
        committed(snapshots, "base", windows_base(file("Files/big", block)))
        committed(snapshots, "top", [directory("Files"), file("Files/small", b"1")], "base")
        assert snapshots.usage("base").size >= 300_000
        assert snapshots.usage("top").size < 100_000
        assert snapshots.usage("top").inodes > 7

    def test_are_made_once(self, snapshots: LocalSnapshots) -> None:
        snapshots.prepare("extract")
        apply(windows_base(), snapshots.sink("extract"))
        with pytest.raises(Conflict, match="already"):
            snapshots.sink("extract")
        snapshots.prepare("extract 2")
        with pytest.raises(InvalidInput, match="owners"):
            snapshots.sink("extract 2", policy=Policy())

    def test_are_missed_by_a_check_of_the_store(self, store: Store, snapshots: LocalSnapshots, images: Path) -> None:
        committed(snapshots, "base", windows_base())
        snapshots.view("view", "base")
        snapshots.prepare("active", "base")
        assert (check(store).faults, check(store).notes) == ((), ())
        for path in images.glob("*.cim"):
            path.unlink()
        (fault,) = check(store).faults
        assert (fault.id, "image" in fault.problem) == ("base", True)


def broken_off() -> list[Change]:
    return [directory("Files"), file("Files/f", b"1" * 300_000)]


class TestBlockImagesOfSnapshots:
    @pytest.fixture(autouse=True)
    def compiler(self, needs: Callable[..., str]) -> None:
        check_compiler(needs)

    def test_are_merged_for_what_runs_on_them(self, tmp_path: Path) -> None:
        stub = StubCimfs()
        snapshots = blocks(Store.open(tmp_path / "store"), stub, BlockOptions(integrity=True, footer=True))
        (first,) = snapshots.prepare("default/1/extract-1 sha256:0")
        assert first == BlockCimMount(
            snapshots.directory("default/1/extract-1 sha256:0") / "layer.vhd" / "layer.cim", integrity=True, footer=True
        )
        apply(windows_base(), snapshots.sink("default/1/extract-1 sha256:0"))
        snapshots.commit("1", "default/1/extract-1 sha256:0")
        base = snapshots.directory("1")
        (scratch,) = snapshots.prepare("run on one", "1")
        assert scratch == BlockCimMount(
            snapshots.directory("run on one"), (base / "layer.vhd" / "layer.cim",), integrity=True, footer=True
        )
        committed(snapshots, "2", [directory("Files")], "1")
        top = snapshots.directory("2")
        assert not (top / "merged.vhd").exists()
        stub.library["stub_reset"]()
        (scratch,) = snapshots.prepare("run", "2")
        images = (top / "layer.vhd" / "layer.cim", base / "layer.vhd" / "layer.cim")
        merged = top / "merged.vhd" / "merged.cim"
        assert scratch == BlockCimMount(snapshots.directory("run"), images, merged=merged, integrity=True, footer=True)
        assert stub.calls == [
            f"CimCreateImage2 {top}/merged.vhd 0x58 - merged.cim",
            f"CimAddFsToMergedImage2 {top}/layer.vhd\\layer.cim 0x5",
            f"CimAddFsToMergedImage2 {base}/layer.vhd\\layer.cim 0x5",
            "CimCommitImage",
            "CimCloseImage",
            f"CimSealImage {top}/merged.vhd",
        ]
        # The merged image is created once.
        snapshots.view("look", "2")
        assert len(stub.calls) == 6
        with pytest.raises(Unsupported, match="only Windows can read block images"):
            snapshots.tree("look")

    def test_cannot_be_on_another_host(self, tmp_path: Path) -> None:
        store = Store.open(tmp_path / "store")
        snapshots = open_snapshotter("blockcim", store.namespace("tests").context)
        for make in (snapshots.prepare, snapshots.view):
            with pytest.raises(Unsupported, match="only Windows can write and read") as refusal:
                make("key")
            assert '"cim"' in (refusal.value.hint or "")
        assert snapshots.list() == []
        with pytest.raises(NotFound):
            snapshots.stat("key")
        snapshots.cleanup()
        assert [path for path in snapshotter_path(store.root, "blockcim").iterdir() if path.is_dir()] == []

    def test_are_missed_by_a_check_of_the_store(self, tmp_path: Path) -> None:
        store = Store.open(tmp_path / "store")
        snapshots = blocks(store, StubCimfs())
        committed(snapshots, "base", windows_base())
        snapshots.prepare("active", "base")
        assert check(store).faults == ()
        (snapshots.directory("base") / "layer.vhd").unlink()
        assert [fault.id for fault in check(store).faults] == ["base"]
        assert snapshots.stat("base").kind is SnapshotKind.COMMITTED


def test_an_image_of_windows_is_unpacked_into_images(tmp_path: Path) -> None:
    layers: list[list[Change]] = [
        windows_base(file("Files/a", b"1")),
        [directory("Files"), directory("Hives"), file("Files/b", b"2")],
    ]
    image = image_of_tars([tar_of(changes) for changes in layers], "windows/amd64")
    with Store.open(tmp_path / "store") as store:
        namespace = store.namespace("default")
        put_image(namespace, image, "image")
        unpacked = unpack_image(namespace, "image", "cimfs", platform=parse_platform("windows/amd64"))
        assert [layer.skipped for layer in unpacked.layers] == [False, False]
        assert names(namespace.snapshots("cimfs"), unpacked.snapshot) == ["Windows", "a", "b"]
        with pytest.raises(Unsupported, match="only Windows can write"):
            unpack_image(namespace, "image", "blockcim", platform=parse_platform("windows/amd64"))
