# SPDX-License-Identifier: Apache-2.0
"""Any input gives NTFS metadata or an expected error."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.formats.tar.archives import END, buffers, file, pax

from lamella.changes.apply import apply
from lamella.changes.losses import Losses
from lamella.changes.model import Buffer, Entry, Inline, Kind, Put, Stream, Windows
from lamella.digests import Digest
from lamella.errors import Exhausted, FormatError, InvalidInput, Unsupported
from lamella.formats.backup import BackupReader, survey
from lamella.formats.ntfs import basic_information, extended_attributes, reparse, sddl
from lamella.formats.ntfs.security import SecurityDescriptor
from lamella.formats.vhd import VhdFooter
from lamella.layers.windows.folder.index import IndexReader, IndexWriter, LinkFact, PutFact, StreamFact
from lamella.layers.windows.folder.tar_split import FramingReader
from lamella.layers.windows.tar_sink import WindowsTarSink
from lamella.layers.windows.tar_source import windows_tar_changes
from lamella.paths import LayerPath
from lamella.streams.zstandard import zstd

VECTORS = Path(__file__).parents[1] / "vectors/windows-tar"
DESCRIPTOR = base64.b64decode(
    "AQAEgBQAAAAkAAAAAAAAADAAAAABAgAAAAAABSAAAAAgAgAAAQEAAAAAAAUSAAAAAgBMAAMAAAAAABgA/wEfAAECAAAAAAAFIAAAACACAAAAABQA"
    "/wEfAAEBAAAAAAAFEgAAAAAAGACpABIAAQIAAAAAAAUgAAAAIQIAAA=="
)
STREAMS = bytes.fromhex(
    "0300000000000000020000000000000000000000 5344"
    "0100000008000000000000000000000000000000"
    "09000000000000000c0000000000000000000000 0000000000000000 61616161"
    "0900000000000000080000000000000000000000 1e00000000000000"
    "0400000000000000010000000000000010000000 3a0073003a0024004400410054004100 78"
)


INDEX = b"\n".join(
    (
        b'{"lamella":"windows layer","version":1,"form":"transport"}',
        b'{"put":"Files","kind":"directory","attributes":16,"times":[1,2,3,null]}',
        b'{"descriptor":"AAAA"}',
        b'{"put":"Files/a","kind":"file","attributes":32,"times":[1,2,3,4],"security":0,"size":5,"extents":[[0,5]]}',
        b'{"put":"Files/e","kind":"file","attributes":32,"times":[1,2,3,4],"extended":[["A","QQ=="]],"size":5,"at":4}',
        b'{"stream":"Files/e","name":"s","size":1,"at":9}',
        b'{"put":"Files/l","kind":"symlink","attributes":1056,"times":[1,2,3,4],"reparse":"AAAA","target":"x"}',
        b'{"link":"Files/b","target":"Files/a","attributes":32,"times":[1,2,3,4]}',
        b'{"whiteout":"Files/c"}',
        b'{"end":7}',
        b"",
    )
)
FRAMED = b"\x04hi\x0b\x02!\0\x47" + str(Digest.of(b"hihello!")).encode()
"""What stands in the frame of a framing: two bytes, five of content, one more, the end and the digest."""


def seeds() -> Iterator[bytes]:
    """Good inputs of every kind; a target refuses those of the others."""
    yield from (path.read_bytes() + END for path in sorted(VECTORS.glob("*.bin")))
    yield DESCRIPTOR
    yield b"O:BAG:SYD:PAI(A;OICI;FA;;;BA)(D;;0x1200a9;;;S-1-5-21-1-2-3-500)S:(ML;;NW;;;HI)"
    yield reparse.encode(reparse.symlink("..\\x"))
    yield reparse.encode(reparse.mount_point("C:\\x"))
    attributes = [
        extended_attributes.ExtendedAttribute(b"FOO", b"bar"),
        extended_attributes.ExtendedAttribute(b"E", b""),
    ]
    yield extended_attributes.encode(attributes)
    yield STREAMS
    yield VhdFooter(1 << 20, bytes(16)).encode()
    yield INDEX
    yield FRAMED


def refused(read: Callable[[], object], *expected: type[Exception]) -> bool:
    """Whether reading is refused as it should be: in one line, of some length at most."""
    try:
        read()
    except expected as error:
        problem = str(error)
    else:
        return False
    assert "\n" not in problem
    assert len(problem) < 1000
    return True


def fuzz_security_descriptor(data: bytes) -> None:
    def read() -> None:
        found = SecurityDescriptor.decode(data)
        assert SecurityDescriptor.decode(found.encode()) == found
        refused(lambda: sddl.format(found), Unsupported)

    # A list shared by both offsets may be too long to be written twice; what was read is never malformed.
    refused(read, FormatError)


def fuzz_sddl(data: bytes) -> None:
    def read() -> None:
        found = sddl.parse(data.decode("utf-8", "replace"))
        again = SecurityDescriptor.decode(found.encode())
        assert again == found
        assert sddl.parse(sddl.format(found)) == found

    refused(read, InvalidInput, Unsupported)


def fuzz_reparse(data: bytes) -> None:
    def read() -> None:
        found = reparse.decode(data)
        try:
            again = reparse.encode(found)
        except InvalidInput:
            return  # names may share bytes, which are written twice
        assert reparse.decode(again) == found

    refused(read, FormatError)


def fuzz_extended_attributes(data: bytes) -> None:
    def read() -> None:
        found = extended_attributes.decode(data)
        assert extended_attributes.decode(extended_attributes.encode(found)) == found

    refused(read, FormatError)


def fuzz_backup(data: bytes) -> None:
    def read() -> None:
        found = survey(BackupReader(io.BytesIO(data).read))
        position = 0
        for offset, length, at in found.pieces:
            assert position <= offset
            position = offset + length
            assert at + length <= len(data)
        assert position <= found.size

    refused(read, FormatError)
    refused(lambda: [stream.read() for stream in BackupReader(io.BytesIO(data).read)], FormatError)


def fuzz_vhd(data: bytes) -> None:
    refused(lambda: VhdFooter.decode(VhdFooter.decode(data).encode()), FormatError)


def fuzz_windows_index(data: bytes) -> None:
    """What is believed of the index of a layer's folder can be written, and reads the same."""
    out = bytearray()

    def read() -> None:
        reader = IndexReader(io.BytesIO(data))
        facts = list(reader)
        writer = IndexWriter(out.extend, reader.form)
        for fact in facts:
            if isinstance(fact, PutFact):
                writer.put(fact)
            elif isinstance(fact, LinkFact):
                writer.link(fact)
            elif isinstance(fact, StreamFact):
                writer.stream(fact)
            else:
                writer.whiteout(fact.path)
        writer.finish()
        assert facts == list(IndexReader(io.BytesIO(out)))

    refused(read, FormatError, Unsupported)


