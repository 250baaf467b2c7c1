# SPDX-License-Identifier: Apache-2.0
"""Every Windows layer that can be applied is restored from its folder byte for byte."""

from __future__ import annotations

import io

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.property.test_windows_formats import layers, written
from tests.unit.formats.tar.archives import buffers, with_checksum

from lamella.changes.apply import apply
from lamella.changes.model import Buffer, Change, Entry, Kind, Link, Opaque, Put, Stream, Whiteout, Windows
from lamella.digests import Digest
from lamella.errors import InvalidInput
from lamella.layers.stack import LayerStack
from lamella.layers.windows.folder.reader import FolderChanges
from lamella.layers.windows.folder.tar_split import FramingReader, FramingWriter
from lamella.layers.windows.layout import WindowsLayer
from lamella.layers.windows.sink import WindowsSink
from lamella.layers.windows.tar_sink import WindowsTarSink
from lamella.layers.windows.tar_source import windows_tar_changes
from lamella.paths import LayerPath

REFUSED = ("is not a directory", "occurs twice", "has files in it", "is a directory")
"""Layers that NTFS cannot store: files below links or files, hard links to directories."""

TOP = Put(Entry(LayerPath("Files"), Kind.DIRECTORY, None, 0, "", Windows(0x10, write_time=0)), None)


def in_files(change: Change) -> Change:
    def moved(path: LayerPath) -> LayerPath:
        return LayerPath(f"Files/{path}")

    match change:
        case Put(entry, content):
            return Put(replace(entry, path=moved(entry.path)), content)
        case Link(path, target):
            return Link(moved(path), moved(target))
        case Stream(path, name, content):
            return Stream(moved(path), name, content)
        case Whiteout(path):
            return Whiteout(moved(path))
        case Opaque():
            raise AssertionError("Windows has none")


@pytest.mark.parametrize("base", [True, False])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(changes=layers(), step=st.sampled_from([512, 1024, 65536]), odd=st.binary(max_size=8))
def test_a_layer_keeps_its_bytes_in_a_folder(
    base: bool, changes: list[Change], step: int, odd: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if base:
        changes = [change for change in changes if not isinstance(change, Whiteout)]
    data = written([TOP, *(in_files(change) for change in changes)])
    framed = with_odd_bytes(data, odd)
    place = tmp_path_factory.mktemp("folder")
    below = WindowsLayer(place / "below")
    apply([TOP], WindowsSink(below))
    layer = WindowsLayer(place / "layer")
    sink = WindowsSink(layer, parents=None if base else LayerStack([below]))
    framing = bytearray()
    writer = FramingWriter(buffers(framed, step), framing.extend)
    try:
        apply(writer.record(windows_tar_changes(writer.next_buffer, linked=sink.link_facet)), sink)
    except InvalidInput as error:
        if not any(words in str(error) for words in REFUSED):
            raise
        reject()
    writer.finish(Digest.of(framed))
    out = bytearray()

    def take(piece: Buffer) -> None:
        out.extend(piece)

    with FolderChanges(layer) as found:
        apply(found, WindowsTarSink(take, lookup=found.lookup))
        assert bytes(out) == data
        reader = FramingReader(io.BytesIO(framing), found)
        assert framed == b"".join(map(bytes, reader.pieces()))
        assert Digest.of(framed) == reader.diff_id


def with_odd_bytes(data: bytes, odd: bytes) -> bytes:
    """Return ``data`` with bytes that readers ignore: after the end, and in the owner name of the first header."""
    first = bytearray(data[:512])
    first[265 : 265 + len(odd)] = odd
    return with_checksum(first) + data[512:] + odd * 100
