# SPDX-License-Identifier: Apache-2.0
"""Where a store may be, who may open it, and the time it goes by."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamella.errors import Conflict, Denied, Integrity, InvalidInput, LamellaError, NotFound, Unsupported
from lamella.store import database, disk_layout
from lamella.store import store as opening
from lamella.store.context import Clock, forward_time
from lamella.store.store import Store, default_root


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_store_gets_its_parent_directories_and_mode_0700(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b" / "store"
    with Store.open(root) as store:
        assert store.root == root
        assert store.namespaces.list() == []
    assert mode(root) == 0o700
    made = ["blobs", "ingest", "lamella.db", "locks", "reserve", "snapshots", "trash"]
    assert sorted(os.listdir(root)) == made
    assert mode(root / "lamella.db") == 0o600


def test_an_empty_directory_becomes_a_store(tmp_path: Path) -> None:
    root = tmp_path / "store"
    (root / "lost+found").mkdir(parents=True)
    root.chmod(0o755)
    Store.open(root).close()
    assert mode(root) == 0o700


def test_the_mode_of_an_existing_store_is_kept(tmp_path: Path) -> None:
    root = tmp_path / "store"
    Store.open(root).close()
    root.chmod(0o711)
    Store.open(root).close()
    assert mode(root) == 0o711


def test_a_directory_with_other_files_is_refused_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("text")
    tmp_path.chmod(0o755)
    for readonly in (False, True):
        with pytest.raises((Conflict, NotFound)):
            Store.open(tmp_path, readonly=readonly)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    assert mode(tmp_path) == 0o755


def test_a_root_that_is_not_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(InvalidInput):
        Store.open(tmp_path / "file")
    with pytest.raises((Conflict, InvalidInput)):
        Store.open(tmp_path / "file" / "store")


@pytest.mark.parametrize("bits", [0o770, 0o702, 0o777])
def test_a_root_that_other_users_can_write_to_is_refused(tmp_path: Path, bits: int) -> None:
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(bits)
    with pytest.raises(Denied, match="is writable by other users"):
        Store.open(root)
    assert os.listdir(root) == []


@pytest.mark.root
def test_a_root_of_another_user_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "store"
    Store.open(root).close()
    os.chown(root, 12345, 12345)
    for readonly in (False, True):
        with pytest.raises(Denied, match="belongs to user 12345"):
            Store.open(root, readonly=readonly)


def test_a_link_to_the_root_is_resolved_once(tmp_path: Path) -> None:
    root, other, link = tmp_path / "store", tmp_path / "other", tmp_path / "link"
    other.mkdir()
    link.symlink_to("store")
    with Store.open(link) as store:
        assert store.root == root
        link.unlink()
        link.symlink_to("other")
        with store.namespace("one").content.ingest("a") as ingest:
            ingest.write(b"text")
            ingest.commit()
    assert os.listdir(other) == []


def test_a_missing_store_is_not_made_without_create(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(NotFound):
            Store.open(root, create=False)
        with pytest.raises(NotFound):
            Store.open(root, readonly=True)
    assert os.listdir(tmp_path) == ["empty"]
    assert os.listdir(tmp_path / "empty") == []


def test_an_interrupted_creation_is_completed(tmp_path: Path) -> None:
    (tmp_path / "lamella.db").touch()
    tmp_path.chmod(0o700)
    with Store.open(tmp_path) as store:
        assert store.namespaces.list() == []


@pytest.mark.parametrize("step", ["sync_directory", "keep_reserve"])
def test_a_failed_opening_closes_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    closed: list[Path] = []
    close = database.Database.close

    def noted(self: database.Database) -> None:
        close(self)
        closed.append(tmp_path)

    def fail(_: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(database.Database, "close", noted)
    monkeypatch.setattr(opening, step, fail)
    with pytest.raises(LamellaError, match="open the store"):
        Store.open(tmp_path / "store")
    assert closed == [tmp_path]
    monkeypatch.undo()
    with Store.open(tmp_path / "store") as store:
        assert store.namespaces.list() == []


# A database that is lost


def add_blob(store: Store) -> None:
    with store.namespace("one").content.ingest("a") as ingest:
        ingest.write(b"text")
        ingest.commit()


def add_snapshot(store: Store) -> None:
    store.namespace("one").snapshots("directory").prepare("a", "")


def files(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
        if not path.name.endswith(("-wal", "-shm"))
    }


def remove_database(root: Path) -> None:
    (root / "lamella.db").unlink()


def empty_database(root: Path) -> None:
    os.truncate(root / "lamella.db", 0)


def reset_version(root: Path) -> None:
    connection = sqlite3.connect(root / "lamella.db")
    connection.execute("PRAGMA user_version = 0")
    connection.close()


LOSSES: list[tuple[Callable[[Path], None], str]] = [
    (remove_database, "is missing"),
    (empty_database, "is empty"),
    (reset_version, "has schema version 0"),
]


@pytest.mark.parametrize("add", [add_blob, add_snapshot])
@pytest.mark.parametrize(("lose", "state"), LOSSES)
def test_a_lost_database_beside_files_is_refused_and_nothing_changes(
    tmp_path: Path, add: Callable[[Store], None], lose: Callable[[Path], None], state: str
) -> None:
    root = tmp_path / "store"
    with Store.open(root) as store:
        add(store)
    lose(root)
    before = files(root)
    folder = "blobs" if add is add_blob else "snapshots"
    for readonly, create in ((False, True), (False, False), (True, True), (True, False)):
        with pytest.raises(Integrity) as caught:
            Store.open(root, readonly=readonly, create=create)
        assert str(caught.value) == f"the store's database '{root}/lamella.db' {state}, but {folder}/ is not empty"
        assert caught.value.hint == (
            f"move {root} aside, then restore the store from a backup or import its images again"
        )
    assert files(root) == before


def test_a_store_whose_write_ahead_log_is_lost_before_its_first_checkpoint_is_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        add_blob(store)
        shutil.copytree(store.root, tmp_path / "copy", ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    before = files(tmp_path / "copy")
    for readonly in (False, True):
        with pytest.raises(Integrity, match="has schema version 0, but blobs/ is not empty"):
            Store.open(tmp_path / "copy", readonly=readonly)
    assert files(tmp_path / "copy") == before


@pytest.mark.parametrize("lose", [remove_database, empty_database])
def test_the_write_ahead_log_of_a_lost_database_is_kept(tmp_path: Path, lose: Callable[[Path], None]) -> None:
    with Store.open(tmp_path / "store") as store:
        add_blob(store)
        shutil.copytree(store.root, tmp_path / "copy")
    lose(tmp_path / "copy")
    log = tmp_path / "copy" / "lamella.db-wal"
    before = log.read_bytes()
    assert before != b""
    for readonly in (False, True):
        with pytest.raises(Integrity):
            Store.open(tmp_path / "copy", readonly=readonly)
    assert log.read_bytes() == before


def test_a_store_whose_first_opening_was_interrupted_opens(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    for name in ("lamella.db", "lamella.db-journal", "reserve"):
        (tmp_path / name).touch()
    for name in ("blobs", "ingest", "snapshots"):
        (tmp_path / name).mkdir()
    with pytest.raises(Unsupported, match="for reading only"):
        Store.open(tmp_path, readonly=True)
    with Store.open(tmp_path) as store:
        add_blob(store)
    Store.open(tmp_path, readonly=True).close()


def test_an_empty_database_beside_an_unfinished_ingest_alone_opens(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with Store.open(root) as store:
        add_blob(store)
        with store.namespace("one").content.ingest("b") as ingest:
            ingest.write(b"part")
        shutil.rmtree(root / "blobs" / "sha256")
        (root / "blobs" / "sha256").mkdir()
    empty_database(root)
    with Store.open(root) as store:
        assert store.namespaces.list() == []


@pytest.mark.parametrize("journal", ["DELETE", "WAL"], ids=["an empty file", "a file without a schema"])
def test_a_store_that_another_process_fills_while_it_is_opened_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: str
) -> None:
    root = tmp_path / "store"
    root.mkdir(0o700)
    (root / "lamella.db").touch()
    connection = sqlite3.connect(root / "lamella.db")
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.close()
    calls = []

    def look_after_the_other(at: Path) -> list[str]:
        monkeypatch.undo()
        with Store.open(root) as other:
            add_blob(other)
        calls.append(disk_layout.folders_with_files(at))
        return calls[-1]

    monkeypatch.setattr(database, "folders_with_files", look_after_the_other)
    with Store.open(root) as store:
        assert calls == [["blobs"]]
        assert [space.name for space in store.namespaces.list()] == ["one"]


def test_an_oci_layout_is_no_store_and_stays_unchanged(tmp_path: Path) -> None:
    (tmp_path / "blobs" / "sha256").mkdir(parents=True)
    (tmp_path / "blobs" / "sha256" / "0").touch()
    (tmp_path / "index.json").touch()
    tmp_path.chmod(0o700)
    with pytest.raises(Conflict, match="is not a store"):
        Store.open(tmp_path)
    with pytest.raises(NotFound):
        Store.open(tmp_path, readonly=True)
    assert sorted(os.listdir(tmp_path)) == ["blobs", "index.json"]


# Names


def test_the_names_of_a_namespace_and_its_lease_are_checked(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        for name in ("", "a/b", ".."):
            with pytest.raises(InvalidInput):
                store.namespace(name)
        with pytest.raises(InvalidInput):
            store.namespace("a", lease="")
        with pytest.raises(NotFound, match="lease 'none' does not exist"):
            store.namespace("a", lease="none").content.ingest("a")
        assert store.namespaces.list() == []


def test_the_environment_variable_sets_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAMELLA_ROOT", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.setenv("LAMELLA_ROOT", "")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_root() == Path("/var/lib/lamella")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert default_root() == tmp_path / "share" / "lamella"


# Time


def test_the_clock_is_strictly_increasing_whatever_its_source() -> None:
    times: Iterator[int] = iter([10, 5, 5, 20, 20, 0, 30])
    clock = Clock(lambda: next(times))
    assert [clock() for _ in range(7)] == [10, 11, 12, 20, 21, 22, 30]


def test_the_clock_follows_the_system_time_forward_and_goes_on_when_it_is_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(forward_time())
    before = clock()
    assert abs(before - time.time_ns()) < 10**9
    monkeypatch.setattr(time, "time_ns", lambda: before + 10**18)
    later = clock()
    assert later >= before + 10**18
    monkeypatch.setattr(time, "time_ns", lambda: before - 10**18)
    time.sleep(0.01)
    assert 0.01 * 10**9 <= clock() - later < 60 * 10**9


def test_a_time_of_the_store_is_never_before_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "store") as store:
        real = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: real() + 3600 * 10**9)  # set by NTP after the start
        asked = time.time_ns()
        with store.namespace("one").content.ingest("a") as ingest:
            ingest.write(b"text")
            assert ingest.commit().created_at >= asked


def test_no_two_threads_get_the_same_time() -> None:
    clock = Clock(lambda: 7)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.extend(clock() for _ in range(1000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(7, 4007))


def test_a_clock_that_jumps_back_between_two_runs_loses_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", clock=lambda: 2_000_000_000_000_000_000) as store:
        content = store.namespace("one").content
        with content.ingest("a") as ingest:
            ingest.write(b"text")
            made = ingest.commit(labels={"a": "b"})
        content.ingest("b").close()
    with Store.open(tmp_path / "store", clock=lambda: 1_000_000_000_000_000_000) as store:
        content = store.namespace("one").content
        assert content.info(made.digest) == made
        assert content.update(made.digest, {"c": "d"}).updated_at > made.updated_at
        content.ingest("b").close()
