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
from lamella.store.unpacking import unpack_image
with Store.open(sys.argv[1], create=False) as store:
    unpack_image(store.namespace("default"), sys.argv[2], lanes=int(sys.argv[3]) or None)
"""
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
    """An image that a store has, into snapshots of an overlay."""
    store = bench.fresh()
    contenders = [_unpacking(bench, LAMELLA, store, f"oci:{layout}:{tag}", 0)]
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


def side_by_side(bench: Bench, layout: Path, tag: str) -> Workload:
    """An image of two layers of the same size, which take turns or share the machine."""
    double = bench.fresh()
    twice(layout, tag, double)
    stores = bench.fresh(), bench.fresh()
    contenders = [
        _unpacking(bench, name, store, f"oci:{double}", lanes)
        for name, store, lanes in zip((LAMELLA, IN_TURN), stores, (0, 1), strict=True)
    ]
    return Workload(f"side-by-side {layout.name}", contenders, (Bar(IN_TURN, 0.75),))


def _unpacking(bench: Bench, name: str, store: Path, image: str, lanes: int) -> Contender:
    def before() -> None:
        subprocess.run(lamella(store, "import", "--quiet", "--name", NAME, image), check=True)

    def work() -> Sample:
        return timed([[sys.executable, "-c", UNPACK, str(store), NAME, str(lanes)]], bench.work / "log")

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
