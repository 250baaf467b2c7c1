# SPDX-License-Identifier: Apache-2.0
"""What is on the disk when: power may fail, space may end, and a process be killed at any moment."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.store.conftest import Mount, fill

from lamella.digests import Digest
from lamella.errors import AlreadyExists, Denied, Exhausted, Integrity, NotFound, Unavailable
from lamella.store.content.files import SweptFiles
from lamella.store.content.store import LIFETIME, LocalContent
from lamella.store.contract import Resource
from lamella.store.store import Store

TEXT = Digest.of(b"text")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def put(content: LocalContent, data: bytes = b"text", ref: str = "put") -> Digest:
    with content.ingest(ref) as ingest:
        ingest.write(data)
        return ingest.commit().digest


def files(store: Store) -> list[str]:
    """All files below the places of blobs, ingests and trash."""
    return sorted(
        str(path.relative_to(store.root))
        for place in ("blobs", "ingest", "trash")
        for path in (store.root / place).rglob("*")
        if not path.is_dir()
    )


def blob(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


# The order of calls


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, store: Store) -> list[str]:
    """What reaches the disk, in order, as short words."""
    seen: list[str] = []

    def name(path: object) -> str:
        return os.path.relpath(os.fspath(path), store.root) if isinstance(path, (str, os.PathLike)) else "?"

    def recorded(call: str, tell: Callable[..., str]) -> None:
        real = getattr(os, call)

        def record(*args: Any, **named: Any) -> Any:
            seen.append(f"{call} {tell(*args)}")
            return real(*args, **named)

        monkeypatch.setattr(os, call, record)

    recorded("fsync", lambda file: name(os.readlink(f"/proc/self/fd/{file}")))
    recorded("rename", lambda old, new: f"{name(old)} {name(new)}")
    recorded("mkdir", lambda path, *_: name(path))
    recorded("unlink", lambda path, *_: name(path))
    with store.database.read() as connection:
        connection.set_trace_callback(
            lambda statement: (
                seen.append(statement.split()[0].lower())
                if statement.startswith(("COMMIT", "INSERT INTO blob", "DELETE FROM blob"))
                else None
            )
        )
    return seen


def test_bytes_are_durable_before_their_name_and_the_name_before_its_row(store: Store, calls: list[str]) -> None:
    content = store.namespace("one").content
    with content.ingest("a") as ingest:
        ingest.write(b"text")
        calls.clear()
        ingest.commit()
    folder = calls[0].split("/")[1]
    data = f"ingest/{folder}/data"
    assert calls == [
        f"fsync {data}",
        f"rename {data} {blob(TEXT)}",
        "mkdir blobs/sha256",
        "fsync blobs",
        f"rename {data} {blob(TEXT)}",
        "fsync blobs/sha256",
        "insert",
        "commit",
        f"unlink {data}",
    ]


def test_the_deletion_of_a_row_is_durable_before_its_file_is_removed(store: Store, calls: list[str]) -> None:
    content = store.namespace("one").content
    put(content)
    calls.clear()
    content.delete(TEXT)
    assert [call.split()[0] for call in calls] == ["delete", "commit", "rename", "commit", "unlink"]
    assert calls[2].startswith(f"rename {blob(TEXT)} trash/")


def test_blobs_cannot_be_written_to(store: Store) -> None:
    put(store.namespace("one").content)
    assert stat.S_IMODE(os.stat(store.root / blob(TEXT)).st_mode) == 0o444


# Files and rows that do not agree


def test_a_missing_truncated_or_replaced_file_is_reported(store: Store, tmp_path: Path) -> None:
    content = store.namespace("one").content
    put(content)
    path = store.root / blob(TEXT)
    (tmp_path / "other").write_bytes(b"text")
    damages: list[Callable[[], object]] = [
        lambda: path.write_bytes(b"tex"),
        lambda: path.symlink_to(tmp_path / "other"),
        path.mkdir,
        lambda: os.mkfifo(path),
        lambda: None,
    ]
    for damage in damages:
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        damage()
        with pytest.raises(Exception, match=r"blob sha256") as caught:
            content.open(TEXT)
        assert not isinstance(caught.value, (OSError, NotFound))
    assert content.info(TEXT).size == 4


@pytest.mark.parametrize("damage", [b"", b"longer than it was", None])
def test_storing_a_blob_again_repairs_its_file(store: Store, damage: bytes | None) -> None:
    one, two = store.namespace("one").content, store.namespace("two").content
    put(one)
    for sender in (one, two):
        (store.root / blob(TEXT)).unlink()
        if damage is not None:
            (store.root / blob(TEXT)).write_bytes(damage)
        with sender.ingest("a", expected=TEXT) as ingest:
            assert ingest.status().offset == 0
            ingest.write(b"text")
            if sender is one:
                with pytest.raises(AlreadyExists):
                    ingest.commit()
            else:
                ingest.commit()
        for content in (one, sender):
            with content.open(TEXT) as file:
                assert file.read() == b"text"
        with pytest.raises(AlreadyExists):
            sender.ingest("a", expected=TEXT)
    assert files(store) == [blob(TEXT)]


def test_the_last_namespace_that_deletes_a_blob_removes_its_file(store: Store) -> None:
    one, two = store.namespace("one").content, store.namespace("two").content
    put(one)
    put(two)
    one.delete(TEXT)
    assert files(store) == [blob(TEXT)]
    two.delete(TEXT)
    assert files(store) == []


def test_a_sweep_removes_files_that_no_row_names(store: Store) -> None:
    content = store.namespace("one").content
    put(content)
    content.ingest("kept").close()
    with content.ingest("open") as ingest:
        ingest.write(b"te")
        with store.database.write() as connection:
            connection.execute("DELETE FROM ingest WHERE ref = 'open'")
        kept = files(store)
        orphan = Digest.of(b"orphan")
        (store.root / blob(orphan)).write_bytes(b"orphan")
        (store.root / "blobs" / "sha256" / "strange").mkdir()
        (store.root / "ingest" / "strange").mkdir()
        (store.root / "ingest" / "strange" / "data").write_bytes(b"123")
        (store.root / "trash" / "content-left").mkdir()
        (store.root / "trash" / "content-left" / "over").touch()

        swept = content.sweep()
        assert swept.files == 3
        assert swept.size >= 9
        assert files(store) == kept
        assert os.listdir(store.root / "blobs" / "sha256") == [TEXT.hex]
        assert content.sweep() == SweptFiles(0, 0)

        ingest.write(b"st")
        ingest.commit()
    assert content.info(Digest.of(b"test")).size == 4
    assert content.sweep() == SweptFiles(0, 0)


def test_an_ingest_without_its_file_starts_over(store: Store) -> None:
    content = store.namespace("one").content
    with content.ingest("a") as ingest:
        ingest.write(b"some")
    for path in (store.root / "ingest").iterdir():
        (path / "data").unlink()
        path.rmdir()
    assert content.status("a").offset == 0
    with content.ingest("a") as ingest:
        assert ingest.status().offset == 0
        ingest.write(b"text")
        assert ingest.commit().digest == TEXT


# Leases and expiry


def test_a_lease_holds_objects_that_are_made_or_found_under_it(store: Store) -> None:
    leases = store.namespace("one").leases
    for lease in ("a", "b", "c", "d"):
        leases.create(lease)
    content = {lease: store.namespace("one", lease).content for lease in ("a", "b", "c", "d")}
    ingest = content["a"].ingest("ref")
    assert list(leases.resources("a")) == [Resource("ingests", "ref")]
    ingest.write(b"text")
    ingest.commit()
    with pytest.raises(AlreadyExists):
        content["b"].ingest("ref", expected=TEXT)
    with content["c"].ingest("ref") as again:
        again.write(b"text")
        with pytest.raises(AlreadyExists):
            again.commit()
    content["d"].ingest("ref").close()
    content["d"].abort("ref")
    for lease in ("a", "b", "c"):
        assert list(leases.resources(lease)) == [Resource("content", TEXT)]
    assert list(leases.resources("d")) == []


def test_an_ingest_under_a_deleted_lease_cannot_be_committed_and_stays(store: Store) -> None:
    namespace = store.namespace("one")
    namespace.leases.create("a")
    with store.namespace("one", "a").content.ingest("ref") as ingest:
        ingest.write(b"text")
        namespace.leases.delete("a")
        with pytest.raises(NotFound, match="lease"):
            ingest.commit()
    assert namespace.content.status("ref").offset == 4
    with pytest.raises(NotFound):
        namespace.content.info(TEXT)


def test_an_ingest_expires_unless_a_lease_holds_it(store: Store) -> None:
    def expires() -> int | None:
        with store.database.read() as connection:
            row: tuple[int | None] = connection.execute("SELECT expires FROM ingest").fetchone()
        return row[0]

    store.namespace("one").leases.create("a")
    before = store.clock()
    store.namespace("one").content.ingest("ref").close()
    first = expires()
    assert first is not None
    assert before + LIFETIME < first < store.clock() + LIFETIME
    store.namespace("one").content.ingest("ref").close()
    second = expires()
    assert second is not None
    assert second > first
    store.namespace("one", "a").content.ingest("ref").close()
    assert expires() is None


# No space, no rights


def test_a_failed_write_appends_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    content = store.namespace("one").content
    with content.ingest("a") as ingest:
        ingest.write(b"te")

        def half(file: int, data: memoryview, at: int) -> int:
            if at > 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(file, data[:1], at)

        monkeypatch.setattr(os, "pwrite", half)
        with pytest.raises(Exhausted):
            ingest.write(b"xt")
        assert content.status("a").offset == ingest.status().offset == 2
        monkeypatch.undo()
        ingest.write(b"xt")
        assert ingest.commit().digest == TEXT


def test_a_short_write_is_continued(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, bytes(data[:3]), at))
    assert put(store.namespace("one").content, b"some more text") == Digest.of(b"some more text")


def test_a_commit_that_cannot_write_its_row_leaves_the_ingest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    content = store.namespace("one").content
    with content.ingest("a") as ingest:
        ingest.write(b"text")
        monkeypatch.setattr("lamella.store.content.ingest.encode_labels", lambda _: b"".decode(None))  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            ingest.commit()
        monkeypatch.undo()
        assert (store.root / blob(TEXT)).exists() is False
        assert content.status("a").offset == 4
    with content.ingest("a") as ingest:
        assert ingest.digest() == TEXT
        ingest.commit()
    assert files(store) == [blob(TEXT)]


@pytest.mark.root
def test_a_full_disk_keeps_the_ingest_and_all_blobs(tmpfs: Mount) -> None:
    place = tmpfs("size=3m")
    (place / "reserve").write_bytes(bytes(400_000))
    written = 0

    def write_on() -> None:
        nonlocal written
        while True:
            written = ingest.write(chunk)

    def change() -> None:
        for n in range(1000):
            content.update(TEXT, {"k": f"{n}{'x' * 4000}"})

    with Store.open(place / "store") as store:
        content = store.namespace("one").content
        put(content)
        ingest = content.ingest("big")
        chunk = os.urandom(100_000)
        with pytest.raises(Exhausted) as caught:
            write_on()
        assert caught.value.hint is not None
        assert ingest.status().offset == written > 1_000_000
        filler = fill(place)
        with pytest.raises(Exhausted):
            change()
        with pytest.raises(Exhausted):
            ingest.commit(labels={"k": "x" * 4000})
        ingest.close()
        with content.open(TEXT) as file:
            assert file.read() == b"text"
        filler.unlink()
        (place / "reserve").unlink()
    with Store.open(place / "store") as store:
        content = store.namespace("one").content
        with content.ingest("big") as ingest:
            assert ingest.status().offset == written
            assert ingest.commit().digest == Digest.of(chunk * (written // len(chunk)))
        assert content.sweep() == SweptFiles(0, 0)
        assert len(list(content.walk())) == 2


def test_a_readonly_store_can_be_read(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        put(store.namespace("one").content)
        store.namespace("one").content.ingest("a").close()
    with Store.open(tmp_path / "store", readonly=True) as store:
        content = store.namespace("one").content
        with content.open(TEXT) as file:
            assert file.read() == b"text"
        assert [status.ref for status in content.statuses()] == ["a"]
        changes: list[Callable[[], object]] = [
            lambda: content.ingest("a"),
            lambda: content.abort("a"),
            lambda: content.delete(TEXT),
            lambda: content.update(TEXT, {"a": "b"}),
            content.sweep,
        ]
        for change in changes:
            with pytest.raises(Denied):
                change()
        assert len(files(store)) == 2


# Other processes

WRITE = """
import sys, time
from lamella.store.store import Store
store = Store.open(sys.argv[1])
ingest = store.namespace("one").content.ingest("ref", total=1 << 30)
for n in range(1 << 20):
    ingest.write(b"%09d\\n" % n)
    if n == 100:
        print("going", flush=True)
