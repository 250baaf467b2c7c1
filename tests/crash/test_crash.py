# SPDX-License-Identifier: Apache-2.0
"""A process that works on a store is killed at a random moment: nothing that it has reported done is lost.

LAMELLA_CRASH_ROUNDS says how often; ``make crash`` does it 200 times, each time otherwise.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lamella.changes.model import dense
from lamella.digests import Digest
from lamella.host.mounting import mount_points, unmount
from lamella.operations.store.rediff import Rediff
from lamella.paths import LayerPath
from lamella.store.check.check import check
from lamella.store.gc.collect import collect
from lamella.store.gc.labels import CONTENT, REF_SNAPSHOT, forward_references
from lamella.store.store import LocalNamespace, Store
from lamella.testing.images import small_image, tagged, write_layout

WORK = Path(__file__).with_name("work.py")
ROUNDS = int(os.environ.get("LAMELLA_CRASH_ROUNDS", "12"))
SEED = int(os.environ.get("LAMELLA_CRASH_SEED", "1"))
LATER = 25 * 3600 * 10**9
"""Nanoseconds after which the leases of who was killed have ended."""

KINDS = ["overlayfs", "native"]
if os.geteuid() == 0:
    KINDS.append("erofs")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of layouts whose images share layers; those of the last are unpacked by processes."""
    folder = tmp_path_factory.mktemp("images")
    dice = random.Random(0)
    base = {"etc/base": b"base", **{f"lib/{number}": dice.randbytes(3000) for number in range(40)}}
    middle = {"lib/.wh.3": b"", "lib/4": b"changed", "bin/tool": dice.randbytes(150_000)}
    large = [{f"large{number}": dice.randbytes(4_300_000)} for number in range(2)]
    for number, layers in enumerate(
        [[base], [base, middle], [base, middle, {"top": b"top"}], [middle], [base, *large]]
    ):
        image = small_image(*layers)
        write_layout(str(folder / f"image{number}"), [tagged(image.descriptor, "it")], image.blobs)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Return where the store is to be; nothing stays mounted in it."""
    yield tmp_path / "store"
    for point in reversed(mount_points(str(tmp_path))):
        unmount(point, lazy=True)


@dataclass
class Told:
    """What has been reported done, and what may have been done."""

    names: dict[str, str] = field(default_factory=dict)
    """Name of an image -> digest."""
    unpacked: set[tuple[str, str, str]] = field(default_factory=set)
    """Digest of an image that was there ever since, kind, snapshot."""
    own: set[tuple[str, str]] = field(default_factory=set)
    """Kind and name of snapshots that are roots."""
    open: list[str] = field(default_factory=list)
    """What had begun and was not reported done."""

    def hear(self, text: str) -> None:
        self.open = []
        for line in text.splitlines(keepends=True):
            if not line.endswith("\n"):
                break  # the kill cut it short
            what, *words = line.split()
            if what == "begin":
                self.open = words
                if words[0] in ("bring", "drop"):
                    left = {digest for name, digest in self.names.items() if name != words[1]}
                    self.unpacked = {one for one in self.unpacked if one[0] in left}
            elif what == "done":
                self.open = []
                self._done(*words)

    def _done(self, verb: str, *words: str) -> None:
        match verb, words:
            case "bring", (name, digest):
                self.names[name] = digest
            case "drop", (name,):
                del self.names[name]
            case "unpack", (digest, kind, snapshot):
                self.unpacked.add((digest, kind, snapshot))
            case "commit", (kind, name):
                self.own.add((kind, name.replace("_", " ")))
            case "remove", (kind, name):
                self.own.discard((kind, name.replace("_", " ")))
            case "collect", ():
                pass
            case _:
                raise AssertionError(f"not understood: {verb} {words}")


def start(root: Path, seed: int, images: Path, namespace: str = "work", count: int = 10**9) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, WORK, root, str(seed), namespace, images, str(count), *KINDS],
        stdout=subprocess.PIPE,
        bufsize=0,  # so that no line after the first is taken from `communicate`
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child


def kept_as_told(space: LocalNamespace, told: Told) -> None:
    """Compare what was reported with what is there, and note what is there from now on."""
    verb, *words = told.open or [""]
    names = {image.name: str(image.target.digest) for image in space.images.list()}
    maybe = words[0] if verb in ("bring", "drop") else None
    assert {k: v for k, v in names.items() if k != maybe} == {k: v for k, v in told.names.items() if k != maybe}
    told.names = names
    own = {(kind, one.name) for kind in KINDS for one in space.snapshots(kind).list() if one.name.startswith("own")}
    changed = {(words[0], words[1].replace("_", " "))} if verb in ("commit", "remove") else set()
    assert own - changed == told.own - changed
    told.own = own
    for digest, kind, snapshot in told.unpacked:
        assert space.snapshots(kind).stat(snapshot).name == snapshot, digest
    for kind, name in own:
        with space.snapshots(kind).tree(name) as tree:
            assert b"".join(map(bytes, dense(tree.open(LayerPath(f"d/{name}"))))) == name.encode() * 1000


def needed_by_images(space: LocalNamespace) -> tuple[set[str], set[tuple[str, str]]]:
    """Return the blobs and the snapshots that images lead to, by their labels."""
    blobs: set[str] = set()
    snapshots: set[tuple[str, str]] = set()
    todo = [image.target.digest for image in space.images.list()]
    while todo:
        digest = todo.pop()
        if digest in blobs:
            continue
        blobs.add(digest)
        for label, (kind, key) in forward_references(space.content.info(digest).labels):
            if kind == CONTENT:
                todo.append(Digest(key))
            elif label.startswith(REF_SNAPSHOT):
                name = kind.partition("/")[2]
                while key:
                    snapshots.add((name, key))
                    key = space.snapshots(name).stat(key).parent
    return blobs, snapshots


def nothing_else(store: Store, space: LocalNamespace, told: Told) -> None:
    """After a collection, nothing is there but what is needed, neither rows nor files nor mounts."""
    blobs, snapshots = needed_by_images(space)
    assert {str(one.digest) for one in space.content.walk()} == blobs
    assert space.content.statuses() == []
    assert space.leases.list() == []
    there = {(kind, one.name) for kind in KINDS for one in space.snapshots(kind).list()}
    assert {one for one in there if not one[1].startswith("key ")} == snapshots | told.own
    assert {f"{path.parent.name}:{path.name}" for path in (store.root / "blobs").glob("*/*")} == blobs
    for folder in ("ingest", "trash", "locks"):
        assert list((store.root / folder).iterdir()) == [], folder
    with store.database.read() as connection:
        rows = {str(number) for (number,) in connection.execute("SELECT number FROM snapshot")}
    places = list((store.root / "snapshots").glob("*/*"))
    assert {path.name for path in places} == rows
    for point in mount_points(str(store.root)):
        assert Path(point).parent in places


def after_a_kill(root: Path, told: Told) -> None:
    with Store.open(root, clock=lambda: time.time_ns() + LATER) as store:
        space = store.namespace("work")
        with Rediff() as differ:
            found = check(store, compare=differ)
        assert found.faults == ()
        kept_as_told(space, told)
        collect(store)
        nothing_else(store, space, told)
        with Rediff() as differ:
            found = check(store, compare=differ)
        assert (found.faults, found.notes) == ((), ())


def orphans_end(root: Path) -> None:
    """Wait until no process has the store open that a killed one has left."""
    for _ in range(200):
        if not any(_uses(Path("/proc") / pid, root) for pid in os.listdir("/proc") if pid.isdecimal()):
            return
        time.sleep(0.02)
    raise AssertionError("processes of a killed one go on")


def _uses(process: Path, root: Path) -> bool:
    try:
        if process.name == str(os.getpid()):
            return False
        return any(os.readlink(file).startswith(f"{root}/") for file in (process / "fd").iterdir())
    except OSError:
        return False


def test_nothing_is_lost_when_a_process_is_killed(root: Path, images: Path) -> None:
    told = Told()
    for number in range(ROUNDS):
        seed = SEED * 1000 + number
        child = start(root, seed, images)
        time.sleep(random.Random(seed).random() * 0.5)
        child.send_signal(signal.SIGKILL)
        text = child.communicate(timeout=60)[0].decode()
        assert "end\n" not in text
        orphans_end(root)
        told.hear(text)
        try:
            after_a_kill(root, told)
        except BaseException as error:
            error.add_note(f"round {number}, LAMELLA_CRASH_SEED={SEED}; it told:\n{text}")
            raise


def test_two_concurrent_processes_lose_no_result(root: Path, images: Path) -> None:
    children = [start(root, number, images, f"space{number}", 15) for number in range(2)]
    for child in children:
        text = child.communicate(timeout=120)[0].decode()
        assert text.endswith("end\n"), text
        assert child.returncode == 0
    with Store.open(root) as store, Rediff() as differ:
        assert check(store, compare=differ).faults == ()


def test_two_processes_in_one_namespace_keep_it_consistent(root: Path, images: Path) -> None:
    children = [start(root, number, images, "work", 15) for number in (3, 4)]
    for child in children:
        text = child.communicate(timeout=120)[0].decode()
        assert text.endswith("end\n"), text
    with Store.open(root, clock=lambda: time.time_ns() + LATER) as store, Rediff() as differ:
        assert check(store, compare=differ).faults == ()
        collect(store)
        found = check(store, compare=differ)
        assert (found.faults, found.notes) == ((), ())
