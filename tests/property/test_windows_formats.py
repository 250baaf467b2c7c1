# SPDX-License-Identifier: Apache-2.0
"""NTFS metadata and whole Windows layers survive encoding and decoding."""

from __future__ import annotations

import io
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.unit.formats.tar.archives import buffers

from lamella.changes.apply import apply
from lamella.changes.dump import dump
from lamella.changes.model import (
    Buffer,
    Change,
    Content,
    Entry,
    Inline,
    Kind,
    Link,
    Put,
    Stream,
    Whiteout,
    Windows,
    dense,
)
from lamella.formats import backup
from lamella.formats.backup import BackupReader, BackupWriter, data_streams, survey
from lamella.formats.ntfs import basic_information, extended_attributes, names, reparse, sddl, security
from lamella.formats.ntfs.extended_attributes import ExtendedAttribute
from lamella.formats.ntfs.security import Ace, Acl, SecurityDescriptor, Sid
from lamella.formats.vhd import VhdFooter
from lamella.layers.windows.tar_sink import WindowsTarSink
from lamella.layers.windows.tar_source import windows_tar_changes
from lamella.paths import LayerPath

words = st.integers(0, (1 << 32) - 1)
ticks = st.integers(0, (1 << 63) - 1)
sids = st.builds(Sid, st.integers(0, (1 << 48) - 1) | st.integers(0, 20), st.lists(words, max_size=15).map(tuple))
plain_aces = st.builds(
    Ace.simple, st.sampled_from([0, 1, 2, 3, 0x13]), st.sampled_from([0, 3, 0x1F, 0xC0]), words, sids
)
raw_aces = st.builds(Ace, st.sampled_from([5, 6, 0x0B, 0x10, 0x7F]), st.integers(0, 255), st.binary(max_size=60))
odd_aces = st.builds(lambda ace, more: replace(ace, type=9, body=ace.body + more), plain_aces, st.binary(max_size=8))


def descriptors(aces: st.SearchStrategy[Ace], control: int = 0) -> st.SearchStrategy[SecurityDescriptor]:
    acls = st.none() | st.builds(Acl, st.lists(aces, max_size=4).map(tuple), st.just(2))

    def make(bits: int, owner: Sid | None, group: Sid | None, sacl: Acl | None, dacl: Acl | None) -> SecurityDescriptor:
        bits |= security.SELF_RELATIVE
        bits |= security.SACL_PRESENT if sacl is not None else 0
        bits |= security.DACL_PRESENT if dacl is not None else 0
        return SecurityDescriptor(bits, owner, group, sacl, dacl)

    return st.builds(
        make, st.integers(0, 0x7FFF).map(lambda bits: bits & ~control), st.none() | sids, st.none() | sids, acls, acls
    )


@given(descriptors(plain_aces | raw_aces | odd_aces))
def test_security_descriptors(descriptor: SecurityDescriptor) -> None:
    assert SecurityDescriptor.decode(descriptor.encode()) == descriptor


@given(descriptors(plain_aces, control=0x40EB))
def test_security_descriptors_as_text(descriptor: SecurityDescriptor) -> None:
    for present, flags in ((security.DACL_PRESENT, 0x1500), (security.SACL_PRESENT, 0x2A00)):
        if not descriptor.control & present:
            descriptor = replace(descriptor, control=descriptor.control & ~flags)
    assert sddl.parse(sddl.format(descriptor)) == descriptor


@given(sids)
def test_sids(sid: Sid) -> None:
    assert Sid.decode(sid.encode()) == sid
    assert Sid.parse(str(sid)) == sid


@given(ticks)
def test_times(count: int) -> None:
    ns = basic_information.ns_from_ticks(count)
    assert basic_information.ticks_from_ns(ns) == count


@given(st.integers(0, 208_678_456_368_547_758))
def test_overflowed_times_are_detected(count: int) -> None:
    ns = basic_information.ns_from_ticks(count)
    assert basic_information.unwrap_time(basic_information.wrap_time(ns)) == ns


utf16 = st.text(st.characters(), max_size=40)


@given(st.builds(reparse.Symlink, utf16, utf16, words) | st.builds(reparse.MountPoint, utf16, utf16))
def test_links(point: reparse.Symlink | reparse.MountPoint) -> None:
    assert reparse.decode(reparse.encode(point)) == point


@given(words.filter(lambda tag: tag not in (reparse.SYMLINK, reparse.MOUNT_POINT)), st.binary(min_size=16, max_size=80))
def test_other_reparse_points(tag: int, payload: bytes) -> None:
    assert reparse.decode(reparse.encode(reparse.Unknown(tag, payload))) == reparse.Unknown(tag, payload)


ea_names = st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name)


@given(st.lists(st.builds(ExtendedAttribute, ea_names, st.binary(max_size=300), st.integers(0, 255)), max_size=5))
def test_extended_attributes(chain: list[ExtendedAttribute]) -> None:
    assert extended_attributes.decode(extended_attributes.encode(chain)) == chain


@given(
    st.builds(
        VhdFooter,
        *(st.integers(0, (1 << 64) - 1), st.binary(min_size=16, max_size=16), st.integers(0, (1 << 64) - 1), words),
        *(st.binary(min_size=4, max_size=4), words, words, words, words, st.integers(0, 255)),
    )
)
def test_virtual_disk_footers(footer: VhdFooter) -> None:
    assert VhdFooter.decode(footer.encode()) == footer


ads_names = st.text(st.characters(exclude_characters="\0:/\\", exclude_categories=["Cs"]), min_size=1, max_size=20)


