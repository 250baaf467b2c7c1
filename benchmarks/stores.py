# SPDX-License-Identifier: Apache-2.0
"""Work on a store: an archive into it, an image into snapshots, layers side by side."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.containerd import manifest_digest
from benchmarks.measure import Contender, Sample, timed
from benchmarks.workloads import LAMELLA, LAMELLA_COMMAND, Bar, Bench, Workload, present

NAME = "bench.invalid/image:1"
# The layers of an image at once, as many as said; the imports are part of it, as they are for everybody.
UNPACK = """
import sys
from lamella.store.store import Store
from lamella.store.unpack.image import unpack_image
with Store.open(sys.argv[1], create=False) as store:
    unpack_image(store.namespace("default"), sys.argv[2], sys.argv[4], concurrency=int(sys.argv[3]) or None)
"""
EROFS = f"{LAMELLA}, erofs"
IN_TURN = "one after the other"


def lamella(store: Path, *arguments: str) -> list[str]:
    """Return the command that works on a store."""
    return [LAMELLA_COMMAND, "--root", str(store), "store", *arguments]


@contextlib.contextmanager
def archive_of(bench: Bench, layout: Path, tag: str) -> Iterator[Path]:
    """Give an archive of an image, as long as the block lasts."""
    archive = bench.fresh().with_suffix(".tar")
    subprocess.run(
        [LAMELLA_COMMAND, "copy", "--quiet", f"oci:{layout}:{tag}", f"oci-archive:{archive}:{NAME}"], check=True
    )
    try:
        yield archive
    finally:
        archive.unlink()


def store_import(bench: Bench, archive: Path) -> Workload:
    """An archive into an empty store, nothing unpacked."""
    ours = bench.process(
        LAMELLA, lambda store: [lamella(store, "import", "--quiet", f"oci-archive:{archive}")], makes_target=True
    )
    contenders = present(ours)
    if bench.containerd is not None:
        daemon = bench.containerd
        contenders.append(
            Contender("containerd", work=lambda: daemon.take_archive(archive), after=lambda: daemon.forget(NAME))
        )
    return Workload("store-import", contenders, (Bar("containerd", 0.70),))


def store_unpack(bench: Bench, layout: Path, tag: str) -> Workload:
    """An image that a store has, into snapshots of an overlay; and as images of EROFS, which containerd has not."""
    store = bench.fresh()
    image = f"oci:{layout}:{tag}"
    contenders = [_unpacking(bench, LAMELLA, store, image, 0), _unpacking(bench, EROFS, store, image, 0, "erofs")]
    if bench.containerd is not None:
        daemon = bench.containerd
        contenders.append(
            Contender(
                "containerd",
                work=lambda: daemon.unpack(layout, tag, "overlayfs"),
                before=lambda: daemon.import_layout(layout),
                after=lambda: daemon.remove_snapshots("overlayfs"),
            )
        )
    return Workload(f"store-unpack {layout.name}", contenders, (Bar("containerd", 0.45),))


def can_rebase(bench: Bench, layout: Path, tag: str) -> Workload:
    """An image of two layers of the same size, which take turns or share the machine."""
    double = bench.fresh()
    twice(layout, tag, double)
    stores = bench.fresh(), bench.fresh()
    contenders = [
        _unpacking(bench, name, store, f"oci:{double}", lanes)
        for name, store, lanes in zip((LAMELLA, IN_TURN), stores, (0, 1), strict=True)
    ]
    return Workload(f"side-by-side {layout.name}", contenders, (Bar(IN_TURN, 0.75),))


def listing(bench: Bench) -> Workload:
    """A store with 100,000 blobs and 10,000 snapshots, all of which are needed: they are listed, and collected."""
    store = bench.fresh()
    fill(store)

    def asking(*arguments: str) -> Contender:
        return Contender(" ".join(arguments), lambda: timed([lamella(store, *arguments)], bench.work / "log"))

    verbs = asking("content"), asking("snapshots"), asking("gc"), asking("gc", "--dry-run"), asking("check")
    bars = [Bar("", most, of="seconds", who=one.name) for one, most in zip(verbs, (1.0, 1.0, 5.0), strict=False)]
    return Workload("store-listing", list(verbs), tuple(bars))


def fill(store: Path) -> None:
    """Make a store of 1,000 images with 99 layers each; ten of these are unpacked, into snapshots without files.

    Files and rows are written as they are in the end, since to import all this would take minutes.
    """
    from lamella.store.content.files import MODE
    from lamella.store.gc.labels import REF_CONTENT, REF_SNAPSHOT
    from lamella.store.store import Store

    with Store.open(store) as opened, opened.database.write() as connection:
        now = opened.clock()
        blobs = store / "blobs/sha256"
        blobs.mkdir(mode=0o700)
        places = store / "snapshots/overlayfs"
        places.mkdir(mode=0o700)
        connection.execute("INSERT INTO namespace (name) VALUES ('default')")
        for image in range(1_000):

            def put(raw: bytes, labels: dict[str, str], image: int = image) -> dict[str, Any]:
                name = hashlib.sha256(raw).hexdigest()
                (blobs / name).write_bytes(raw)
                (blobs / name).chmod(MODE)
                connection.execute(
                    "INSERT INTO blob VALUES ('default', ?, ?, ?, ?, ?)",
                    (f"sha256:{name}", len(raw), now + image, now + image, json.dumps(labels)),
                )
                return {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": f"sha256:{name}",
                    "size": len(raw),
                }

            layers = [put(b"%d" % (image * 100 + layer), {}) for layer in range(99)]
            for depth in range(10):
                number = image * 10 + depth + 1
                connection.execute(
                    "INSERT INTO snapshot VALUES (?, 'default', 'overlayfs', ?, ?, 'committed', ?, ?, '{}', 4096, 1)",
                    (number, f"snapshot {number}", number - 1 if depth else None, now + number, now + number),
                )
                (places / str(number) / "fs").mkdir(parents=True)
            manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}
            manifest |= {"config": layers[0], "layers": layers[1:]}
            needs = {f"{REF_CONTENT}.l.{at}": layer["digest"] for at, layer in enumerate(layers)}
            needs[f"{REF_SNAPSHOT}overlayfs"] = f"snapshot {image * 10 + 10}"
            target = {**put(json.dumps(manifest).encode(), needs), "mediaType": manifest["mediaType"]}
            connection.execute(
                "INSERT INTO image VALUES ('default', ?, ?, '{}', ?, ?)",
                (f"bench.invalid/image{image}:1", json.dumps(target), now, now),
            )


def _unpacking(
    bench: Bench, name: str, store: Path, image: str, lanes: int, snapshotter: str = "overlayfs"
) -> Contender:
    def before() -> None:
        subprocess.run(lamella(store, "import", "--quiet", "--name", NAME, image), check=True)

    def work() -> Sample:
        return timed([[sys.executable, "-c", UNPACK, str(store), NAME, str(lanes), snapshotter]], bench.work / "log")

    return Contender(name, work, before, lambda: shutil.rmtree(store))


def twice(layout: Path, tag: str, target: Path) -> None:
    """Write a layout of an image that has the only layer of another one two times."""
    target.mkdir()
    blobs = target / "blobs/sha256"
    shutil.copytree(layout / "blobs", target / "blobs")
    shutil.copy(layout / "oci-layout", target)

    def read(descriptor: dict[str, Any]) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((blobs / descriptor["digest"].partition(":")[2]).read_text())
        return document

    def written(descriptor: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
        raw = json.dumps(document).encode()
        digest = hashlib.sha256(raw).hexdigest()
        (blobs / digest).write_bytes(raw)
        return {"mediaType": descriptor["mediaType"], "digest": f"sha256:{digest}", "size": len(raw)}

    wanted = manifest_digest(layout, tag)
    index = json.loads((layout / "index.json").read_text())
    entry = next(one for one in index["manifests"] if one["digest"] == wanted)
    manifest = read(entry)
    config = read(manifest["config"])
    manifest["layers"] *= 2
    config["rootfs"]["diff_ids"] *= 2
    config.pop("history", None)
    manifest["config"] = written(manifest["config"], config)
    index["manifests"] = [written(entry, manifest)]
    (target / "index.json").write_text(json.dumps(index))
