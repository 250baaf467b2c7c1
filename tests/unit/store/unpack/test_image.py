# SPDX-License-Identifier: Apache-2.0
"""Images of the store unpacked into snapshots."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.changes.dump import dump
from lamella.changes.job import Job
from lamella.changes.losses import Losses
from lamella.changes.tree import walk
from lamella.digests import parse_digest
from lamella.errors import Cancelled, DigestMismatch, Exhausted, LossRefused, NotFound
from lamella.oci.config import chain_ids
from lamella.paths import ROOT
from lamella.progress import Cancellation
from lamella.store.contract import Usage
from lamella.store.disk_layout import blob_path
from lamella.store.gc.collect import collect
from lamella.store.locks import exclusive_lock
from lamella.store.snapshots.driver import SnapshotTarget
from lamella.store.store import LocalNamespace, Store
from lamella.store.unpack import image as unpacking
from lamella.store.unpack.image import DIFF_ID, UNCOMPRESSED, Unpacked, unpack_image
from lamella.store.unpack.layer import Advance, LayerResult, LayerTask, LayerUnpacker, unpack_layer
from lamella.testing.images import SmallImage, compact, digest, image_of_tars, put_image, small_image, tar_of

pytestmark = pytest.mark.root

LAYERS: tuple[dict[str, bytes], ...] = ({"a": b"1", "b": b"2"}, {"a": b"3"}, {".wh.b": b"", "c": b"4"})


@pytest.fixture
def own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small layers too be unpacked beside each other, by threads, which start sooner than processes."""

    def unpack(self: LayerUnpacker, task: LayerTask, advance: Advance, cancel: Cancellation) -> LayerResult:
        return unpack_layer(task, advance, cancel)

    monkeypatch.setattr(unpacking, "_LARGE", 0)
    monkeypatch.setattr(unpacking, "can_fork", lambda: False)
    monkeypatch.setattr(LayerUnpacker, "unpack", unpack)


def chain(image: SmallImage) -> list[str]:
    return [str(one) for one in chain_ids([parse_digest(diff_id) for diff_id in image.config["rootfs"]["diff_ids"]])]


def names(namespace: LocalNamespace, snapshotter: str = "overlayfs") -> set[str]:
    return {one.name for one in namespace.snapshots(snapshotter).list()}


def tree(namespace: LocalNamespace, unpacked: Unpacked) -> list[str]:
    with namespace.snapshots(unpacked.snapshotter).tree(unpacked.snapshot) as found:
        return list(dump(walk(found), inline=16, extents=False))


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_each_layer_becomes_a_snapshot_that_is_named_by_its_chain_id(
    namespace: LocalNamespace, snapshotter: str
) -> None:
    image = small_image(*LAYERS)
    unpacked = unpack_image(namespace, put_image(namespace, image, "image"), snapshotter)
    assert set(chain(image)) == names(namespace, snapshotter)
    assert chain(image)[-1] == unpacked.snapshot
    with namespace.snapshots(snapshotter).tree(unpacked.snapshot) as found:
        assert [entry.path for entry in found.entries(ROOT)] == ["a", "c"]
    for name, diff_id in zip(chain(image), image.config["rootfs"]["diff_ids"], strict=True):
        assert diff_id == namespace.snapshots(snapshotter).stat(name).labels[DIFF_ID]
    for layer, diff_id in zip(image.manifest["layers"], image.config["rootfs"]["diff_ids"], strict=True):
        assert diff_id == namespace.content.info(parse_digest(layer["digest"])).labels[UNCOMPRESSED]


def test_snapshots_live_as_long_as_the_image(store: Store, namespace: LocalNamespace) -> None:
    image = small_image(*LAYERS)
    unpack_image(namespace, put_image(namespace, image, "image"))
    collect(store)
    assert set(chain(image)) == names(namespace)
    namespace.images.delete("image")
    collect(store)
    assert set() == names(namespace)


def test_layers_that_are_there_are_not_unpacked_again(namespace: LocalNamespace) -> None:
    one, other = small_image(*LAYERS[:2]), small_image(*LAYERS[:2], {"other": b""})
    assert [layer.skipped for layer in unpack_image(namespace, put_image(namespace, one, "one")).layers] == [
        False,
        False,
    ]
    second = put_image(namespace, other, "other")
    for digest_ in one.manifest["layers"]:
        Path(blob_path(namespace.store.root, parse_digest(digest_["digest"]))).unlink()  # they are not even read
    assert [layer.skipped for layer in unpack_image(namespace, second).layers] == [True, True, False]
    assert [layer.skipped for layer in unpack_image(namespace, second).layers] == [True] * 3