def fuzz_framing(data: bytes) -> None:
    """As a framing, and as what stands in the frame of one."""
    framed = b"LAYFRAM\1" + zstd.compress(data)
    for whole in (data, framed):
        content = Put(Entry(LayerPath("Files/a"), Kind.FILE, None, 5, "", Windows(32)), Inline(b"hello"))
        pieces: list[int] = []

        def read(whole: bytes = whole, content: Put = content, pieces: list[int] = pieces) -> None:
            pieces.extend(len(piece) for piece in FramingReader(io.BytesIO(whole), [content]).pieces())

        refused(read, FormatError, Unsupported)
        assert whole is data or sum(pieces) <= len(data) + 5


def framing_reads(data: bytes) -> bool:
    """Whether the inside of a frame is that of a framing of one file of five bytes."""
    content = Put(Entry(LayerPath("Files/a"), Kind.FILE, None, 5, "", Windows(32)), Inline(b"hello"))
    reader = FramingReader(io.BytesIO(b"LAYFRAM\1" + zstd.compress(data)), [content])
    return b"".join(map(bytes, reader.pieces())) == b"hihello!"


def fuzz_windows_tar(data: bytes) -> None:
    """What is taken can be written, nothing of it is lost, and it reads the same."""
    out = bytearray()

    def take(piece: Buffer) -> None:
        out.extend(piece)

    def read() -> None:
        apply(windows_tar_changes(buffers(data, 1024)), WindowsTarSink(take, losses=Losses(refuse=True)))

    if not refused(read, FormatError, InvalidInput, Exhausted, Unsupported):
        first = [type(change) for change in windows_tar_changes(buffers(data, 1024))]
        again = [type(change) for change in windows_tar_changes(buffers(bytes(out)))]
        assert len(again) <= len(first)
        assert again.count(Stream) == first.count(Stream)


TARGETS = [
    *(fuzz_security_descriptor, fuzz_sddl, fuzz_reparse, fuzz_extended_attributes, fuzz_backup, fuzz_vhd),
    *(fuzz_windows_index, fuzz_framing),
]


@st.composite
def nearly_good(draw: st.DrawFn, good: list[bytes]) -> bytes:
    data = bytearray(draw(st.sampled_from(good)))
    for position in draw(st.lists(st.integers(0, len(data) - 1), max_size=4)):
        data[position] = draw(st.sampled_from([0, 1, 2, 4, 8, 255]) | st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data))) or len(data)])