"""


def test_an_ingest_survives_the_kill_of_its_process(store: Store) -> None:
    content = store.namespace("one").content
    child = subprocess.Popen([sys.executable, "-c", WRITE, store.root], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"going\n"
    for open_it in (lambda: content.ingest("ref"), lambda: content.abort("ref")):
        with pytest.raises(Unavailable):
            open_it()
    assert content.sweep() == SweptFiles(0, 0)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()

    with content.ingest("ref") as ingest:
        offset = ingest.status().offset
        assert offset > 1000
        assert ingest.status().total == 1 << 30
        expected = b"".join(b"%09d\n" % n for n in range(offset // 10 + 1))[:offset]
        assert ingest.digest() == Digest.of(expected)
        ingest.write(b"end")
        ingest.truncate(offset)
        assert ingest.commit(offset).digest == Digest.of(expected)


RACE = """
import sys
from lamella.errors import AlreadyExists, Unavailable
from lamella.store.store import Store
content = Store.open(sys.argv[1]).namespace("one").content
made = 0
for n in range(24):
    while True:
        try:
            with content.ingest(sys.argv[2] or f"ref{n}") as ingest:
                ingest.truncate()
                ingest.write(b"%d" % n * 1000)
                ingest.commit()
                made += 1
        except AlreadyExists:
            pass
        except Unavailable:
            continue
        break
