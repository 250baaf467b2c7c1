# SPDX-License-Identifier: Apache-2.0
"""Processes that unpack layers of a store: forked where that is possible, else started anew."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lamella.changes.dump import dump
from lamella.changes.job import Job
from lamella.changes.tree import walk
from lamella.digests import parse_digest
from lamella.errors import Cancelled, Integrity, Unavailable
from lamella.host.worker import Worker
from lamella.progress import Cancellation, NoProgress
from lamella.store.contract import SnapshotKind
from lamella.store.disk_layout import blob_path
from lamella.store.locks import exclusive_lock
from lamella.store.snapshots import copy_tree
from lamella.store.snapshots.copy_tree import TreeUsage
from lamella.store.snapshots.drivers import overlay
from lamella.store.snapshots.kinds import snapshot_driver
from lamella.store.store import LocalNamespace, Store
from lamella.store.unpack import image as unpacking
from lamella.store.unpack.image import Unpacked, unpack_image
from lamella.store.unpack.layer import LayerTask, LayerUnpacker
from lamella.testing.images import SmallImage, image_of_tars, put_image, small_image, tar_of

pytestmark = [
    pytest.mark.root,
    # The tests' own threads hold nothing that a forked process takes.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

LAYERS: tuple[dict[str, bytes], ...] = ({"a": b"1", "b": b"2"}, {"a": b"3"}, {".wh.b": b"", "c": b"4"})


@pytest.fixture(params=["forked", "started"])
def own_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let small layers too be given to processes, of either kind; returned is of which those were that there were."""
    made: list[str] = []
    fork, start = os.fork, subprocess.Popen.__init__

    def forked() -> int:
        made.append("forked")
        return fork()

    def started(self: subprocess.Popen[bytes], *arguments: Any, **more: Any) -> None:
        made.append("started")
        start(self, *arguments, **more)

    monkeypatch.setattr(unpacking, "_LARGE", 0)
    monkeypatch.setattr(unpacking, "can_fork", lambda: request.param == "forked")
    monkeypatch.setattr(os, "fork", forked)
    monkeypatch.setattr(subprocess.Popen, "__init__", started)
    yield made
    assert set(made) == {request.param}
    with pytest.raises(ChildProcessError):  # nobody is left
        os.waitpid(-1, os.WNOHANG)


