# SPDX-License-Identifier: Apache-2.0
"""A process of its own reads layers, and nobody could tell but by the time that it takes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from tests.security.tars import Tar
from tests.unit.layers.windows.windows_tars import microsoft_base
from tests.unit.streams.blobs import COMPRESSIONS, HEAD, PACK, gzipped, tar_like

from lamella.changes.job import Job
from lamella.changes.losses import Losses
from lamella.changes.model import Change, Content, Put, Stream, dense
from lamella.digests import Digest
from lamella.errors import Cancelled, Exhausted, LossRefused, StreamConsumed, Unavailable
from lamella.layers import process_reader
from lamella.layers.process_reader import Blob, ReaderProcess
from lamella.layers.tar.source import tar_changes
from lamella.layers.windows.names import NameRules
from lamella.layers.windows.tar_source import EmptyData, windows_tar_changes
from lamella.progress import Cancellation, NoProgress
from lamella.streams import blob_reader
from lamella.streams.blob_reader import BlobReader
from lamella.streams.limits import BlobLimits

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="another process is forked on Linux alone"),
    # The tests' own threads hold nothing that the other process takes.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]
MIB = 1 << 20


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture(params=["small", "large"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read every blob both as a small and as a large one."""
    monkeypatch.setattr(blob_reader, "SMALL_BLOB", 1 << 30 if request.param == "small" else HEAD)


Story = list[Any]
"""Each change with the digest of its content, and what came in the end: the facts, or the error."""


def told(changes: Callable[[], Iterator[Change]], finish: Callable[[], object]) -> Story:
    story: Story = []
    try:
        for change in changes():
            if isinstance(change, Put):
                entry = change.entry
                story.append((entry.path, entry.kind, entry.posix, entry.size, entry.target, entry.windows))
                if change.content is not None:
                    story.append((isinstance(change.content, EmptyData), change.content.stored))
                    story.extend(held(change.content))
            elif isinstance(change, Stream):
                story.append((change.path, change.name, change.content.size))
                story.extend(held(change.content))
            else:
                story.append(change)
        story.append(finish())
    except Exception as error:  # noqa: BLE001  # both ways must come to the same
        story.append((type(error), str(error), getattr(error, "hint", None)))
    return story


def held(content: Content) -> Iterator[object]:
    """Where the content has data, and the digest of all."""
    yield content.extents and list(content.extents)
    state = hashlib.sha256()
    for chunk in dense(content):
        state.update(chunk)
    yield state.hexdigest()


def opened(path: Path, blob: bytes) -> BinaryIO:
    path.write_bytes(blob)
    return cast("BinaryIO", path.open("rb", buffering=0))


def here(path: Path, blob: bytes, windows: NameRules | None = None, **promised: Any) -> Story:
    with opened(path, blob) as file, BlobReader(file, **promised) as reader:
        if windows is not None:
            changes = windows_tar_changes(reader.next_buffer, end=reader.finish, rules=windows)
            return told(lambda: changes, reader.finish)
        return told(lambda: iter(tar_changes(reader.next_buffer, end=reader.finish)), reader.finish)


def read_by_worker(path: Path, blob: bytes, **promised: Any) -> Story:
    with opened(path, blob) as file, ReaderProcess([Blob(file, **promised)]) as other:
        layer = other.next_layer()
        return told(layer.changes, layer.finish)


def same(path: Path, blob: bytes, **promised: Any) -> Story:
    expected = here(path, blob, **promised)
    assert read_by_worker(path, blob, **promised) == expected
    return expected


@cache
def mixed() -> bytes:
    """All that a layer can state, and files over the ends of buffers."""
    tar = Tar().directory("./", 0o711, mtime=7).directory("d", 0o2755, uid=3, gid=4, xattrs={"user.x": b"\0\xff"})
    for number in range(3000):
        tar.file(f"d/f{number}", tar_like(number % 1500, number % 7), 0o640 + number % 7, uid=number % 5, mtime=number)
    tar.file("big", tar_like(3 * MIB + 77), xattrs={"security.capability": b"c" * 20})
    tar.file("exact", tar_like(MIB)).file("empty", b"").sparse(
        "holes", 5 * MIB, [(MIB, b"x" * 700_000), (4 * MIB, b"")]
    )
    tar.link("linked", "big").symlink("to", "d/" + "y" * 120).symlink(b"\xff\xfe", b"\xfd")
    tar.node("null", b"3", (1, 3), 0o666).node("disk", b"4", (8, 0)).node("pipe", b"6")
    tar.whiteout("gone").opaque("d").file("n" * 300 + "/é", b"z" * 600_000)
    return tar.file("last").done()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_layer_comes_as_it_does_when_it_is_read_here(compression: str, tmp_path: Path) -> None:
    tar = mixed()
    blob = PACK[compression](tar)
    story = same(
        tmp_path / "blob",
        blob,
        compression=compression,
        digest=Digest.of(blob),
        size=len(blob),
        diff_id=Digest.of(tar),
    )
    assert story[-1].tar_size == len(tar)
    assert len(story) > 9000


