# SPDX-License-Identifier: Apache-2.0
"""Files through the calls of Windows: arguments, results, and no leaked handles."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.native.stub import SECURITY, Stub

from lamella.errors import AlreadyExists, Conflict, Denied, Exhausted, InvalidInput, LamellaError, NotFound
from lamella.formats import backup
from lamella.host.windows.files import (
    DELETE,
    GENERIC_READ,
    GENERIC_WRITE,
    READONLY,
    RESTORING,
    SHARE_READ,
    Basic,
    Files,
    Handle,
    extended_path,
)

WRITE = GENERIC_READ | GENERIC_WRITE


def make(files: Files, path: str, data: bytes = b"") -> None:
    with files.open(path, WRITE, create=True) as handle:
        files.write(handle, data)


@pytest.fixture
def drive(files: Files) -> Handle:
    return files.open("C:\\")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("C:\\a\\b", "\\\\?\\C:\\a\\b"),
        ("C:/a/../b", "\\\\?\\C:\\b"),
        ("\\\\?\\C:\\a.", "\\\\?\\C:\\a."),
        ("\\\\server\\share\\a", "\\\\?\\UNC\\server\\share\\a"),
        ("C:\\", "\\\\?\\C:\\"),
    ],
)
def test_paths_are_passed_verbatim_to_windows(path: str, expected: str) -> None:
    assert expected == extended_path(path)


@pytest.mark.parametrize("path", ["a\\b", "C:a", "\\a", ""])
def test_a_relative_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidInput, match="not an absolute Windows path"):
        extended_path(path)


def test_a_file_is_opened_for_backup_and_a_reparse_point_as_itself(stub: Stub, files: Files) -> None:
    with pytest.raises(NotFound):
        files.open("C:\\x", share=SHARE_READ)
    assert stub.log == [
        "CreateFileW path=\\\\?\\C:\\x access=0x80000000 share=1 security=no disposition=3 flags=0x2200000 template=0"
    ]


def test_a_name_in_a_directory_is_opened_without_following_anything(stub: Stub, files: Files, drive: Handle) -> None:
    stub.account(7, SECURITY)
    stub.clear()
    files.open_in(drive, "d", RESTORING, share=SHARE_READ, create=True, directory=True).close()
    with pytest.raises(NotFound):
        files.open_in(drive, "d\\ünicode")
    assert stub.log == [
        (
            "NtCreateFile name=d bytes=2:2 size=48 access=0xc11c0000 flags=0x1000 allocation=no attributes=0 share=1 "
            "disposition=2 options=0x204021 extended=no:0"
        ),
        "CloseHandle file",
        (
            "NtCreateFile name=d\\ünicode bytes=18:18 size=48 access=0x80100000 flags=0x1000 allocation=no "
            "attributes=0 share=7 disposition=1 options=0x204020 extended=no:0"
        ),
    ]


@pytest.mark.parametrize("name", ["", "\\a", "a\\..\\b", "..", "a\\\\b", ".", "a\0b"])
def test_names_that_lead_elsewhere_never_reach_windows(stub: Stub, files: Files, drive: Handle, name: str) -> None:
    stub.clear()
    with pytest.raises(InvalidInput):
        files.open_in(drive, name)
    with pytest.raises(InvalidInput):
        files.link(drive, drive, name)
    assert stub.log == []


def test_the_privilege_alone_allows_full_access(stub: Stub, files: Files, drive: Handle) -> None:
    with pytest.raises(Denied, match="1314"):
        files.open_in(drive, "a", RESTORING, create=True)
    stub.account(7, SECURITY)
    files.open_in(drive, "a", RESTORING, create=True).close()


def test_creating_a_file_does_not_replace_another(files: Files, drive: Handle) -> None:
    make(files, "C:\\a")
    with pytest.raises(AlreadyExists):
        files.open("C:\\A", WRITE, create=True)
    with pytest.raises(AlreadyExists):
        files.open_in(drive, "A", WRITE, create=True)
    files.make_directory("C:\\d")
    with pytest.raises(AlreadyExists):
        files.make_directory("C:\\D")


def test_opening_a_file_as_a_directory_raises_conflict(files: Files, drive: Handle) -> None:
    make(files, "C:\\a")
    with pytest.raises(Conflict, match="not a directory"):
        files.open_in(drive, "a", directory=True)


def test_times_and_attributes_come_back_and_zeros_leave_them(stub: Stub, files: Files, drive: Handle) -> None:
    make(files, "C:\\a")
    with files.open_in(drive, "a", WRITE) as handle:
        files.set_basic(handle, Basic(133278304891234567, 2, 3, 4, 0x22))
        assert files.basic(handle) == Basic(133278304891234567, 2, 3, 4, 0x22)
        files.set_basic(handle, Basic(0, 0, 9, 0, 0))
        assert files.basic(handle) == Basic(133278304891234567, 2, 9, 4, 0x22)
    assert "SetFileInformationByHandle class=0 size=40 times=133278304891234567,2,3,4 attributes=0x22" in stub.log


def test_size_names_and_identity_of_a_file(files: Files, drive: Handle) -> None:
    make(files, "C:\\a", b"12345")
    with files.open_in(drive, "a") as handle:
        assert (
            files.standard(handle).size,
            files.standard(handle).links,
            files.standard(handle).directory,
        ) == (5, 1, False)
        files.link(handle, drive, "b")
        assert files.standard(handle).links == 2
        with files.open_in(drive, "b") as other:
            assert files.identity(handle) == files.identity(other)
        with pytest.raises(AlreadyExists):
            files.link(handle, drive, "B")
    assert files.standard(drive).directory
    assert len(files.identity(drive)[1]) == 16


def test_a_link_passes_root_length_and_name_in_the_layout_of_windows(stub: Stub, files: Files, drive: Handle) -> None:
    make(files, "C:\\a")
    files.make_directory("C:\\d")
    with files.open_in(drive, "a") as handle:
        files.link(handle, drive, "d\\é")
    assert "NtSetInformationFile link name=d\\é replace=0 size=26" in stub.log


def test_content_is_written_and_read_at_any_size(files: Files, drive: Handle) -> None:
    data = bytes(range(256)) * 3000
    make(files, "C:\\a", data)
    with files.open_in(drive, "a") as handle:
        assert data == b"".join(iter(lambda: files.read(handle), b""))
        files.seek(handle, 700_001)
        assert data[700_001:] == b"".join(iter(lambda: files.read(handle, 1000), b""))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))[1:]])
def test_any_buffer_can_be_written(files: Files, drive: Handle, kind: Callable[[bytes], bytes]) -> None:
    given = kind(b"x" * 300_000)
    make(files, "C:\\a", given)
    with files.open_in(drive, "a") as handle:
        assert files.standard(handle).size == len(given)


def test_a_directory_of_any_length_is_listed(stub: Stub, files: Files, drive: Handle) -> None:
    wanted = {f"{'name' * 20} {number:04}é" for number in range(700)}
    for name in wanted:
        make(files, f"C:\\{name}")
    stub.clear()
    assert wanted == {one.name for one in files.listing(drive)}
    classes = [line.split()[1] for line in stub.log]
    assert ["class=15", *["class=14"] * (len(classes) - 1)] == classes
    assert len(classes) > 2
    assert {one.attributes for one in files.listing(drive)} == {0x20}


def test_an_empty_directory_has_no_names(files: Files, drive: Handle) -> None:
    assert list(files.listing(drive)) == []


def test_a_read_only_file_in_a_tree_is_deleted(files: Files, drive: Handle) -> None:
    make(files, "C:\\a")
    with files.open_in(drive, "a", WRITE) as handle:
        files.set_basic(handle, Basic(0, 0, 0, 0, READONLY))
    files.delete(drive, "a")
    assert list(files.listing(drive)) == []
    with pytest.raises(NotFound):
        files.delete(drive, "a")


def test_a_directory_with_files_is_not_removed_by_itself(files: Files, drive: Handle) -> None:
    files.make_directory("C:\\d")
    make(files, "C:\\d\\a")
    with pytest.raises(Conflict, match="not empty"):
        files.delete(drive, "d")
    files.delete_tree(drive, "d")
    assert list(files.listing(drive)) == []
    files.delete_tree(drive, "d")


LINK = bytes.fromhex("0c0000a0200000000000080008000000080001000000") + bytes(14)


def restore(files: Files, root: Handle, name: str, streams: bytes, *, directory: bool = False) -> None:
    with (
        files.open_in(root, name, WRITE, create=True, directory=directory) as handle,
        files.restore(handle, security=True) as output,
    ):
        output.write(streams)


def streams(*parts: tuple[int, bytes]) -> bytes:
    written = bytearray()
    writer = backup.BackupWriter(written.extend)
    for id_, body in parts:
        writer.small(id_, body)
    return bytes(written)


def test_removing_a_tree_keeps_the_targets_of_its_links(files: Files, drive: Handle) -> None:
    files.make_directory("C:\\d")
    restore(files, drive, "d\\link", streams((backup.REPARSE_DATA, LINK)), directory=True)
    with pytest.raises(Conflict, match="a parent is a reparse point"):
        files.open_in(drive, "d\\link\\inside")
    files.delete_tree(drive, "d")
    assert list(files.listing(drive)) == []


def test_backup_streams_come_back_as_they_were_restored(files: Files, drive: Handle) -> None:
    given = streams((backup.SECURITY_DATA, b"sd"), (backup.DATA, b"content" * 1000), (backup.EA_DATA, b"attributes"))
    named = bytearray()
    writer = backup.BackupWriter(named.extend)
    writer.stream(backup.ALTERNATE_DATA, 3, name=backup.stream_name("zone"))
    writer.data(b"ads")
    restore(files, drive, "a", given + named)
    with files.open_in(drive, "a") as handle, files.backup(handle, security=True) as read:
        assert given + named == b"".join(iter(lambda: read.read(777), b""))
    with files.open_in(drive, "a") as handle, files.backup(handle, security=False) as read:
        assert given[22:] + named == b"".join(iter(read.read, b""))
    with files.open_in(drive, "a:zone:$DATA") as handle:
        assert files.read(handle) == b"ads"


def test_bodies_are_skipped_by_seeking(stub: Stub, files: Files, drive: Handle) -> None:
    restore(files, drive, "a", streams((backup.DATA, b"x" * 500_000), (backup.EA_DATA, b"ea")))
    stub.clear()
    with files.open_in(drive, "a") as handle, files.backup(handle, security=True) as read:
        found = backup.survey(backup.BackupReader(read.read, skip=read.skip))
    assert (found.size, found.extended_attributes) == (500_000, b"ea")
    assert "BackupSeek by=500000" in stub.log
    assert stub.log[-2:] == ["BackupRead abort", "CloseHandle file"]


def test_a_context_is_freed_once_and_only_if_there_is_one(stub: Stub, files: Files, drive: Handle) -> None:
    make(files, "C:\\a")
    stub.clear()
    with files.open_in(drive, "a", WRITE) as handle:
        with files.backup(handle, security=False):
            pass
        with files.restore(handle, security=False) as output:
            output.write(streams((backup.DATA, b"1")))
        output.close()
    assert stub.calls == ["NtCreateFile", "BackupWrite", "BackupWrite", "CloseHandle"]
    assert stub.leaks() == {"handles": 1}  # the drive


@pytest.mark.parametrize("call", ["BackupWrite", "BackupRead", "BackupSeek"])
def test_a_context_is_freed_when_a_call_fails_in_between(stub: Stub, files: Files, drive: Handle, call: str) -> None:
    restore(files, drive, "a", streams((backup.DATA, b"x" * 500_000)))

    def read() -> None:
        with files.open_in(drive, "a") as handle, files.backup(handle, security=True) as read:
            backup.survey(backup.BackupReader(read.read, skip=read.skip))

    stub.fail(call)
    with pytest.raises(Exhausted):
        restore(files, drive, "b", streams((backup.DATA, b"y"))) if call == "BackupWrite" else read()
    assert stub.leaks() == {"handles": 1}


def test_windows_translates_an_unknown_ntstatus(stub: Stub, files: Files, drive: Handle) -> None:
    stub.fail("NtCreateFile")  # STATUS_INSUFFICIENT_RESOURCES
    with pytest.raises(Exhausted, match="1450"):
        files.open_in(drive, "a")


def test_a_failure_of_any_call_while_a_tree_is_removed_leaves_nothing_open(stub: Stub, files: Files) -> None:
    for after in range(100):
        root = files.open("C:\\")
        files.delete_tree(root, "d")
        files.make_directory("C:\\d")
        make(files, "C:\\d\\a")
        stub.fail(after=after)
        try:
            files.delete_tree(root, "d")
        except LamellaError:
            assert stub.failed
        stub.never_fail()
        root.close()
        assert stub.leaks() == {}
        if not stub.failed:
            assert after > 5
            return
    raise AssertionError("the removal never ends")


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=5000), cuts=st.lists(st.integers(1, 700), min_size=1, max_size=20))
def test_streams_may_be_cut_anywhere_on_their_way(files: Files, drive: Handle, data: bytes, cuts: list[int]) -> None:
    given_streams = streams((backup.SECURITY_DATA, b"s" * 40), (backup.DATA, data), (backup.EA_DATA, b"e"))
    files.delete_tree(drive, "a")
    with files.open_in(drive, "a", WRITE, create=True) as handle, files.restore(handle, security=True) as output:
        at = 0
        for cut in cuts:
            output.write(given_streams[at : at + cut])
            at += cut
        output.write(given_streams[at:])
    expected = given_streams if data else streams((backup.SECURITY_DATA, b"s" * 40), (backup.EA_DATA, b"e"))
    with files.open_in(drive, "a", DELETE | GENERIC_READ) as handle, files.backup(handle, security=True) as read:
        assert expected == b"".join(iter(lambda: read.read(cuts[0]), b""))
