# SPDX-License-Identifier: Apache-2.0
"""Windows layers read by a worker process: the same changes, errors and images as without one."""

from __future__ import annotations

import base64
import os
import signal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.security.tars import Tar
from tests.unit.layers.test_process_reader import OnAdvance, child, nobody_is_left, opened, pytestmark, same, way
from tests.unit.layers.windows.windows_tars import BASES, LAYERS
from tests.unit.streams.blobs import COMPRESSIONS, PACK, gzipped, tar_like

from lamella.changes.apply import apply
from lamella.changes.job import Job
from lamella.changes.model import Change, Entry, Inline, Kind, Link, Put, Stream, Whiteout, Windows
from lamella.digests import Digest
from lamella.errors import Cancelled, StreamConsumed, Unavailable
from lamella.formats.ntfs import reparse
from lamella.formats.ntfs.basic_information import ARCHIVE, DIRECTORY, REPARSE_POINT
from lamella.formats.regf import MemoryKey, encode_hive
from lamella.layers.cim.host_files import CONFIG, HIVES
from lamella.layers.process_reader import Blob, ReaderProcess
from lamella.layers.windows.names import AS_WINDOWS, NameRules
from lamella.layers.windows.tar_sink import WindowsTarSink
from lamella.layers.windows.tar_source import EMPTY_DATA
from lamella.operations.layers.apply import ApplyOptions, apply_blob, apply_reading
from lamella.paths import LayerPath
from lamella.progress import Cancellation
from lamella.streams.limits import BlobLimits

__all__ = ("nobody_is_left", "pytestmark", "way")

MIB = 1 << 20
NOW = 1_683_356_889_123_456_700
RULES = NameRules()


def put(path: str, data: bytes | None = b"", number: int = 0, **facet: Any) -> Put:
    """A file or, without ``data``, a directory."""
    attributes = DIRECTORY if data is None else ARCHIVE
    descriptor = b"\1\0\4\x80" + bytes(16) + b"%d" % (number % 7)
    made = Windows(attributes, NOW + number * 100, NOW + 100, NOW + 200, NOW + 300, descriptor)
    for name, value in facet.items():
        setattr(made, name, value)
    if data is None:
        return Put(Entry(LayerPath(path), Kind.DIRECTORY, None, 0, "", made), None)
    return Put(Entry(LayerPath(path), Kind.FILE, None, len(data), "", made), Inline(data))


def joined(path: str, target: str, *, mount_point: bool) -> Put:
    """A link or a mount point."""
    point = reparse.encode(reparse.mount_point(target) if mount_point else reparse.symlink(target))
    attributes = REPARSE_POINT | (DIRECTORY if mount_point else 0)
    made = Windows(attributes, NOW, NOW, NOW, NOW, b"", reparse=point)
    return Put(Entry(LayerPath(path), Kind.SYMLINK, None, 0, target, made), None)


def stream(path: str, name: str, data: bytes) -> Stream:
    return Stream(LayerPath(path), name, Inline(data))


def tar_of(changes: list[Change], rules: NameRules | None = None) -> bytes:
    parts: list[bytes] = []
    sink = WindowsTarSink(lambda data: parts.append(bytes(data)), lookup=lambda path: put(path).entry, rules=rules)
    apply(changes, sink)
    return b"".join(parts)