def test_an_image_without_layers_has_no_snapshot(namespace: LocalNamespace) -> None:
    unpacked = unpack_image(namespace, put_image(namespace, small_image(), "image"))
    assert (unpacked.snapshot, unpacked.layers) == ("", ())


@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_layer_that_is_not_what_the_config_says_leaves_nothing(
    store: Store, namespace: LocalNamespace, concurrency: int
) -> None:
    image = small_image(*LAYERS)
    config = {**image.config, "rootfs": {"type": "layers", "diff_ids": [*image.config["rootfs"]["diff_ids"]]}}
    config["rootfs"]["diff_ids"][1] = digest(b"something else")
    raw = compact(config)
    manifest = {**image.manifest, "config": {**image.manifest["config"], "digest": digest(raw), "size": len(raw)}}
    wrong = SmallImage(
        manifest, config, {**image.blobs, digest(raw): raw, digest(compact(manifest)): compact(manifest)}
    )
    target = put_image(namespace, wrong, "image")
    with pytest.raises(DigestMismatch, match="diff id"):
        unpack_image(namespace, target, concurrency=concurrency)
    assert names(namespace) <= set(chain(image)[:1])
    collect(store)
    assert set() == names(namespace)
    assert os.listdir(store.root / "snapshots" / "overlayfs") == []
    assert namespace.leases.list() == []
    assert os.listdir(store.root / "locks") == []


@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("at", [0.01, 0.5, 0.9999])
def test_a_blob_that_was_damaged_in_the_store_is_told_by_its_digest(
    namespace: LocalNamespace, at: float, concurrency: int
) -> None:
    image = small_image(*({f"{name}{number}": os.urandom(9000) for number in range(40)} for name in "abc"))
    target = put_image(namespace, image, "image")
    damaged = parse_digest(image.manifest["layers"][1]["digest"])
    path = Path(blob_path(namespace.store.root, damaged))
    raw = bytearray(path.read_bytes())
    raw[int(at * len(raw))] ^= 0x55
    path.chmod(0o600)
    path.write_bytes(raw)
    with pytest.raises(DigestMismatch, match="layer blob") as caught:
        unpack_image(namespace, target, concurrency=concurrency)
    assert caught.value.expected == damaged
    assert names(namespace) <= set(chain(image)[:1])


def test_small_layers_take_turns_and_large_ones_go_beside_them(
    namespace: LocalNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[bool, int]] = []

    def note(self: LayerUnpacker, task: LayerTask, advance: Advance, cancel: Cancellation) -> LayerResult:
        done.append((self.in_worker, task.size))
        return unpack_layer(task, advance, cancel)

    monkeypatch.setattr(LayerUnpacker, "unpack", note)
    monkeypatch.setattr(unpacking, "can_fork", lambda: False)
    monkeypatch.setattr(unpacking, "_LARGE", 5000)
    small = [{f"small{number}": os.urandom(number)} for number in range(4)]
    unpack_image(namespace, put_image(namespace, small_image(*small), "small"), concurrency=4)
    assert [(in_worker, size < 5000) for in_worker, size in done] == [(False, True)] * 4
    done.clear()
    image = small_image({"first": b"1"}, {"large": os.urandom(9000)}, {"last": b"2"})
    unpack_image(namespace, put_image(namespace, image, "large"), concurrency=4)
    assert [in_worker for in_worker, size in done if size < 5000] == [False, False]
    assert len(done) == 3


SHARE = """
import sys
from lamella.store.unpack import image as unpacking
from lamella.store.store import Store
from lamella.store.unpack.image import unpack_image
unpacking._LARGE = int(sys.argv[2])
with Store.open(sys.argv[1]) as store:
    sys.stdin.read(1)
    unpacked = unpack_image(store.namespace("test"), "image", concurrency=3)
    print(sum(not layer.skipped for layer in unpacked.layers), unpacked.snapshot)
"""


@pytest.mark.parametrize("own_process", [0, 4 << 20], ids=["beside each other", "in turn"])
def test_processes_that_unpack_the_same_image_do_the_work_once(
    store: Store, namespace: LocalNamespace, own_process: int
) -> None:
    image = small_image(*LAYERS, *({f"d/f{number}": bytes(1 << 16)} for number in range(8)))
    put_image(namespace, image, "image")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SHARE, str(store.root), str(own_process)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = []
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("x")
        worker.stdin.flush()
    for worker in workers:
        out, _ = worker.communicate(timeout=60)
        assert worker.returncode == 0
        said.append(out.split())
    assert len(chain(image)) == sum(int(count) for count, _ in said)
    assert {chain(image)[-1]} == {top for _, top in said}
    assert set(chain(image)) == names(namespace)


