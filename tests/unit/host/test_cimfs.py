# SPDX-License-Identifier: Apache-2.0
"""The bindings of cimfs.dll and cimwriter.dll, against a stub in C."""

from __future__ import annotations

import ctypes
import sys
import uuid
from collections.abc import Callable

import pytest
from tests.windows.stubs import StubCimfs, StubLoader, check_compiler

from lamella.errors import AlreadyExists, Conflict, Denied, Exhausted, LamellaError, NotFound, Unavailable, Unsupported
from lamella.host.windows.cimfs import (
    Cimfs,
    Create,
    FileMetadata,
    ImagePath,
    MergeFlag,
    MountFlag,
    Sealed,
    Verification,
    WindowsBuild,
)

NEW = WindowsBuild(30000)
VOLUME = uuid.UUID("6827367b-c388-4e9b-961c-6d2c936c0000")
RAW_VOLUME = VOLUME.bytes_le.hex()
ROOT = bytes(range(32))


@pytest.fixture(autouse=True)
def compiler(needs: Callable[..., str]) -> None:
    check_compiler(needs)


@pytest.fixture
def stub() -> StubCimfs:
    return StubCimfs()


@pytest.fixture
def calls(stub: StubCimfs) -> Cimfs:
    return Cimfs(StubLoader(cimfs=stub.library), NEW)


def test_metadata_lie_where_windows_has_them() -> None:
    fields = {name: getattr(FileMetadata, name).offset for name, *_ in FileMetadata._fields_}
    assert fields == {
        "attributes": 0,
        "size": 8,
        "creation_time": 16,
        "write_time": 24,
        "change_time": 32,
        "access_time": 40,
        "security": 48,
        "security_size": 56,
        "reparse": 64,
        "reparse_size": 72,
        "extended_attributes": 80,
        "extended_attributes_size": 88,
    }
    assert (ctypes.sizeof(FileMetadata), ctypes.sizeof(ImagePath)) == (96, 16)


def test_every_call_is_made_with_its_arguments(tmp_path: object, calls: Cimfs, stub: StubCimfs) -> None:
    place = str(tmp_path)
    image = calls.create(place, "base.cim", "child.cim")
    facts = FileMetadata(attributes=0x20, size=5, creation_time=1, write_time=2, change_time=3, access_time=4)
    descriptor = b"\1\0\4\x80" + bytes(16)
    stream = calls.create_file(image, "a é", facts, security=descriptor, reparse=b"\x0c", extended_attributes=b"\1\2")
    assert stub.details == f"20 1 2 3 4 sd:{descriptor.hex()} reparse:0c ea:0102"
    calls.write(stream, b"he")
    calls.write(stream, bytearray(b"ll"))
    calls.write(stream, memoryview(b"xox")[1:2])
    calls.write(stream, b"")
    calls.close_stream(stream)
    calls.close_stream(calls.create_stream(image, "a é:ads:$DATA", 1 << 33))
    calls.hard_link(image, "b", "a é")
    calls.merge_link(image, "c", "below")
    calls.tombstone(image, "gone")
    calls.delete(image, "b")
    calls.add_to_merged(image, "other.cim")
    calls.add_to_merged(image, "layer.vhd\\layer.cim", MergeFlag.SINGLE_FILE | MergeFlag.VERIFIED)
    calls.commit(image)
    calls.close(image)
    image = calls.create_in_block(f"{place}/block", Create.SINGLE_FILE | Create.VERIFIED, None, "x.cim")
    calls.close(image)
    assert calls.seal("block") == Sealed(ROOT, 4096)
    assert calls.verification("block") == Verification(True, ROOT, 0, 4096)
    calls.mount("dir", "x.cim", MountFlag.CACHE_FILES, VOLUME)
    calls.mount_verified("block", "x.cim", MountFlag.SINGLE_FILE, VOLUME, ROOT)
    calls.merge_mount([("m", "m.cim"), ("a", "1.cim")], MountFlag.SINGLE_FILE, VOLUME)
    calls.merge_mount([("m", "m.cim")], MountFlag.SINGLE_FILE, VOLUME, root_hash=ROOT)
    calls.dismount(VOLUME)
    assert stub.calls == [
        f"CimCreateImage {place} base.cim child.cim",
        "CimCreateFile a é 5",
        "CimWriteStream 2 6865",
        "CimWriteStream 2 6c6c",
        "CimWriteStream 1 6f",
        "CimCloseStream",
        "CimCreateAlternateStream a é:ads:$DATA 8589934592",
        "CimCloseStream",
        "CimCreateHardLink b a é",
        "CimCreateMergeLink c below",
        "CimTombstoneFile gone",
        "CimDeletePath b",
        "CimAddFsToMergedImage other.cim",
        "CimAddFsToMergedImage2 layer.vhd\\layer.cim 0x5",
        "CimCommitImage",
        "CimCloseImage",
        f"CimCreateImage2 {place}/block 0x48 - x.cim",
        "CimCloseImage",
        "CimSealImage block",
        "CimGetVerificationInformation block",
        f"CimMountImage dir x.cim 0x4 {RAW_VOLUME}",
        f"CimMountVerifiedImage block x.cim 0x20 {RAW_VOLUME} {ROOT.hex()}",
        f"CimMergeMountImage m|m.cim a|1.cim 0x20 {RAW_VOLUME}",
        f"CimMergeMountVerifiedImage m|m.cim 0x20 {RAW_VOLUME} {ROOT.hex()}",
        f"CimDismountImage {RAW_VOLUME}",
    ]