@cache
def mixed() -> bytes:
    """All that the layer of a Windows image can state, and contents over the ends of buffers."""
    changes: list[Change] = [put("Files", None, reparse=None)]
    parents = CONFIG.split("/")[1:]
    changes += [put("/".join(["Files", *parents[: count + 1]]), None) for count in range(len(parents))]
    changes += [put(f"{CONFIG}/{name}", encode_hive(MemoryKey(name))) for name in HIVES]
    changes.append(put("Files/d", None, 3, attributes=DIRECTORY | 2))
    for number in range(3000):
        values = {"X.HINT": b"%d" % (number % 50), "Y": bytes(number % 90 + 1)} if not number % 3 else {}
        changes.append(
            put(f"Files/d/f{number}", tar_like(number % 1500, number % 7), number, extended_attributes=values)
        )
        if not number % 10:
            changes.append(stream(f"Files/d/f{number}", "zone", tar_like(number % 700, 3)))
    changes += [
        put("Files/big", tar_like(3 * MIB + 77), 1, security_descriptor=bytes(5000)),
        stream("Files/big", "large", tar_like(2 * MIB + 5, 2)),
        stream("Files/big", "empty", b""),
        put("Files/exact", tar_like(MIB), 2),
        put("Files/empty", b""),
        Put(put("Files/none").entry, EMPTY_DATA),
        put("Files/old", b"x", creation_time=None, access_time=None, change_time=None, write_time=-5_000_000_000),
        put("Files/plain", b"x", security_descriptor=None, attributes=0x27),
        joined("Files/to", "C:\\d\\f1", mount_point=False),
        joined("Files/mounted", "C:\\d", mount_point=True),
        stream("Files/mounted", "on a link", b"1"),
        Link(LayerPath("Files/linked"), LayerPath("Files/big")),
        Whiteout(LayerPath("Files/gone")),
        put("Files/é" + "n" * 200, tar_like(600_000), 5),
        put("Files/last", b"last"),
    ]
    return tar_of(changes)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_layer_has_the_same_changes_as_without_a_worker(compression: str, tmp_path: Path) -> None:
    tar = mixed()
    blob = PACK[compression](tar)
    story = same(
        tmp_path / "blob",
        blob,
        windows=RULES,
        compression=compression,
        digest=Digest.of(blob),
        size=len(blob),
        diff_id=Digest.of(tar),
    )
    assert story[-1].tar_size == len(tar)
    assert len(story) > 9000


@pytest.mark.parametrize("name", [*BASES, *LAYERS])
def test_tars_of_other_tools_are_the_same_as_without_a_worker(name: str, tmp_path: Path) -> None:
    tar = {**BASES, **LAYERS}[name]()
    assert not isinstance(same(tmp_path / "blob", gzipped(tar), windows=RULES)[-1], tuple)


def test_holes_are_the_same_as_without_a_worker(tmp_path: Path) -> None:
    tar = Tar().sparse("holes", 5 * MIB, [(MIB, b"x" * 700_000), (4 * MIB, b"")]).file("f", b"y" * MIB).file("g")
    assert [(MIB, 700_000)] in [
        part and part[:1]
        for part in same(tmp_path / "b", gzipped(tar.done()), windows=RULES)[:3]
        if isinstance(part, list)
    ]


@pytest.mark.parametrize("size", [0, 1, 512, MIB - 1024, MIB, MIB + 512, 3 * MIB])
def test_content_and_streams_may_end_anywhere_in_a_buffer(size: int, tmp_path: Path) -> None:
    tar = tar_of([put("a", b"x" * size), stream("a", "s", b"z" * size), put("b", b"y" * (2 * MIB)), put("c")])
    assert "c" in [part[0] for part in same(tmp_path / "blob", gzipped(tar), windows=RULES) if isinstance(part, tuple)]


def test_metadata_of_many_files_is_right(tmp_path: Path) -> None:
    values = [{}, {"A": b"1"}, {"A": bytes(300)}]
    tar = tar_of(
        [
            put(f"f{number}", b"", number, extended_attributes=values[number % 3], attributes=number)
            for number in range(16)
        ]
    )
    assert len(same(tmp_path / "blob", gzipped(tar), windows=RULES)) == 16 * 4 + 1


def test_unusual_names_are_accepted_if_the_rules_allow_them(tmp_path: Path) -> None:
    blob = gzipped(tar_of([put("aux.js", b"1"), put("b")], AS_WINDOWS))
    assert not isinstance(same(tmp_path / "blob", blob, windows=AS_WINDOWS)[-1], tuple)
    assert "--awkward-names" in same(tmp_path / "blob", blob, windows=RULES)[-1][2]


