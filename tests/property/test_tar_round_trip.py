# SPDX-License-Identifier: Apache-2.0
"""The reader reads tars of the writer in buffers of any size, and agrees with other readers."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.formats.tar.archives import read

from lamella.errors import FormatError
from lamella.formats.tar import TarWriter

SECOND = 1_000_000_000

characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.integers(0xDC80, 0xDCFF).map(chr)
names = st.text(st.sampled_from("ab./é") | characters, min_size=1, max_size=300).map(
    # escaped bytes must not spell valid UTF-8, which would be read as characters
    lambda text: text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
)
keys = st.text(st.sampled_from("abc.é "), max_size=20).map(lambda text: "VENDOR." + text)
times = st.integers(-(1 << 40) * SECOND, (1 << 40) * SECOND)
ids = st.integers(0, 1 << 22) | st.integers(0, (1 << 32) - 2)


@st.composite
def members(draw: st.DrawFn) -> dict[str, Any]:
    typeflag = draw(st.sampled_from("0123456"))
    name = draw(names)
    if typeflag in "0346":
        name = name.rstrip("/") or "f"
    data = draw(st.binary(max_size=3000)) if typeflag == "0" else b""
    return {
        "name": name,
        "typeflag": typeflag,
        "mode": draw(st.integers(0, 0o7777)),
        "uid": draw(ids),
        "gid": draw(ids),
        "mtime": draw(times),
        "linkname": draw(names) if typeflag in "12" else "",
        "device": draw(st.tuples(st.integers(0, 4095), st.integers(0, 1 << 20))) if typeflag in "34" else (0, 0),
        "records": draw(st.dictionaries(keys, st.binary(max_size=100), max_size=3)),
        "uname": draw(st.sampled_from(["", "root", "ü" * 20])),
        "data": data,
        "size": len(data),
        "pax": draw(st.booleans()),
    }


def archive(of: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    writer = TarWriter(out.write)
    for member in of:
        writer.member(**{key: value for key, value in member.items() if key != "data"})
        writer.data(member["data"])
    writer.close()
    assert writer.offset == len(out.getvalue())
    return out.getvalue()


def stored_time(member: dict[str, Any]) -> int:
    mtime: int = member["mtime"]
    return mtime if member["pax"] else (mtime + SECOND // 2) // SECOND * SECOND


@settings(max_examples=150)
@given(st.lists(members(), max_size=5), st.integers(1, 8).map(lambda blocks: blocks * 512))
def test_the_reader_returns_the_written_members(written: list[dict[str, Any]], step: int) -> None:
    found = read(archive(written), step)
    assert len(written) == len(found)
    for expected, one in zip(written, found, strict=True):
        member = one.member
        assert expected["name"] == one.name
        assert expected["typeflag"] == member.typeflag
        assert expected["data"] == one.data
        assert expected["linkname"] == member.linkname
        assert expected["device"] == member.device
        assert (expected["mode"], expected["uid"], expected["gid"], stored_time(expected)) == member.facet
        kept = {key: value for key, value in (member.records or {}).items() if key.startswith("VENDOR.")}
        assert expected["records"] == kept


@settings(max_examples=60)
@given(st.lists(members(), max_size=4))
def test_tarfile_reads_the_same_members(written: list[dict[str, Any]]) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive(written))) as other:
        found = other.getmembers()
    assert len(written) == len(found)
    for expected, info in zip(written, found, strict=True):
        assert expected["name"].rstrip("/") == info.name.rstrip("/")
        assert expected["typeflag"].encode() == info.type
        assert (expected["mode"], expected["uid"], expected["gid"]) == (info.mode, info.uid, info.gid)
        assert expected["size"] == info.size
        if expected["typeflag"] in "12":
            assert expected["linkname"].rstrip("/") == info.linkname.rstrip("/")
        assert stored_time(expected) // SECOND - 1 <= info.mtime <= stored_time(expected) // SECOND + 1


@settings(max_examples=60)
@given(members(), st.integers(0, 4000))
def test_a_truncated_archive_ends_at_a_member_or_is_refused(member: dict[str, Any], cut: int) -> None:
    whole = archive([member, member])
    kept = len(whole) - min(cut, len(whole))
    one = (len(whole) - 1024) // 2
    if kept in (0, one) or (kept >= 2 * one and (kept - 2 * one) % 512 == 0):
        assert [member["data"]] * min(2, kept // one) == [found.data for found in read(whole[:kept])]
    else:
        with pytest.raises(FormatError, match="truncated"):
            read(whole[:kept])