print(made)
"""


@pytest.mark.parametrize("refs", [["", ""], ["x", "y"], ["x", "x"]], ids=["same refs", "other refs", "one ref"])
def test_one_of_two_processes_stores_the_same_blob(store: Store, refs: list[str]) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", RACE, store.root, ref], stdout=subprocess.PIPE, text=True)
        for ref in refs
    ]
    made = [int(child.communicate(timeout=120)[0]) for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sum(made) == 24
    content = store.namespace("one").content
    assert {one.digest for one in content.walk()} == {Digest.of(b"%d" % n * 1000) for n in range(24)}
    for one in content.walk():
        with content.open(one.digest) as file:
            assert Digest.of(file.read()) == one.digest
    assert content.statuses() == []
    assert content.sweep() == SweptFiles(0, 0)


def test_concurrent_puts_and_deletions_lose_no_file(store: Store) -> None:
    """Two namespaces put and delete the same blob while a third sweeps; whoever has a row has the file."""
    problems: list[BaseException] = []
    done = threading.Event()

    def work(name: str) -> None:
        content = store.namespace(name).content
        try:
            for _ in range(24):
                put(content)
                with content.open(TEXT) as file:
                    assert file.read() == b"text"
                content.delete(TEXT)
        except BaseException as problem:  # noqa: BLE001  # the test's own thread tells
            problems.append(problem)

    def sweeping() -> None:
        while not done.is_set():
            try:
                store.namespace("three").content.sweep()
            except BaseException as problem:  # noqa: BLE001
                problems.append(problem)

    workers = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    sweeper = threading.Thread(target=sweeping)
    for thread in (*workers, sweeper):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    sweeper.join()
    assert problems == []
    store.namespace("three").content.sweep()
    assert files(store) == []


def test_an_error_while_reading_a_file_is_not_taken_for_a_missing_file(store: Store) -> None:
    content = store.namespace("one").content
    put(content)
    (store.root / blob(TEXT)).unlink()
    with pytest.raises(Integrity):
        content.open(TEXT)
    content.delete(TEXT)
    with pytest.raises(NotFound):
        content.open(TEXT)