# What is wrong with a blob ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 0.0001, 0.01, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_blob_that_ends_early_has_the_same_error(at: float, compression: str, tmp_path: Path) -> None:
    blob = PACK[compression](mixed())
    story = same(tmp_path / "blob", blob[: int(at * len(blob))], windows=RULES)
    assert at == 0 or isinstance(story[-1], tuple)


@pytest.mark.parametrize("left", [100, 1000, MIB - 100, MIB, MIB + 5, 2 * MIB])
def test_a_truncated_tar_has_the_same_error(left: int, tmp_path: Path) -> None:
    for changes in ([put("a", b"x" * (5 * MIB))], [put("a", b"x"), stream("a", "s", b"y" * (5 * MIB))]):
        tar = tar_of([*changes])[: -1024 - left]
        story = same(tmp_path / "blob", gzipped(tar), windows=RULES)
        assert "truncated" in story[-1][1]


@pytest.mark.parametrize(
    "promised",
    [
        {"digest": Digest.of(b"other")},
        {"diff_id": Digest.of(b"other")},
        {"size": 5},
        {"compression": "zstd"},
        {"limits": BlobLimits(max_tar_size=1 << 20)},
    ],
    ids=str,
)
def test_a_wrong_digest_has_the_same_error(promised: dict[str, Any], tmp_path: Path) -> None:
    assert isinstance(same(tmp_path / "blob", gzipped(mixed()), windows=RULES, **promised)[-1], tuple)


def records(**values: bytes) -> dict[str, bytes]:
    return {f"MSWINDOWS.{key}": value for key, value in values.items()}


@pytest.mark.parametrize(
    "tar",
    [
        Tar().file("a").file("../b"),
        Tar().file("a").file("b/../../c"),
        Tar().file("a").file("con"),
        Tar().file("a").file("c*"),
        Tar().file("a").file("A"),
        Tar().file("a").file("b:s"),
        Tar().file("a").file("a:s/t"),
        Tar().file("a").add("a:s", b"5"),
        Tar().file("a").file(".wh...", b""),
        Tar().file("a").symlink("b", ""),
        Tar().file("a").raw(b"\x01" * 512),
        Tar().file("a").node("b", b"3", (1, 3)),
        Tar().link("a", "./"),
        Tar().link("a", "a"),
        Tar().file("a").add("b", b"0", records=records(fileattr=b"x")),
        Tar().file("a").add("b", b"0", records=records(fileattr=b"16")),
        Tar().file("a").add("b", b"0", records=records(rawsd=b"?")),
        Tar().file("a").add("b", b"0", records=records(sd=b"O:DA")),
        Tar().file("a").add("b", b"0", records={"MSWINDOWS.xattr.": base64.b64encode(b"1")}),
        Tar().file("a").add("b", b"0", records={"LIBARCHIVE.creationtime": b"soon"}),
        Tar().file("a").add("b", b"0", records={"size": b"x"}),
    ],
    ids=range(21),
)
def test_a_bad_tar_has_the_same_error(tar: Tar, tmp_path: Path) -> None:
    story = same(tmp_path / "blob", gzipped(tar.done()), windows=RULES)
    assert isinstance(story[-1], tuple)
    assert issubclass(story[-1][0], Exception)