def test_threads_that_unpack_the_same_image_do_the_work_once(namespace: LocalNamespace) -> None:
    image = small_image(*LAYERS, *({f"d/f{number}": bytes(1 << 16)} for number in range(8)))
    target = put_image(namespace, image, "image")
    results: list[Unpacked] = []
    threads = [threading.Thread(target=lambda: results.append(unpack_image(namespace, target))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 3
    assert len(chain(image)) == sum(not layer.skipped for result in results for layer in result.layers)


def test_who_waits_for_another_can_be_told_to_stop(store: Store, namespace: LocalNamespace) -> None:
    image = small_image(*LAYERS)
    target = put_image(namespace, image, "image")
    cancel = Cancellation()
    with exclusive_lock(store.root, f"unpack test overlayfs {chain(image)[0]}"):
        threading.Timer(0.2, cancel.cancel).start()
        with pytest.raises(Cancelled):
            unpack_image(namespace, target, job=Job(cancel=cancel))
    assert set() == names(namespace)
    assert namespace.leases.list() == []
    assert [layer.skipped for layer in unpack_image(namespace, target).layers] == [False] * 3


def test_a_lock_is_for_one_at_a_time_and_leaves_no_file(store: Store) -> None:
    inside: list[int] = []

    def work() -> None:
        for _ in range(10):
            with exclusive_lock(store.root, "work"):
                inside.append(1)
                assert len(inside) == 1
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert os.listdir(store.root / "locks") == []


@pytest.mark.usefixtures("own_threads")
def test_a_loss_that_is_refused_leaves_no_snapshot(namespace: LocalNamespace) -> None:
    raw = image_of_tars([tar_of({"a": b"1"}), _with_xattr()])
    target = put_image(namespace, raw, "image")
    losses = Losses()
    unpack_image(namespace, target, "native", job=Job(losses=losses))
    assert [loss.path for loss in losses] == ["b"]
    with pytest.raises(LossRefused):
        unpack_image(namespace, target, job=Job(losses=Losses(refuse=True)), concurrency=2)
    assert set(chain(raw)[:1]) == names(namespace)


@pytest.mark.usefixtures("own_threads")
def test_a_blob_that_is_not_there_is_told_and_leaves_nothing(namespace: LocalNamespace) -> None:
    image = small_image(*LAYERS)
    target = put_image(namespace, image, "image")
    namespace.content.delete(parse_digest(image.manifest["layers"][1]["digest"]))
    with pytest.raises(NotFound):
        unpack_image(namespace, target, concurrency=3)
    assert names(namespace) <= set(chain(image)[:1])


def test_a_full_disk_loses_nothing_and_work_can_go_on(tmpfs: Callable[[str], Path]) -> None:
    place = tmpfs("size=12m")
    with Store.open(place / "store") as store:
        namespace = store.namespace("test")
        image = small_image({"a": b"1"}, {"big": bytes(4 << 20)})
        target = put_image(namespace, image, "image")
        filler = place / "keep"
        filler.write_bytes(bytes(9 << 20))
        with pytest.raises(Exhausted):
            unpack_image(namespace, target)
        assert names(namespace) <= set(chain(image)[:1])
        filler.unlink()
        assert chain(image)[-1] == unpack_image(namespace, target).snapshot


def _with_xattr() -> bytes:
    import io
    import tarfile

    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("b")
        member.pax_headers = {"SCHILY.xattr.trusted.overlay.opaque": "y"}
        archive.addfile(member)
    return raw.getvalue()


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native", "erofs"])
@pytest.mark.parametrize("step", ["sink", "layer", "usage"])
def test_an_unpack_whose_lease_ends_says_that_its_snapshot_is_gone(
    store: Store, namespace: LocalNamespace, monkeypatch: pytest.MonkeyPatch, snapshotter: str, step: str
) -> None:
    name = put_image(namespace, small_image({f"d/f{number}": b"1" * 5000 for number in range(100)}), "image")

    def end() -> None:
        for lease in namespace.leases.list():
            namespace.leases.delete(lease.id)
        collect(store)

    def unpack(self: LayerUnpacker, task: LayerTask, advance: Advance, cancel: Cancellation) -> LayerResult:
        def ending(amount: int) -> None:
            if step == "layer":
                end()
            advance(amount)

        if step == "sink":
            end()
        if step == "usage":
            below_root = SnapshotTarget.usage_below_root

            def measure(target: SnapshotTarget) -> Usage | None:
                end()
                return below_root(target)

            monkeypatch.setattr(SnapshotTarget, "usage_below_root", measure)
        return unpack_layer(task, ending, cancel)

    monkeypatch.setattr(LayerUnpacker, "unpack", unpack)
    with pytest.raises(NotFound):
        unpack_image(namespace, name, snapshotter)
    assert names(namespace, snapshotter) == set()