def children() -> list[int]:
    """The processes of this one that have not been waited for."""
    tasks = Path("/proc/self/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def is_there(process: int) -> bool:
    """Whether a process goes on; one that nobody waits for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def names(namespace: LocalNamespace) -> set[str]:
    return {one.name for one in namespace.snapshots("overlayfs").list()}


def tree(namespace: LocalNamespace, unpacked: Unpacked) -> list[str]:
    with namespace.snapshots(unpacked.snapshotter).tree(unpacked.snapshot) as found:
        return list(dump(walk(found), inline=16, extents=False))


def task_for(namespace: LocalNamespace, image: SmallImage) -> LayerTask:
    """A task for the base layer of an image, with a new snapshot."""
    layer, diff_id = (parse_digest(one) for one in (image.manifest["layers"][0]["digest"], _diff_id(image)))
    namespace.snapshots("overlayfs").prepare_layer("extract")
    target, size = namespace.snapshots("overlayfs").target("extract"), image.manifest["layers"][0]["size"]
    return LayerTask(target, namespace.store.root, layer, size, size, diff_id, "gzip", None, 4)


def _diff_id(image: SmallImage) -> str:
    return str(image.config["rootfs"]["diff_ids"][0])


def test_processes_make_the_same_tree_and_raise_the_same_errors(
    own_processes: list[str], store: Store, namespace: LocalNamespace
) -> None:
    image = small_image(*LAYERS, *({f"f{number}": bytes(100)} for number in range(4)))
    one = unpack_image(namespace, put_image(namespace, image, "image"), concurrency=1)
    other = store.namespace("other")
    many = unpack_image(other, put_image(other, image, "image"), concurrency=3)
    assert tree(namespace, one) == tree(other, many)
    assert len(own_processes) == 2
    assert [layer.entries for layer in one.layers] == [layer.entries for layer in many.layers]

    third = store.namespace("third")
    target = put_image(third, image, "image")
    path = Path(blob_path(store.root, parse_digest(image.manifest["layers"][3]["digest"])))
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-4] + b"1234")
    with pytest.raises(Integrity) as caught:
        unpack_image(third, target, concurrency=3)
    assert image.manifest["layers"][3]["digest"] in str(caught.value)
    assert all(not name.startswith("extract") for name in names(third))


def test_no_process_is_forked_that_would_find_nothing_to_do(
    own_processes: list[str], namespace: LocalNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpack(name: str, layers: list[dict[str, bytes]]) -> list[str]:
        own_processes.clear()
        unpack_image(namespace, put_image(namespace, small_image(*layers), name), concurrency=4)
        return list(own_processes)

    monkeypatch.setattr(unpacking, "_LARGE", 5000)
    large = [{f"large{number}": os.urandom(9000)} for number in range(5)]
    assert len(unpack("small first", [{"a": b"1"}, *large[:2]])) == 2
    assert len(unpack("large first", [large[2], {"b": b"1"}, large[3]])) == 1
    assert unpack("one", [large[4], {"c": b"1"}]) == []
    assert len(unpack("half of it is there", [{"a": b"1"}, *large[:2], large[3], {"d": b"1"}])) == 0
    own_processes.append(unpack("many", [{f"more{number}": os.urandom(9000)} for number in range(6)])[0])
    assert len(own_processes) == 4


@pytest.mark.parametrize("fork", [True, False])
def test_a_process_that_was_killed_is_an_error(namespace: LocalNamespace, fork: bool) -> None:
    image = small_image(*LAYERS)
    put_image(namespace, image, "image")
    unpacker = LayerUnpacker(worker=True)
    unpacker.start(fork=fork)
    (child,) = children()
    os.kill(child, signal.SIGKILL)
    with pytest.raises(Unavailable, match="ended before"):
        unpacker.unpack(task_for(namespace, image), lambda _: None, None)
    unpacker.close()
    unpacker.close()
    assert children() == []


def test_a_process_that_is_killed_at_work_leaves_nothing(
    own_processes: list[str], store: Store, namespace: LocalNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = put_image(namespace, small_image(*LAYERS), "image")
    send = Worker.send

    def kill(self: Worker, message: bytes) -> None:
        if isinstance(pickle.loads(message), LayerTask):
            for child in children():
                os.kill(child, signal.SIGKILL)
        send(self, message)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "send", kill)
        with pytest.raises(Unavailable, match="ended before"):
            unpack_image(namespace, target, concurrency=2)
    assert [name for name in names(namespace) if name.startswith("extract")] == []
    assert (namespace.leases.list(), os.listdir(store.root / "locks")) == ([], [])
    unpack_image(namespace, target, concurrency=2)
    assert len(own_processes) == 2


def test_who_waits_for_a_process_can_stop(own_processes: list[str], store: Store, namespace: LocalNamespace) -> None:
    cancel = Cancellation()

    class Told(NoProgress):
        def advance(self, amount: int) -> None:
            cancel.cancel()

    target = put_image(namespace, small_image(*({f"f{number}": os.urandom(3 << 20)} for number in range(3))), "image")
    with pytest.raises(Cancelled):
        unpack_image(namespace, target, concurrency=3, job=Job(progress=Told(), cancel=cancel))
    assert (names(namespace), namespace.leases.list(), os.listdir(store.root / "locks")) == (set(), [], [])
    assert own_processes


@pytest.mark.parametrize("fork", [True, False])
def test_a_process_has_nothing_of_the_store_open_but_what_it_reads_and_writes(
    store: Store, namespace: LocalNamespace, fork: bool
) -> None:
    image = small_image({"a": os.urandom(3 << 20)})
    put_image(namespace, image, "image")
    seen: list[str] = []

    def look(_: int) -> None:
        for file in Path(f"/proc/{children()[0]}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                seen.append(os.readlink(file))

    with exclusive_lock(store.root, "something else"):  # a file that is locked
        with store.database.read():
            unpacker = LayerUnpacker(worker=True)
            unpacker.start(fork=fork)
        unpacker.unpack(task_for(namespace, image), look, None)
        meant = (f"{store.root}/blobs/", f"{store.root}/snapshots/")
        assert [path for path in seen if path.startswith(f"{store.root}/") and not path.startswith(meant)] == []
        seen.clear()
        look(0)  # when it has nothing to do
        unpacker.close()
    assert len([path for path in seen if path.startswith("pipe:")]) == 2
    assert {path for path in seen if not path.startswith("pipe:")} == {"/dev/null"}


ORPHAN = """
import os, sys
from pathlib import Path
from lamella.store.unpack.layer import LayerUnpacker
unpackers = [LayerUnpacker(worker=True), LayerUnpacker(worker=True)]
for unpacker in unpackers:
    unpacker.start(fork=sys.argv[1] == "fork")
print(*Path(f"/proc/self/task/{os.getpid()}/children").read_text().split(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["fork", "start"])
def test_processes_end_when_the_one_that_has_started_them_is_killed(kind: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    left = [int(one) for one in parent.stdout.readline().split()]
    assert len(left) == 2
    assert all(map(is_there, left))
    parent.kill()
    parent.communicate(timeout=60)
    patience = time.monotonic() + 20
    while any(map(is_there, left)):
        assert time.monotonic() < patience
        time.sleep(0.01)


OTHERS = """
import os, subprocess, sys, threading
from lamella.store.unpack import image as unpacking
from lamella.store.store import Store
def told(event, arguments):
    if event in ("os.fork", "subprocess.Popen"):
        print(event)
unpacking._LARGE = 0
waiting = threading.Event()
if sys.argv[2] == "beside a thread":
    threading.Thread(target=waiting.wait).start()
with Store.open(sys.argv[1]) as store:
    sys.addaudithook(told)
    unpacking.unpack_image(store.namespace("test"), "image", concurrency=2)
waiting.set()
"""


@pytest.mark.parametrize(("what", "expected"), [("alone", "os.fork"), ("beside a thread", "subprocess.Popen")])
def test_no_process_is_forked_beside_a_thread(
    what: str, expected: str, store: Store, namespace: LocalNamespace
) -> None:
    put_image(namespace, small_image(*LAYERS), "image")
    said = subprocess.run([sys.executable, "-c", OTHERS, store.root, what], capture_output=True, text=True, check=True)
    assert said.stdout.split() == [expected]


WALKED: tuple[dict[str, Any], ...] = (
    {"./": (b"5", ""), "d/": (b"5", ""), "d/a": bytes(100_000), "d/link": (b"1", "d/a"), "e/": (b"5", ""), "e/f": b"1"},
    {"d/": (b"5", ""), "d/new": bytes(5000), "d/.wh.a": b"", "d/.wh.nothing": b"", "e/": (b"5", ""), "e/.wh.no": b""},
    {"only/": (b"5", ""), "only/.wh.there": b"", "only/x": b"1", "only/y": (b"1", "only/x")},
    {"d/implied": b"below"},
    {"e/": (b"5", ""), "e/.wh..wh..opq": b"", "e/g": bytes(9000)},
)


@pytest.mark.parametrize("snapshotter", ["overlayfs", "erofs"])
def test_what_a_layer_takes_is_what_a_walk_over_its_files_finds(
    own_processes: list[str], store: Store, snapshotter: str
) -> None:
    image = image_of_tars([tar_of(files) for files in WALKED])
    for count in (1, len(WALKED)):
        namespace = store.namespace(f"several{count}")
        unpacked = unpack_image(namespace, put_image(namespace, image, "image"), snapshotter, concurrency=count)
        snapshots = namespace.snapshots(snapshotter)
        usages = [snapshots.usage(layer.chain_id) for layer in unpacked.layers]
        places = [snapshots.directory(layer.chain_id) for layer in unpacked.layers]
        driver = snapshot_driver(snapshotter, store.root / "snapshots" / snapshotter)
        assert usages == [driver.usage(place, SnapshotKind.COMMITTED) for place in places]
    assert own_processes


def test_the_files_of_a_layer_are_walked_over_where_it_was_unpacked(
    own_processes: list[str], namespace: LocalNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[Path] = []
    measure = copy_tree.measure

    def noted(path: Path) -> TreeUsage:
        walked.append(path)
        return measure(path)

    target = put_image(namespace, small_image(*({f"f{number}": b"1"} for number in range(3))), "image")
    monkeypatch.setattr(overlay, "measure", noted)
    unpack_image(namespace, target, concurrency=2)
    assert own_processes
    assert 1 <= len(walked) <= 2  # and the others there