SMALL = [seed for seed in seeds() if len(seed) <= 512]


@settings(max_examples=400)
@given(nearly_good(SMALL))
def test_small_structures_made_to_be_almost_right(data: bytes) -> None:
    for target in TARGETS:
        target(data)


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    for target in (*TARGETS, fuzz_windows_tar):
        target(data)


@pytest.mark.parametrize("data", list(seeds()))
def test_the_seeds_are_good_for_some_target(data: bytes) -> None:
    for target in (*TARGETS, fuzz_windows_tar):
        target(data)
    good = [
        not refused(lambda: SecurityDescriptor.decode(data), FormatError),
        not refused(lambda: sddl.parse(data.decode("latin-1")), InvalidInput),
        not refused(lambda: reparse.decode(data), FormatError),
        not refused(lambda: extended_attributes.decode(data), FormatError),
        not refused(lambda: survey(BackupReader(io.BytesIO(data).read)), FormatError),
        not refused(lambda: VhdFooter.decode(data), FormatError),
        not refused(lambda: list(windows_tar_changes(buffers(data))), FormatError),
        not refused(lambda: list(IndexReader(io.BytesIO(data))), FormatError),
        data == FRAMED and framing_reads(data),
    ]
    assert any(good)


KEYS = [
    *(b"MSWINDOWS.fileattr", b"MSWINDOWS.rawsd", b"MSWINDOWS.sd", b"MSWINDOWS.mountpoint", b"MSWINDOWS.xattr.A"),
    *(b"LIBARCHIVE.creationtime", b"atime", b"ctime", b"mtime", b"path", b"linkpath"),
]
VALUES = [
    *(
        b"",
        b"0",
        b"16",
        b"32",
        b"1",
        b"1024",
        b"AA==",
        b"QUJD",
        b"O:BA",
        b"D:(A;;FA;;;BA)",
        b"O:DA",
        b"1.5",
        b"-1.000000001",
    ),
    *(b"6802270473.709551616", b"9" * 19, b"Files/a", b"Files/a:s", b"a.", b".wh.b", b"C:\\x", b"\xff", b"Files/A"),
]
MEMBERS = st.builds(
    lambda records, name, flag, data, link: (
        (pax(*records) if records else b"") + file(name, data if flag == b"0" else b"", flag, linkname=link)
    ),
    st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES) | st.binary(max_size=8)), max_size=5),
    st.sampled_from(
        [b"Files", b"Files/a", b"Files/A", b"Files/a:s", b"Files/b", b"Files/b:s", b"Files/.wh.a", b"Files/con"]
    ),
    st.sampled_from([b"0", b"0", b"1", b"2", b"5", b"3"]),
    st.binary(max_size=600),
    st.sampled_from([b"", b"Files/a", b"files/B", b"..\\x", b"C:\\x", b"/"]),
)


@settings(max_examples=300)
@given(st.lists(MEMBERS, max_size=6))
def test_layers_made_to_be_almost_right(members: list[bytes]) -> None:
    fuzz_windows_tar(b"".join(chain(members, [END])))


@given(st.integers(-(1 << 70), 1 << 70))
def test_any_time(ns: int) -> None:
    assert basic_information.wrap_time(basic_information.unwrap_time(ns)) in (ns, basic_information.wrap_time(ns))


def test_no_part_of_a_layer_is_gone_over_again_and_again() -> None:
    """Each of these would take minutes with quadratic steps."""
    deep = b"/".join([b"d"] * 4000)
    many = [
        b"".join(pax((b"path", deep[: 2 * depth + 1])) + file(b"d", b"", b"5") for depth in range(0, 4000, 40)),
        b"".join(pax((b"path", deep[: 2 * depth + 1] + b"/f")) + file() for depth in range(0, 4000, 40)),
        b"".join(file(b"Files/%d" % number) for number in range(10_000)),
        b"".join(file(b"Files/.wh.%d" % number) for number in range(10_000)),
        file(b"Files/a") + b"".join(file(b"Files/a:%d" % number) for number in range(10_000)),
        file(b"Files/a")
        + b"".join(file(b"Files/l%d" % number, b"", b"1", linkname=b"FILES/A") for number in range(10_000)),
        pax(*((b"MSWINDOWS.xattr.%d" % number, b"AA==") for number in range(10_000))) + file(),
        b"".join(pax((b"MSWINDOWS.sd", b"D:" + b"(A;;FA;;;BA)" * 2000)) + file(b"%d" % number) for number in range(20)),
    ]
    for data in many:
        fuzz_windows_tar(data + END)