@pytest.mark.parametrize(
    ("code", "category"),
    [(2, NotFound), (5, Denied), (32, Unavailable), (39, Exhausted), (183, AlreadyExists), (6, Conflict)],
)
def test_failures_have_their_categories(code: int, category: type[LamellaError], calls: Cimfs, stub: StubCimfs) -> None:
    stub.fail("CimDeletePath", 1, code)
    with pytest.raises(category, match=rf"delete 'a' in the image: .*\(error {code}\)"):
        calls.delete(7, "a")


def test_functions_are_looked_up_when_they_are_first_called(stub: StubCimfs) -> None:
    loader = StubLoader(cimfs=stub.library)
    loader.lacks.add("CimTombstoneFile")
    calls = Cimfs(loader, NEW)
    assert loader.asked == []
    calls.dismount(VOLUME)
    calls.dismount(VOLUME)
    assert loader.asked == ["cimfs.CimDismountImage"]
    with pytest.raises(Unsupported, match="CimTombstoneFile"):
        calls.tombstone(7, "a")


def test_the_writer_s_own_library_writes_all_where_it_is_there(tmp_path: object) -> None:
    reader, writer = StubCimfs(), StubCimfs()
    loader = StubLoader(cimfs=reader.library, cimwriter=writer.library)
    loader.lacks.add("CimSealImage")  # of the one; the other is not asked
    calls = Cimfs(loader, WindowsBuild(17763))
    calls.close(calls.create(str(tmp_path), None, "x.cim"))
    calls.dismount(VOLUME)
    with pytest.raises(Unsupported):
        calls.seal("block")
    assert loader.asked == [
        "cimwriter.CimCreateImage",
        "cimwriter.CimCloseImage",
        "cimfs.CimDismountImage",
        "cimwriter.CimSealImage",
    ]
    assert (len(reader.calls), len(writer.calls)) == (1, 2)


class TestBuilds:
    @pytest.mark.parametrize(
        ("build", "images", "layers", "blocks", "verified"),
        [
            (WindowsBuild(17763), False, False, False, False),
            (WindowsBuild(19041), True, False, False, False),
            (WindowsBuild(20348, 2030), True, False, False, False),
            (WindowsBuild(20348, 2031), True, True, False, False),
            (WindowsBuild(25000, 9999), True, False, False, False),
            (WindowsBuild(26100), True, True, False, False),
            (WindowsBuild(27766), True, True, True, False),
            (WindowsBuild(27800), True, True, True, True),
        ],
    )
    def test_decide_what_can_be_done(
        self, build: WindowsBuild, images: bool, layers: bool, blocks: bool, verified: bool, stub: StubCimfs
    ) -> None:
        calls = Cimfs(StubLoader(cimfs=stub.library), build)
        assert (images, layers, blocks, verified) == (
            allowed(calls.check_writing),
            allowed(calls.check_layers),
            allowed(calls.check_mounting_blocks),
            allowed(lambda: calls.check_mounting_blocks(verified=True)),
        )
        assert (blocks, verified) == (
            allowed(calls.check_writing_blocks),
            allowed(lambda: calls.check_writing_blocks(verified=True)),
        )

    def test_are_none_the_matter_to_the_writer_s_own_library(self, stub: StubCimfs) -> None:
        calls = Cimfs(StubLoader(cimwriter=stub.library), WindowsBuild(17763))
        assert allowed(calls.check_writing)
        assert allowed(lambda: calls.check_writing_blocks(verified=True))
        assert not allowed(calls.check_mounting_blocks)
        assert not allowed(calls.check_layers)

    def test_are_of_no_use_without_the_library(self) -> None:
        calls = Cimfs(StubLoader(), NEW)
        for check in (calls.check_writing, calls.check_layers, calls.check_writing_blocks, calls.check_mounting_blocks):
            assert not allowed(check)


def allowed(check: Callable[[], object]) -> bool:
    """Whether a check lets pass; where it does not, it says which build would."""
    try:
        check()
    except Unsupported as refusal:
        if "build" not in (refusal.hint or ""):
            raise
        return False
    return True


def test_only_windows_has_a_build() -> None:
    if sys.platform == "win32":
        assert WindowsBuild.here().build > 10_000
        return
    with pytest.raises(Unsupported, match="not Windows"):
        WindowsBuild.here()
