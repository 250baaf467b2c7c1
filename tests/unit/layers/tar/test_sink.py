# SPDX-License-Identifier: Apache-2.0
"""Layers written as tars."""

from __future__ import annotations

import io
import tarfile

import pytest

from lamella.changes.apply import apply
from lamella.changes.contracts import Source
from lamella.changes.losses import Losses
from lamella.changes.model import Buffer, Change, Entry, Kind, Put, Windows
from lamella.changes.tree import fold, walk
from lamella.errors import LossRefused, MissingFacet, SizeMismatch
from lamella.layers.tar.sink import TarSink
from lamella.paths import LayerPath
from lamella.testing.builders import (
    device,
    directory,
    fifo,
    file,
    link,
    opaque,
    sparse,
    stream,
    symlink,
    whiteout,
)

SECOND = 1_000_000_000


def tar(changes: Source, **options: object) -> tuple[bytes, Losses]:
    out = io.BytesIO()

    def write(piece: Buffer) -> None:
        out.write(piece)

    losses = apply(changes, TarSink(write, **options))  # type: ignore[arg-type]
    return out.getvalue(), losses


def members(changes: Source, **options: object) -> list[tarfile.TarInfo]:
    data, losses = tar(changes, **options)
    assert not list(losses)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmembers()


def test_each_kind_of_file_becomes_a_member_with_all_its_metadata() -> None:
    changes: list[Change] = [
        directory("d", mode=0o1777, uid=1, gid=2),
        file("d/f", b"hello", mode=0o4755, uid=3, gid=4),
        symlink("d/l", "../x"),
        device("d/c", 1, 3, mode=0o666),
        device("d/b", 8, 70000, block=True),
        fifo("d/p"),
    ]
    found = [
        (m.name, m.type, m.mode, m.uid, m.gid, m.size, m.mtime, m.linkname, m.devmajor, m.devminor)
        for m in members(changes)
    ]
    assert found == [
        ("d", b"5", 0o1777, 1, 2, 0, 1_700_000_000, "", 0, 0),
        ("d/f", b"0", 0o4755, 3, 4, 5, 1_700_000_000, "", 0, 0),
        ("d/l", b"2", 0o777, 0, 0, 0, 1_700_000_000, "../x", 0, 0),
        ("d/c", b"3", 0o666, 0, 0, 0, 1_700_000_000, "", 1, 3),
        ("d/b", b"4", 0o600, 0, 0, 0, 1_700_000_000, "", 8, 70000),
        ("d/p", b"6", 0o644, 0, 0, 0, 1_700_000_000, "", 0, 0),
    ]


def test_names_of_directories_end_with_a_slash() -> None:
    data, _ = tar([directory("d")])
    assert data.startswith(b"d/\0")


def test_the_root_is_left_out_unless_asked_for() -> None:
    changes: list[Change] = [directory("", mode=0o700), file("f")]
    assert [member.name for member in members(changes)] == ["f"]
    data, _ = tar(changes, root=True)
    assert data.startswith(b"./\0")


def test_markers_are_empty_files_without_metadata() -> None:
    found = members([whiteout("a/b"), whiteout("c"), opaque("a"), opaque("")])
    assert [member.name for member in found] == ["a/.wh.b", ".wh.c", "a/.wh..wh..opq", ".wh..wh..opq"]
    assert {(m.type, m.mode, m.uid, m.gid, m.size, m.mtime) for m in found} == {(b"0", 0, 0, 0, 0, 0)}
    assert [member.mtime for member in members([whiteout("c")], whiteout_time=7 * SECOND)] == [7]


def test_a_hard_link_repeats_the_metadata_of_its_file() -> None:
    changes: list[Change] = [
        file("a", b"data", mode=0o4711, uid=7, gid=8, mtime=5 * SECOND, xattrs={"user.x": b"1"}),
        link("b", "a"),
        link("c", "b"),
        device("n", 1, 5, mode=0o600),
        link("m", "n"),
    ]
    tree = fold(changes)
    for options in ({}, {"lookup": tree.lookup}):
        found = {member.name: member for member in members(changes, **options)}
        for name, target in (("b", "a"), ("c", "b")):
            one = found[name]
            assert (one.type, one.linkname, one.size) == (b"1", target, 0)
            assert (one.mode, one.uid, one.gid, one.mtime) == (0o4711, 7, 8, 5)
            assert one.pax_headers == {"SCHILY.xattr.user.x": "1"}
        assert (found["m"].type, found["m"].devmajor, found["m"].devminor) == (b"1", 1, 5)


