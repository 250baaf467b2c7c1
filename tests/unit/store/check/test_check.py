# SPDX-License-Identifier: Apache-2.0
"""A check beside others who are at work finds nothing wrong, and finds what is."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from lamella.changes.apply import apply
from lamella.changes.job import Job
from lamella.errors import Cancelled
from lamella.operations.store.rediff import Rediff
from lamella.operations.store.transfer import ImportOptions, import_image
from lamella.progress import Cancellation
from lamella.store.check.check import check
from lamella.store.check.repair import repair
from lamella.store.check.snapshots import Verdict
from lamella.store.contract import SnapshotKind
from lamella.store.disk_layout import blob_path
from lamella.store.gc.collect import collect
from lamella.store.snapshots.drivers.blockcim import BlockCimDriver
from lamella.store.store import Store
from lamella.testing.builders import file
from lamella.testing.images import small_image, tagged, write_layout


@pytest.fixture
def image(tmp_path: Path) -> str:
    """Return the name of a small image."""
    made = small_image({"a": b"a", "d/b": b"b"}, {"d/.wh.b": b"", "c": b"c" * 5000})
    return f"oci:{write_layout(str(tmp_path / 'layout'), [tagged(made.descriptor, 'it')], made.blobs)}:it"


@pytest.mark.parametrize("readonly", [False, True])
def test_a_check_beside_writers_reports_no_fault(image: str, tmp_path: Path, readonly: bool) -> None:
    problems: list[object] = []
    with Store.open(tmp_path / "store") as store:
        done = threading.Event()

        def work() -> None:
            namespace = store.namespace("default")
            try:
                for _ in range(8):
                    import_image(namespace, image, ImportOptions(name="it", unpack=True, snapshotter="native"))
                    namespace.images.delete("docker.io/library/it:latest")
                    collect(store)
            except BaseException as problem:
                problems.append(problem)
                raise
            finally:
                done.set()

        worker = threading.Thread(target=work)
        worker.start()
        with Store.open(tmp_path / "store", readonly=readonly) as looking:
            while not done.is_set():
                with Rediff() as differ:
                    problems += check(looking, compare=differ).faults
        worker.join()
    assert problems == []


def test_a_snapshot_without_a_layer_cannot_be_compared(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        namespace = store.namespace("default")
        snapshots = namespace.snapshots("native")
        snapshots.prepare("key")
        apply([file("f")], snapshots.sink("key"))
        snapshots.commit("own", "key")
        with Rediff() as differ:
            assert differ(namespace, snapshots, snapshots.stat("own")).verdict is Verdict.UNKNOWN
            found = check(store, compare=differ)
        assert (found.sound, len(found.undecided)) == (True, 1)


def test_a_view_of_its_parent_needs_no_files(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        for kind in ("native", "cimfs"):
            snapshots = store.namespace("default").snapshots(kind)
            snapshots.prepare_layer("key")
            snapshots.commit("own", "key")
            snapshots.view("seen", "own")
        assert check(store).faults == ()


@pytest.mark.parametrize(
    ("kind", "committed", "active"),
    [
        ("overlayfs", "fs", "fs"),
        ("native", "fs", "fs"),
        ("erofs", "layer.erofs", "fs"),
        ("cimfs", "image", "image"),
    ],
)
def test_a_snapshot_without_the_files_of_its_driver_is_a_fault(
    tmp_path: Path, kind: str, committed: str, active: str
) -> None:
    missing = (
        "the file that names its image is missing or damaged" if kind == "cimfs" else "{!r} is missing in its directory"
    )
    with Store.open(tmp_path / "store") as store:
        snapshots = store.namespace("default").snapshots(kind)
        snapshots.prepare_layer("key")
        snapshots.commit("own", "key")
        snapshots.prepare_layer("other")
        assert check(store).faults == ()
        for key, name in (("own", committed), ("other", active)):
            os.rename(snapshots.directory(key) / name, tmp_path / f"{key}.{name}")
        found = {finding.id: finding.problem for finding in check(store).faults}
        assert found == {"own": missing.format(committed), "other": missing.format(active)}
        os.rename(snapshots.directory("own"), tmp_path / "place")
        assert {finding.problem for finding in check(store).faults if finding.id == "own"} == {
            "its directory is missing"
        }


def test_a_missing_composite_image_is_a_fault_of_its_snapshot(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        snapshots = store.namespace("default").snapshots("cimfs")
        snapshots.prepare_layer("key")
        snapshots.commit("own", "key")
        (image,) = store.root.glob("snapshots/cimfs/cim-layers/*.cim")
        image.unlink()
        (fault,) = check(store).faults
        assert fault.problem == f"its image {image.name!r} is missing"


def test_a_committed_snapshot_needs_its_block_image(tmp_path: Path) -> None:
    form = BlockCimDriver(tmp_path)
    assert form.find_missing(tmp_path, SnapshotKind.ACTIVE, has_parents=False) == ""
    assert (
        form.find_missing(tmp_path, SnapshotKind.COMMITTED, has_parents=False)
        == "'layer.vhd' is missing in its directory"
    )
    (tmp_path / "layer.vhd").touch()
    assert form.find_missing(tmp_path, SnapshotKind.COMMITTED, has_parents=False) == ""


def test_a_repair_keeps_a_broken_parent_of_an_active_snapshot(image: str, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        namespace = store.namespace("default")
        (made,) = import_image(namespace, image, ImportOptions(name="it", unpack=True, snapshotter="overlayfs")).images
        assert made.unpacked is not None
        snapshots = namespace.snapshots("overlayfs")
        snapshots.prepare("mine", made.unpacked.snapshot)
        (snapshots.directory(made.unpacked.snapshot) / "fs/c").write_bytes(b"changed")
        with Rediff() as differ:
            found = check(store, compare=differ)
        assert [finding.id for finding in found.faults] == [made.unpacked.snapshot]
        assert [finding.id for finding in repair(store, found).left] == [made.unpacked.snapshot]
        assert snapshots.stat("mine").parent == made.unpacked.snapshot
        snapshots.remove("mine")
        assert repair(store, found).left == ()
        assert [one.name for one in snapshots.list()] == [made.unpacked.layers[0].chain_id]


def test_a_check_can_be_cancelled(image: str, tmp_path: Path) -> None:
    cancel = Cancellation()
    cancel.cancel()
    with Store.open(tmp_path / "store") as store:
        import_image(store.namespace("default"), image, ImportOptions(name="it"))
        with pytest.raises(Cancelled):
            check(store, job=Job(cancel=cancel))


def test_a_blob_stored_again_since_the_check_is_not_quarantined(image: str, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        namespace = store.namespace("default")
        import_image(namespace, image, ImportOptions(name="it"))
        record = next(iter(namespace.content.walk()))
        path = blob_path(store.root, record.digest)
        with namespace.content.open(record.digest) as blob:
            raw = blob.read()
        Path(path).chmod(0o600)
        Path(path).write_bytes(b"x" * len(raw))
        report = check(store)
        assert [finding.id for finding in report.faults if finding.type == "content"] == [record.digest]
        namespace.content.delete(record.digest)
        with namespace.content.ingest("again") as ingest:
            ingest.write(raw)
            ingest.commit()
        repaired = repair(store, report)
        assert [said for said in repaired.done if "intact now" in said]
        assert namespace.content.info(record.digest).size == len(raw)
        assert check(store).faults == ()


def test_a_foreign_directory_among_the_snapshots_does_not_stop_a_collection(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        (store.root / "snapshots" / "devmapper").mkdir(parents=True)
        namespace = store.namespace("default")
        with namespace.content.ingest("one") as ingest:
            ingest.write(b"1")
            digest = ingest.commit().digest
        assert collect(store).removed
        assert not Path(blob_path(store.root, digest)).exists()
        assert (store.root / "snapshots" / "devmapper").is_dir()