# Images -------------------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    tar = tar_of([put("a", b"1"), put("b", os.urandom(40 * MIB))])
    with opened(tmp_path / "blob", gzipped(tar)) as file, ReaderProcess([Blob(file, windows=RULES)]) as other:
        layer = other.next_layer(Job(progress=OnAdvance(lambda _: os.kill(child(), signal.SIGKILL))))
        with pytest.raises(Unavailable, match="process that reads the layers has ended"):
            apply_reading(layer, tmp_path / "a/a.cim", ApplyOptions("cim"))
    assert [*(tmp_path / "a").iterdir()] == []


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_an_image_has_the_same_bytes(compression: str, tmp_path: Path) -> None:
    layers = [PACK[compression](mixed()), PACK[compression](upper())]
    below: list[str] = []
    for number, blob in enumerate(layers):
        parents = {where: [tmp_path / where / name for name in reversed(below)] for where in ("here", "worker")}
        name = f"{number}.cim"
        with opened(tmp_path / "blob", blob) as file:
            expected = apply_blob(file, tmp_path / "here" / name, ApplyOptions(kind="cim", parents=parents["here"]))
        with opened(tmp_path / "blob", blob) as file, ReaderProcess([Blob(file, windows=RULES)]) as other:
            options = ApplyOptions("cim", parents["worker"])
            applied = apply_reading(other.next_layer(), tmp_path / "worker" / name, options)
        assert (applied.facts, applied.entries) == (expected.facts, expected.entries)
        assert [*applied.losses] == [*expected.losses]
        below.append(name)
    made = files(tmp_path / "worker")
    assert made == files(tmp_path / "here")
    assert {"0.cim", "1.cim"} <= made.keys()
    assert any(name.startswith("region_") for name in made)


def upper() -> bytes:
    """A layer over `mixed`."""
    return tar_of(
        [
            put("Files", None),
            put("Files/d", None),
            Whiteout(LayerPath("Files/d/f7")),
            Link(LayerPath("Files/d/again"), LayerPath("Files/d/f8")),
            put("Files/d/f9", tar_like(2 * MIB + 9)),
            stream("Files/d/f9", "s", tar_like(MIB + 9)),
            put("Hives", None),
            put("Hives/System_Delta", encode_hive(MemoryKey("d"))),
        ]
    )


@pytest.mark.parametrize("promised", [{"digest": Digest.of(b"other")}, {"diff_id": Digest.of(b"other")}], ids=str)
def test_a_blob_with_a_wrong_digest_leaves_no_image(promised: dict[str, Any], tmp_path: Path) -> None:
    errors = []
    with (
        opened(tmp_path / "blob", gzipped(mixed())) as file,
        pytest.raises(Exception, match=r"digest|diff id") as caught,
    ):
        apply_blob(file, tmp_path / "here/a.cim", ApplyOptions(kind="cim"), **promised)
    errors.append((caught.type, str(caught.value)))
    with (
        opened(tmp_path / "blob", gzipped(mixed())) as file,
        ReaderProcess([Blob(file, windows=RULES, **promised)]) as other,
    ):
        with pytest.raises(Exception, match=r"digest|diff id") as caught:
            apply_reading(other.next_layer(), tmp_path / "worker/a.cim", ApplyOptions("cim"))
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]
    assert [*(tmp_path / "worker").iterdir()] == []


def test_a_cancelled_image_leaves_nothing(tmp_path: Path) -> None:
    cancel = Cancellation()
    with opened(tmp_path / "blob", gzipped(mixed())) as file, ReaderProcess([Blob(file, windows=RULES)]) as other:
        job = Job(progress=OnAdvance(lambda _: cancel.cancel()), cancel=cancel)
        layer = other.next_layer(job)
        with pytest.raises(Cancelled):
            apply_reading(layer, tmp_path / "a/a.cim", ApplyOptions("cim"), job)
        assert child()
    assert [*(tmp_path / "a").iterdir()] == []


@pytest.mark.parametrize("size", [0, 10, 3 * MIB])
def test_a_stream_s_content_is_read_once_and_in_time(size: int, tmp_path: Path) -> None:
    tar = tar_of([put("a", b"x" * size), stream("a", "s", b"y" * size), put("b", None)])
    with opened(tmp_path / "blob", gzipped(tar)) as file, ReaderProcess([Blob(file, windows=RULES)]) as other:
        contents = [change.content for change in other.next_layer().changes() if isinstance(change, (Put, Stream))]
        assert len(contents) == 3
        for content in contents[:2]:
            assert content is not None
            with pytest.raises(StreamConsumed):
                list(content.chunks())