@pytest.mark.parametrize("size", [0, 1, 512, MIB - 1024, MIB, MIB + 512, 3 * MIB])
def test_content_may_end_anywhere_in_a_buffer(size: int, tmp_path: Path) -> None:
    tar = Tar().file("a", b"x" * size).file("b", b"y" * (2 * MIB)).file("c").done()
    assert "c" in [part[0] for part in same(tmp_path / "blob", gzipped(tar)) if isinstance(part, tuple)]


@pytest.mark.parametrize("size", [300, 200_000])
def test_metadata_of_many_files_is_right(size: int, tmp_path: Path) -> None:
    values: list[dict[str, bytes]] = [{}, {"user.a": b"1"}, {"user.a": bytes(size)}]
    tar = Tar()
    for number in range(40):
        tar.file(f"f{number}", mtime=number * 10**9 // 3, uid=number % 4, xattrs=values[number % 3])
    same(tmp_path / "blob", gzipped(tar.done()))


def test_one_process_reads_one_blob_after_the_other(tmp_path: Path) -> None:
    blobs = [gzipped(Tar().file(f"f{number}", tar_like(2 * MIB - 1024)).done()) for number in range(9)]
    files = [opened(tmp_path / str(number), blob) for number, blob in enumerate(blobs)]
    with ReaderProcess([Blob(file, "gzip", Digest.of(blob)) for file, blob in zip(files, blobs, strict=True)]) as other:
        for file in files:
            file.close()  # the other process has its own
        for number, blob in enumerate(blobs):
            layer = other.next_layer()
            assert told(layer.changes, layer.finish) == here(tmp_path / "again", blob), number


class OnAdvance(NoProgress):
    def __init__(self, advance: Callable[[int], object]) -> None:
        self._advance = advance

    def advance(self, amount: int) -> None:
        self._advance(amount)


def test_progress_comes_to_the_size_of_the_blob(tmp_path: Path) -> None:
    blob = gzipped(mixed())
    seen: list[int] = []
    with opened(tmp_path / "blob", blob) as file, ReaderProcess([Blob(file)]) as other:
        other.next_layer(Job(progress=OnAdvance(seen.append))).finish()
    assert len(blob) == sum(seen)


def test_what_reading_a_layer_loses_is_told_here(tmp_path: Path) -> None:
    blob = microsoft_base()
    expected, found = Losses(), Losses()
    with opened(tmp_path / "here", blob) as file, BlobReader(file) as reader:
        for _ in tar_changes(reader.next_buffer, end=reader.finish, losses=expected):
            pass
    with opened(tmp_path / "blob", blob) as file, ReaderProcess([Blob(file)]) as other:
        other.next_layer(Job(losses=found)).finish()
    assert [loss.what for loss in found.kept] == ["Windows metadata of files"]
    assert expected == found
    with opened(tmp_path / "blob", blob) as file, ReaderProcess([Blob(file)]) as other, pytest.raises(LossRefused):
        other.next_layer(Job(losses=Losses(refuse=True))).finish()


# What is wrong with a blob ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 0.0001, 0.01, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_blob_that_ends_early_has_the_same_error(at: float, compression: str, tmp_path: Path) -> None:
    blob = PACK[compression](mixed())
    story = same(tmp_path / "blob", blob[: int(at * len(blob))])
    assert at == 0 or isinstance(story[-1], tuple)


@pytest.mark.parametrize("left", [100, 1000, MIB - 100, MIB, MIB + 5, 2 * MIB])
def test_a_tar_that_ends_in_a_file_has_the_same_error(left: int, tmp_path: Path) -> None:
    tar = Tar().file("a", b"x" * (5 * MIB)).unended()
    story = same(tmp_path / "blob", gzipped(tar[:-left]))
    assert "truncated" in story[-1][1]


@pytest.mark.parametrize("at", [0.001, 0.3, 0.8])
def test_a_damaged_blob_has_the_same_error(at: float, tmp_path: Path) -> None:
    blob = bytearray(gzipped(mixed()))
    blob[int(at * len(blob))] ^= 0x55
    assert isinstance(same(tmp_path / "blob", bytes(blob))[-1], tuple)
    same(tmp_path / "blob", bytes(blob), digest=Digest.of(b"other"))


@pytest.mark.parametrize(
    "promised",
    [
        {"digest": Digest.of(b"other")},
        {"diff_id": Digest.of(b"other")},
        {"size": 5},
        {"size": 1 << 40},
        {"compression": "zstd"},
        {"limits": BlobLimits(max_tar_size=1 << 20)},
    ],
    ids=str,
)
def test_a_broken_promise_has_the_same_error(promised: dict[str, Any], tmp_path: Path) -> None:
    assert isinstance(same(tmp_path / "blob", gzipped(mixed()), **promised)[-1], tuple)


@pytest.mark.parametrize(
    "tar",
    [
        Tar().file("a").file("../b"),
        Tar().file("a").symlink("b", ""),
        Tar().file("a").raw(b"\x01" * 512),
        Tar().file("a").add("b", b"A"),
        Tar().link("a", "./"),
        Tar().add("a", b"0", records={"size": b"x"}),
    ],
    ids=range(6),
)
def test_a_bad_tar_has_the_same_error(tar: Tar, tmp_path: Path) -> None:
    assert isinstance(same(tmp_path / "blob", gzipped(tar.done()))[-1], tuple)


def test_an_error_tells_where_in_the_other_process_it_arose(tmp_path: Path) -> None:
    with opened(tmp_path / "blob", gzipped(b"\x01" * 512)) as file, ReaderProcess([Blob(file)]) as other:
        with pytest.raises(Exception, match="checksum") as caught:
            other.next_layer().finish()
        assert "fields.py" in str(caught.value.__cause__)


class Odd(Exception):
    def __init__(self, one: object, _other: object) -> None:
        super().__init__(one)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(5, "Input/output error"), OSError),
        (MemoryError(), MemoryError),
        (Exhausted("too much", hint="less"), Exhausted),
        (Odd(lambda: None, 1), RuntimeError),
    ],
    ids=["system", "memory", "ours", "odd"],
)
def test_whatever_is_raised_over_there_is_raised_here(
    error: Exception, expected: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(process_reader, "tar_changes", fail)
    with opened(tmp_path / "blob", b"") as file, ReaderProcess([Blob(file)]) as other:
        with pytest.raises(expected) as caught:
            other.next_layer().finish()
        assert getattr(error, "hint", None) == getattr(caught.value, "hint", None)
        assert expected is RuntimeError or str(error) == str(caught.value)


# Content ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 10, 3 * MIB])
def test_content_is_read_once_and_in_time(size: int, tmp_path: Path) -> None:
    tar = Tar().file("a", b"x" * size).file("b", b"y" * size).directory("c").done()
    with opened(tmp_path / "blob", gzipped(tar)) as file, ReaderProcess([Blob(file)]) as other:
        contents = []
        for change in other.next_layer().changes():
            assert isinstance(change, Put)
            if change.content is None:
                continue
            contents.append(change.content)
            if change.entry.path == "b":
                assert size == sum(map(len, change.content.chunks()))
                with pytest.raises(StreamConsumed):
                    list(change.content.chunks())
        for content in contents:
            with pytest.raises(StreamConsumed):
                list(content.chunks())


def test_a_stream_of_content_ends_when_the_next_change_is_asked_for(tmp_path: Path) -> None:
    tar = Tar().file("a", b"x" * (3 * MIB)).file("b").done()
    with opened(tmp_path / "blob", gzipped(tar)) as file, ReaderProcess([Blob(file)]) as other:
        changes = other.next_layer().changes()
        first = next(changes)
        assert isinstance(first, Put)
        assert first.content is not None
        chunks = iter(first.content.chunks())
        next(chunks)
        next(changes)
        with pytest.raises(StreamConsumed):
            next(chunks)


# How it ends --------------------------------------------------------------------------------------------------------


def child() -> int:
    (number,) = map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    return number


def test_a_process_that_is_killed_is_an_error_of_its_own(tmp_path: Path) -> None:
    blob = gzipped(Tar().file("a", os.urandom(40 * MIB)).done())
    with opened(tmp_path / "blob", blob) as file, ReaderProcess([Blob(file)]) as other:
        changes = other.next_layer().changes()
        next(changes)
        os.kill(child(), signal.SIGKILL)
        with pytest.raises(Unavailable, match="process that reads the layers has ended"):
            list(changes)


def test_a_wish_to_stop_is_seen_while_nothing_comes(tmp_path: Path) -> None:
    cancel = Cancellation()
    blob = gzipped(Tar().file("a", os.urandom(40 * MIB)).done())
    with opened(tmp_path / "blob", blob) as file, ReaderProcess([Blob(file)]) as other:
        os.kill(child(), signal.SIGSTOP)
        timer = threading.Timer(0.3, cancel.cancel)
        timer.start()
        with pytest.raises(Cancelled):
            other.next_layer(Job(cancel=cancel)).finish()
        timer.join()


def test_nothing_is_left_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with opened(tmp_path / "blob", gzipped(mixed())) as file, ReaderProcess([Blob(file)]) as other:
        next(other.next_layer().changes())
    other.close()
    assert before == os.listdir("/proc/self/fd")


PARENT = """
import sys, time
from lamella.layers.process_reader import Blob, ReaderProcess
with open(sys.argv[1], "rb", buffering=0) as file, ReaderProcess([Blob(file)]) as other:
    next(other.next_layer().changes())
    print("reading", flush=True)
    time.sleep(60)
"""


def test_it_ends_when_the_process_that_it_reads_for_is_killed(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(gzipped(Tar().file("a", os.urandom(40 * MIB)).done()))
    with subprocess.Popen([sys.executable, "-c", PARENT, blob], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (number,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{number}").exists() and "\nState:\tZ" not in Path(f"/proc/{number}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