def test_a_link_to_a_file_put_anew_has_the_new_metadata() -> None:
    changes: list[Change] = [
        file("d/a", mode=0o600, xattrs={"user.x": b"1"}),
        link("d/b", "d/a"),
        file("d/a", mode=0o644),
    ]
    found = {member.name: member for member in members([*changes, link("d/c", "d/a")])}
    assert (found["d/b"].mode, found["d/b"].pax_headers) == (0o600, {"SCHILY.xattr.user.x": "1"})
    assert (found["d/c"].mode, found["d/c"].pax_headers) == (0o644, {})


def test_a_link_to_a_file_that_nobody_can_tell_about_is_an_error() -> None:
    for options in ({}, {"lookup": fold([]).lookup}):
        with pytest.raises(MissingFacet):
            tar([link("b", "below")], **options)


def test_odd_metadata_is_remembered_for_links_too() -> None:
    huge = file("a", mtime=2**62 * 4, uid=2**40)
    found = {member.name: member for member in members([huge, link("b", "a")])}
    assert (found["b"].uid, int(found["b"].mtime)) == (2**40, 2**64 // SECOND)


def test_times_are_cut_to_seconds_and_clamped() -> None:
    changes: list[Change] = [file("a", mtime=10 * SECOND + 999_999_999), file("b", mtime=-1), link("c", "a")]
    assert [member.mtime for member in members(changes)] == [10, -1, 10]
    assert [member.mtime for member in members(changes, clamp=5 * SECOND + 1)] == [5, -1, 5]
    kept = members([file("a", mtime=10 * SECOND + 5), link("b", "a")], subsecond=True)
    assert [member.pax_headers["mtime"] for member in kept] == ["10.000000005", "10.000000005"]


def test_extended_attributes_are_sorted_records_and_refused_ones_are_lost() -> None:
    xattrs = {"user.z": b"\xff", "trusted.x": b"1", "security.capability": b"\0", "user.a": b"1", "user.a=b": b"1"}
    data, losses = tar([file("f", xattrs=xattrs)])
    at = [data.find(name) for name in (b"SCHILY.xattr.security.capability", b"xattr.user.a", b"xattr.user.z")]
    assert -1 not in at
    assert sorted(at) == at
    assert sorted(loss.what for loss in losses) == ["extended attribute trusted.x", "extended attribute user.a=b"]


def test_holes_are_written_out() -> None:
    data, _ = tar([file("f", sparse(3000, [(1000, b"abc")]))])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        held = archive.extractfile("f")
        assert held is not None
        assert bytes(1000) + b"abc" + bytes(1997) == held.read()


@pytest.mark.parametrize("path", [".wh.x", ".wh..wh..opq", "d/.wh.x", ".wh.d/x", "d/.wh.e/f"])
def test_a_name_that_would_read_as_a_marker_is_lost(path: str) -> None:
    data, losses = tar([file(path, b"x"), file("kept"), link("also", path), whiteout(path), opaque(path)])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == ["kept"]
    assert [
        (path, "file"),
        ("also", "hard link"),
        (path, "whiteout"),
        (path, "opaque marker"),
    ] == [(loss.path, loss.what) for loss in losses]
    with pytest.raises(LossRefused):
        tar([file(path, b"x")], losses=Losses(refuse=True))


def test_names_with_a_marker_in_the_middle_are_kept() -> None:
    assert [member.name for member in members([file("a.wh.b")])] == ["a.wh.b"]


def test_alternate_streams_are_lost() -> None:
    _, losses = tar([file("f"), stream("f", "ads", b"x")])
    assert [loss.what for loss in losses] == ["alternate data stream 'ads'"]


def test_an_entry_without_posix_metadata_is_refused() -> None:
    entry = Entry(LayerPath("f"), Kind.DIRECTORY, None, windows=Windows(0x10))
    with pytest.raises(MissingFacet):
        tar([Put(entry, None)])


def test_content_of_another_size_than_stated_is_refused() -> None:
    for stated in (3, 5):
        put = file("f", b"1234")
        put.entry.size = stated
        with pytest.raises(SizeMismatch):
            tar([put])


def test_the_same_changes_give_the_same_bytes_however_links_are_looked_up() -> None:
    changes: list[Change] = [directory("d"), *[file(f"d/{n}", b"x" * n, mode=0o600 | n) for n in range(40)]]
    changes += [link(f"l{n}", f"d/{n}") for n in range(40)]
    tree = fold(changes)
    assert tar(changes) == tar(changes, lookup=tree.lookup)
    assert tar(walk(tree)) == tar(walk(tree), lookup=tree.lookup)
