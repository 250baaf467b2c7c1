# SPDX-License-Identifier: Apache-2.0
"""Whole images in stores that have it hard: full disks, nothing to write to, clocks that jump, power that fails."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.store.conftest import Mount, fill

from lamella.cli.main import run
from lamella.digests import Digest
from lamella.errors import Denied, Exhausted, Unsupported
from lamella.operations.store.rediff import Rediff
from lamella.operations.store.transfer import ImportOptions, export_image, import_image
from lamella.store.check.check import check
from lamella.store.gc.collect import collect
from lamella.store.store import Store
from lamella.store.unpack.image import unpack_image
from lamella.testing.images import SmallImage, small_image, tagged, write_layout

DAY = 24 * 3600 * 10**9


@pytest.fixture
def images(tmp_path: Path) -> dict[str, str]:
    """Return the names of a small image and of one of 6 MB."""
    dice = random.Random(0)
    small = small_image({"etc/os": b"it", "bin/sh": dice.randbytes(5000)}, {"etc/.wh.os": b"", "etc/other": b"x"})
    large = small_image(*({f"file{number}": dice.randbytes(2_000_000)} for number in range(3)))

    def written(name: str, image: SmallImage) -> str:
        return f"oci:{write_layout(str(tmp_path / name), [tagged(image.descriptor, 'it')], image.blobs)}:it"

    return {"small": written("small", small), "large": written("large", large)}


def sound(store: Store) -> bool:
    with Rediff() as differ:
        return check(store, compare=differ).sound


# Full disks


@pytest.mark.root
@pytest.mark.parametrize("snapshotter", ["overlayfs", "native", "erofs"])
def test_a_full_disk_stops_an_import_and_loses_nothing(images: dict[str, str], tmpfs: Mount, snapshotter: str) -> None:
    root = tmpfs("size=10m") / "store"
    with Store.open(root) as store:
        namespace = store.namespace("default")
        import_image(namespace, images["small"], ImportOptions(name="small", unpack=True, snapshotter=snapshotter))
        with pytest.raises(Exhausted):
            import_image(namespace, images["large"], ImportOptions(name="large", unpack=True, snapshotter=snapshotter))
        assert sound(store)
        assert "docker.io/library/small:latest" in {image.name for image in namespace.images.list()}
    with Store.open(root, clock=lambda: time.time_ns() + 2 * DAY) as store:
        namespace = store.namespace("default")
        for image in namespace.images.list():
            if image.name != "docker.io/library/small:latest":
                namespace.images.delete(image.name)
        collect(store)
        assert sound(store)
        assert check(store).notes == ()
        unpacked = unpack_image(namespace, "docker.io/library/small:latest", snapshotter)
        assert [layer.skipped for layer in unpacked.layers] == [True, True]
        import_image(namespace, images["small"], ImportOptions(name="again"))


def lamella(root: Path, *arguments: str) -> int:
    return run(["--root", str(root), "store", *arguments])


READERS = (["images", "ls"], ["usage"], ["content", "ls"], ["snapshots", "ls"], ["check"], ["gc", "--dry-run"])


@pytest.mark.root
@pytest.mark.parametrize("sidecars", [(), ("-shm", "-wal")], ids=["clean", "empty_sidecars"])
def test_the_command_line_reads_and_removes_on_a_full_disk(
    images: dict[str, str], tmpfs: Mount, sidecars: tuple[str, ...]
) -> None:
    place = tmpfs("size=24m")
    root = place / "store"
    assert lamella(root, "import", images["small"], "--name", "small", "--unpack") == 0
    assert lamella(root, "import", images["large"], "--name", "large") in (0, 11)
    fill(place)
    for suffix in sidecars:  # of an earlier try
        (root / f"lamella.db{suffix}").touch()
    assert [lamella(root, *verb) for verb in READERS] == [0] * len(READERS)
    assert (root / "reserve").exists()
    assert lamella(root, "images", "rm", "small") == 0
    assert not (root / "reserve").exists()
    (place / "filler").unlink()
    assert lamella(root, "gc") == 0
    assert (root / "reserve").exists()
    with Store.open(root) as store:
        assert sound(store)


@pytest.mark.root
def test_the_garbage_collection_frees_a_full_disk(images: dict[str, str], tmpfs: Mount) -> None:
    place = tmpfs("size=24m")
    root = place / "store"
    assert lamella(root, "import", images["large"], "--name", "large") == 0
    with sqlite3.connect(root / "lamella.db") as connection:
        connection.execute("DELETE FROM image")
        connection.execute("DELETE FROM lease")
    connection.close()
    fill(place)
    assert lamella(root, "gc") == 0
    assert not any((root / "blobs" / "sha256").iterdir())


@pytest.mark.root
def test_a_write_ahead_log_is_read_on_a_full_disk(images: dict[str, str], tmpfs: Mount) -> None:
    place = tmpfs("size=24m")
    root = place / "store"
    with Store.open(root) as store:
        import_image(store.namespace("default"), images["small"], ImportOptions(name="small"))
        log = (root / "lamella.db-wal").read_bytes()
        main = (root / "lamella.db").read_bytes()
    (root / "lamella.db").write_bytes(main)  # as a killed process leaves them
    (root / "lamella.db-wal").write_bytes(log)
    assert log
    fill(place)
    with Store.open(root, readonly=True) as store:
        assert [image.name for image in store.namespace("default").images.list()] == ["docker.io/library/small:latest"]


# Nothing to write to


@pytest.mark.root
def test_a_store_on_a_read_only_file_system_can_be_read(
    images: dict[str, str], tmpfs: Mount, tmp_path: Path, needs: Callable[..., str]
) -> None:
    place = tmpfs("size=10m")
    with Store.open(place / "store") as store:
        import_image(store.namespace("default"), images["small"], ImportOptions(name="small", unpack=True))
    subprocess.run([needs("mount"), "-o", "remount,ro", place], check=True)
    with Store.open(place / "store", readonly=True) as store:
        assert sound(store)
        export_image(store.namespace("default"), "small", f"oci:{tmp_path}/out:it")
        with pytest.raises(Denied):
            import_image(store.namespace("default"), images["large"], ImportOptions(name="large"))
    with pytest.raises(Denied):
        Store.open(place / "store").close()


def test_a_store_of_a_newer_schema_is_left_alone(images: dict[str, str], tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        import_image(store.namespace("default"), images["small"], ImportOptions(name="small"))
    with sqlite3.connect(tmp_path / "store/lamella.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    for readonly in (False, True):
        with pytest.raises(Unsupported, match="schema 99"):
            Store.open(tmp_path / "store", readonly=readonly)


# Clocks


def test_a_clock_that_jumps_loses_nothing(images: dict[str, str], tmp_path: Path) -> None:
    dice = random.Random(3)

    def clock() -> int:
        # Within half of the day that a writer's lease lasts, as far as a wrong clock can be told from a late one.
        return time.time_ns() + dice.randrange(-DAY // 4, DAY // 4)

    with Store.open(tmp_path / "store", clock=clock) as store:
        namespace = store.namespace("default")
        for number in range(4):
            name = f"name{number}"
            import_image(namespace, images["small"], ImportOptions(name=name, unpack=True, snapshotter="native"))
            collect(store)
            assert sound(store)
            if number:
                namespace.images.delete(f"docker.io/library/name{number - 1}:latest")
                collect(store)
        assert [image.name for image in namespace.images.list()] == ["docker.io/library/name3:latest"]
        assert len(namespace.snapshots("native").list()) == 2


# Power


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str]]:
    """Return what reaches the disk of the store, in order: files, names, directories, and changes of the database."""
    seen: list[tuple[str, str]] = []
    root = str(tmp_path / "store")

    def where(path: Any) -> str:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        return os.path.relpath(os.fspath(path), root)

    for call in ("fsync", "rename"):
        real = getattr(os, call)

        def record(first: Any, *rest: Any, _call: str = call, _real: Any = real, **named: Any) -> Any:
            seen.append((_call, where(rest[0] if rest else first)))
            return _real(first, *rest, **named)

        monkeypatch.setattr(os, call, record)
    return seen


def test_an_image_is_durable_before_its_name(
    images: dict[str, str], tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    with Store.open(tmp_path / "store") as store:
        with store.database.read() as connection:
            assert connection.execute("PRAGMA synchronous").fetchone() == (2,)

            def statement(text: str) -> None:
                words = text.split()
                if words[:2] == ["INSERT", "INTO"]:
                    steps.append(("row", words[2]))
                elif text == "COMMIT":
                    steps.append(("commit", ""))

            connection.set_trace_callback(statement)
        # From one thread, whose connection is watched.
        from lamella.store.image_writer import StoreWriter

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StoreWriter, "concurrent_puts", 1)
            import_image(store.namespace("default"), images["small"], ImportOptions(name="small"))
        digests = [record.digest for record in store.namespace("default").content.walk()]
    assert len(digests) == 4
    named = steps.index(("row", "image"))
    for digest in digests:
        path = f"blobs/{Digest(digest).algorithm}/{Digest(digest).hex}"
        put = steps.index(("rename", path))
        bytes_synced = max(
            at for at, (call, what) in enumerate(steps[:put]) if call == "fsync" and what.endswith("/data")
        )
        folder = steps.index(("fsync", os.path.dirname(path)), put)
        row = steps.index(("row", "blob"), folder)
        whole = steps.index(("commit", ""), row)
        assert bytes_synced < put < folder < row < whole < named
    assert ("commit", "") in steps[named:]