@st.composite
def contents(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]] | None, bytes]:
    """Size, extents and their data."""
    if draw(st.booleans()):
        data = draw(st.binary(max_size=50))
        return len(data), None, data
    cuts = draw(st.lists(st.integers(0, 1 << 40), max_size=6, unique=True).map(sorted))
    extents = [(at, min(end - at, 5)) for at, end in list(pairwise(cuts))[::2]]
    size = (cuts[-1] if cuts else 0) + draw(st.integers(0, 3))
    return size, extents, draw(st.binary(min_size=30, max_size=30))[: sum(length for _, length in extents)]


@given(
    contents(),
    st.binary(max_size=40),
    st.dictionaries(ads_names, st.binary(max_size=30), max_size=3),
    st.integers(1, 64),
)
def test_backup_streams(
    content: tuple[int, list[tuple[int, int]] | None, bytes], small: bytes, more: dict[str, bytes], step: int
) -> None:
    size, extents, data = content
    out = io.BytesIO()
    writer = BackupWriter(out.write)
    writer.small(backup.SECURITY_DATA, small)
    at = 0
    for stream in data_streams(size, extents):
        writer.stream(stream.id, stream.size, attributes=stream.attributes, offset=stream.offset)
        writer.data(data[at : at + stream.size])
        at += stream.size
    for name, body in more.items():
        writer.stream(backup.ALTERNATE_DATA, len(body), name=backup.stream_name(name))
        writer.data(body)
    writer.finish()
    whole = out.getvalue()
    source = io.BytesIO(whole)
    found = survey(BackupReader(lambda count: source.read(min(count, step))))
    assert found.security_descriptor == small
    assert found.size == size
    assert b"".join(whole[place : place + length] for _, length, place in found.pieces) == data
    if extents is not None and extents != [(0, size)]:
        assert [(offset, length) for offset, length, _ in found.pieces] == extents
    assert {name: whole[place : place + length] for name, length, place in found.alternates} == more


# Whole layers

times = st.none() | ticks.map(basic_information.ns_from_ticks) | st.integers(-(1 << 65), 1 << 65)
file_names = st.text(
    st.sampled_from("aB.é ~") | st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30
).filter(lambda name: names.plain(name) and not name.startswith(".wh."))
ea_texts = st.text(st.sampled_from("ABC.$_é"), min_size=1, max_size=30)


@st.composite
def windows(draw: st.DrawFn, kind: Kind, target: str) -> Windows:
    bits = draw(words) & ~0x10 | (0x10 if kind is Kind.DIRECTORY else 0)
    point = None
    if kind is Kind.SYMLINK:
        mounted = draw(st.booleans())
        bits |= 0x10 if mounted else 0
        point = reparse.encode(reparse.mount_point(target) if mounted else reparse.symlink(target))
    return Windows(
        bits,
        draw(times),
        draw(times),
        draw(times.filter(lambda ns: ns is not None)),
        draw(times),
        draw(st.none() | st.binary(min_size=1, max_size=40)),
        draw(st.dictionaries(ea_texts, st.binary(max_size=20), max_size=2)),
        point,
    )


untyped_names = ads_names.filter(lambda name: not name.endswith("$DATA"))


@st.composite
def layers(draw: st.DrawFn) -> list[Change]:
    """A layer with every kind of change, in which no two names differ only in case."""
    changes: list[Change] = []
    seen: set[str] = set()
    linkable: list[LayerPath] = []
    for _ in range(draw(st.integers(0, 6))):
        path = LayerPath("Files/" + draw(file_names))
        if names.folded(path) in seen:
            continue
        seen.add(names.folded(path))
        form = draw(st.sampled_from([Kind.FILE, Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, "link", "whiteout"]))
        if form == "link" and linkable:
            changes.append(Link(path, draw(st.sampled_from(linkable))))
        elif isinstance(form, Kind):
            target = draw(st.sampled_from(["a", "..\\b", "C:\\é", "\\\\?\\x"])) if form is Kind.SYMLINK else ""
            content = Inline(draw(st.binary(max_size=600))) if form is Kind.FILE else None
            entry = Entry(path, form, None, content.size if content else 0, target, draw(windows(form, target)))
            changes.append(Put(entry, content))
            if form is not Kind.DIRECTORY:
                linkable.append(path)
            streams = draw(st.dictionaries(untyped_names, st.binary(max_size=20), max_size=2))
            changes += [Stream(path, name, Inline(body)) for name, body in streams.items()]
        elif form == "whiteout":
            changes.append(Whiteout(path))
    return changes


def written(changes: list[Change]) -> bytes:
    out = bytearray()

    def take(piece: Buffer) -> None:
        out.extend(piece)

    losses = apply(changes, WindowsTarSink(take))
    assert list(losses) == []
    return bytes(out)


def held(content: Content) -> Inline:
    return Inline(b"".join(map(bytes, dense(content))))


def read(data: bytes, step: int) -> list[Change]:
    found: list[Change] = []
    for change in windows_tar_changes(buffers(data, step)):
        match change:
            case Put(entry, content) if content is not None:
                found.append(Put(entry, held(content)))
            case Stream(path, name, content):
                found.append(Stream(path, name, held(content)))
            case _:
                found.append(change)
    return found


@settings(max_examples=150)
@given(layers(), st.integers(1, 8).map(lambda blocks: blocks * 512))
def test_a_layer_survives_its_tar_unchanged(layer: list[Change], step: int) -> None:
    data = written(layer)
    found = read(data, step)
    assert list(dump(layer, inline=1 << 20)) == list(dump(found, inline=1 << 20))
    assert written(found) == data
