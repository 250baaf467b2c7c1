# SPDX-License-Identifier: Apache-2.0
"""Windows layers applied and read by the calls of Windows: calls, order and results."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.native.compute_service import ComputeService
from tests.native.stub import SECURITY, Stub
from tests.unit.layers.windows.test_tar import EAS, SD, T, file_at, lines, link_at, windows, with_stream, write

from lamella.changes.model import Change, Entry, Kind, Link, Put, Stream, Whiteout, Windows
from lamella.errors import (
    Conflict,
    Denied,
    Exhausted,
    FormatError,
    InvalidInput,
    LamellaError,
    NotFound,
    SizeMismatch,
    Unsupported,
)
from lamella.formats.ntfs import reparse
from lamella.host.windows.files import GENERIC_READ, GENERIC_WRITE, Files
from lamella.host.windows.system import WindowsSystem
from lamella.layers.stack import LayerStack
from lamella.layers.windows.backend import open_source
from lamella.layers.windows.layout import WindowsLayer
from lamella.layers.windows.native.reader import NativeChanges
from lamella.operations.layers.apply import Applied, ApplyOptions, apply_blob
from lamella.paths import LayerPath
from lamella.testing.builders import sparse

BASE, ABOVE, TOP = Path("C:\\layers\\base"), Path("C:\\layers\\above"), Path("C:\\layers\\top")
BOOT = "UtilityVM/Files/EFI/Microsoft/Boot"
SERVICE = ("Layer", "Image")


def folder(path: str, **fields: object) -> Put:
    return Put(Entry(LayerPath(path), Kind.DIRECTORY, None, 0, "", windows(0x10, **fields)), None)


def link(path: str, target: str) -> Link:
    return Link(LayerPath(path), LayerPath(target))


def whiteout(path: str) -> Whiteout:
    return Whiteout(LayerPath(path))


CONFIG = [
    *(folder("Files/Windows"), folder("Files/Windows/System32"), folder("Files/Windows/System32/config")),
    *(file_at(f"Files/Windows/System32/config/{name}", b"hive") for name in ("DEFAULT", "SAM", "SECURITY", "SOFTWARE")),
    file_at("Files/Windows/System32/config/SYSTEM", b"system hive"),
]
BASE_CHANGES: list[Change] = [
    folder("Files"),
    link_at("Files/All Users", 0x2416, reparse.mount_point("C:\\ProgramData")),
    folder("Files/App", **dict.fromkeys(("creation_time", "access_time", "write_time", "change_time"), T - 10**15)),
    *with_stream("Files/App/a.txt", extended_attributes=dict(sorted(EAS.items()))),
    link("Files/App/b.txt", "Files/App/a.txt"),
    file_at("Files/App/big", bytes(range(256)) * 4000),
    file_at("Files/App/empty", b""),
    link_at("Files/App/ln", 0x420, reparse.symlink("..\\x\\y.txt")),
    replace(file_at("Files/App/readonly"), entry=replace(file_at("Files/App/readonly").entry, windows=windows(0x21))),
    *CONFIG,
    folder("Files/Windows/empty"),
    file_at("Files/é 𝄞", b"unicode"),
]
UTILITY: list[Change] = [
    *(
        folder("UtilityVM"),
        folder("UtilityVM/Files"),
        folder("UtilityVM/Files/EFI"),
        folder("UtilityVM/Files/EFI/Microsoft"),
    ),
    *(
        folder(BOOT),
        file_at(f"{BOOT}/BCD", b"boot store"),
        file_at(f"{BOOT}/BCD.LOG", b"log"),
        file_at(f"{BOOT}/x.efi", b"efi"),
    ),
    file_at("UtilityVM/Files/kernel", b"kernel"),
]
MASKED = {"creation_time": T + 2 * 10**9, "access_time": T + 2 * 10**9, "security_descriptor": None}
ABOVE_CHANGES: list[Change] = [
    folder("Files", **MASKED),
    whiteout("Files/é 𝄞"),
    folder("Files/App"),
    whiteout("Files/App/big"),
    file_at("Files/App/a.txt", b"changed"),
    *with_stream("Files/App/new"),
    link_at("Files/dln", 0x410, reparse.symlink("C:\\x")),
    folder("Files/fresh"),
    file_at("Files/fresh/inside", b"", extended_attributes=dict(sorted(EAS.items()))),
    folder("Hives", **MASKED),
    file_at("Hives/System_Delta", b"delta of the registry", **MASKED),
]


def tar_of(changes: Iterable[Change]) -> bytes:
    """The tar of a layer; what its links lead to in the layers below has the usual facts."""
    data, losses = write(changes, lookup=lambda path: Entry(path, Kind.FILE, None, 0, "", windows(0x20)))
    assert list(losses) == []
    return data


def applied(system: WindowsSystem, place: Path, changes: Iterable[Change], *parents: Path) -> Applied:
    return apply_blob(BytesIO(tar_of(changes)), place, ApplyOptions(kind="windows", parents=parents, system=system))


@contextmanager
def layer_source(place: Path, parents: Sequence[Path] = (), *, system: WindowsSystem) -> Iterator[NativeChanges]:
    stack = LayerStack.from_nearest(map(WindowsLayer, parents)) if parents else None
    with open_source(WindowsLayer(place), stack, system) as changes:
        assert isinstance(changes, NativeChanges)
        yield changes


def read_back(system: WindowsSystem, place: Path, *parents: Path) -> bytes:
    with layer_source(place, parents, system=system) as changes:
        data, losses = write(changes, lookup=changes.lookup)
        assert list(losses) == []
        return data


def service_calls(stub: Stub) -> list[str]:
    """The calls of the compute service since the log was cleared, with their layers."""
    return [line for line in stub.log if line.split(" ")[0].endswith(SERVICE)]


def names(system: WindowsSystem, path: str) -> list[str]:
    with system.files.open(path) as handle:
        return sorted(one.name for one in system.files.listing(handle))


def content(files: Files, path: str) -> bytes:
    with files.open(path) as handle:
        return b"".join(iter(lambda: files.read(handle), b""))


class TestBaseLayer:
    def test_an_applied_layer_is_read_back_byte_for_byte(self, stub: Stub, system: WindowsSystem) -> None:
        data = tar_of([*BASE_CHANGES, *UTILITY])
        done = apply_blob(BytesIO(data), BASE, ApplyOptions(kind="windows", system=system))
        # The service changes the boot store of a utility VM, and writes into its directory; a layer has them as it
        # left them.
        changed = [
            file_at(f"{BOOT}/BCD", b"CHANGEDore") if isinstance(one, Put) and one.entry.path == f"{BOOT}/BCD" else one
            for one in [*BASE_CHANGES, *UTILITY]
        ]
        written = re.compile(r"(- (?:UtilityVM|\S*/BCD) .*?) written=\S+ changed=\S+")
        expected = [written.sub(r"\1", line) for line in lines_of(tar_of(changed))]
        assert expected == [written.sub(r"\1", line) for line in lines_of(read_back(system, BASE))]
        assert done.facts.diff_id == f"sha256:{sha256(data)}"
        assert stub.leaks() == {}

    def test_without_a_utility_vm_the_bytes_of_the_tar_are_the_same(self, system: WindowsSystem) -> None:
        data = tar_of(BASE_CHANGES)
        apply_blob(BytesIO(data), BASE, ApplyOptions(kind="windows", system=system))
        assert data == read_back(system, BASE)

    def test_the_service_processes_the_layer_once_all_files_are_there(self, stub: Stub, system: WindowsSystem) -> None:
        applied(system, BASE, [*BASE_CHANGES, *UTILITY])
        assert service_calls(stub) == [
            "ProcessBaseImage path=C:\\layers\\base",
            "ProcessUtilityImage path=C:\\layers\\base\\UtilityVM",
        ]
        assert names(system, "C:\\layers") == ["base"]
        assert names(system, str(BASE)) == [
            *("Files", "Hives", "UtilityVM", "bcd.bak", "bcd.log.bak", "blank-base.vhdx", "layout")
        ]

    def test_copies_of_the_boot_store_are_from_before_the_service_changes_it(self, system: WindowsSystem) -> None:
        applied(system, BASE, [*BASE_CHANGES, *UTILITY])
        assert content(system.files, f"{BASE}\\bcd.bak") == b"boot store"
        assert content(system.files, f"{BASE}\\bcd.log.bak") == b"log"

    def test_each_file_gets_its_facts_then_its_streams_and_directories_their_times_last(
        self, stub: Stub, system: WindowsSystem
    ) -> None:
        stub.clear()
        applied(system, BASE, [folder("Files"), *with_stream("Files/a"), *CONFIG])
        at = next(at for at, line in enumerate(stub.log) if line.startswith("NtCreateFile name=Files\\a "))
        made = stub.log[at : at + 8]
        assert [line.split(" ")[0] for line in made] == [
            *("NtCreateFile", "SetFileInformationByHandle", "BackupWrite", "BackupWrite", "BackupWrite", "CloseHandle"),
            *("NtCreateFile", "SetFileInformationByHandle"),
        ]
        assert "access=0xc11c0000 flags=0x1000 allocation=no attributes=0 share=1 disposition=2" in made[0]
        assert made[1].endswith("attributes=0x20")
        assert made[2:5] == [made[2], made[3], "BackupWrite abort"]
        end = stub.calls.index("ProcessBaseImage")
        times = [line for line in stub.log[: end + 1] if line.startswith(("SetFileInfo", "NtCreate", "Process"))][-9:]
        assert [line.split(" ")[1] for line in times if not line.startswith("Set")] == [
            *(f"name=Files\\Windows{rest}" for rest in ("\\System32\\config", "\\System32", "")),
            *("name=Files", "path=C:\\layers\\base"),
        ]

    def test_sizes_are_counted_as_the_peer_does(self, system: WindowsSystem) -> None:
        done = applied(system, BASE, BASE_CHANGES)
        expected = sum(one.entry.size for one in BASE_CHANGES if isinstance(one, Put) and one.entry.kind is Kind.FILE)
        assert expected == done.size

    def test_privileges_are_held_while_it_is_written_security_in_this_thread_alone(
        self, stub: Stub, system: WindowsSystem
    ) -> None:
        applied(system, BASE, BASE_CHANGES)
        adjusted = [line.split(" ")[3:5] for line in stub.log if line.startswith("AdjustTokenPrivileges")]
        assert adjusted == [
            *(["luid=0:9", "attributes=2"], ["luid=0:10", "attributes=2"], ["luid=0:8", "attributes=2"]),
            *(["luid=0:10", "attributes=0"], ["luid=0:9", "attributes=0"]),  # that of the thread went with its token
        ]
        assert stub.calls.index("ImpersonateSelf") < stub.calls.index("NtCreateFile")
        assert stub.calls.index("RevertToSelf") > stub.calls.index("ProcessBaseImage")
        assert stub.leaks() == {}

    def test_an_account_without_the_privilege_is_denied_before_anything_is_made(
        self, stub: Stub, system: WindowsSystem
    ) -> None:
        stub.account(7 & ~SECURITY)
        with pytest.raises(Denied, match="SeSecurityPrivilege") as caught:
            applied(system, BASE, BASE_CHANGES)
        assert caught.value.hint == "run as an administrator, in an elevated session"
        assert names(system, "C:\\layers") == []
        assert stub.leaks() == {}

    def test_without_the_containers_feature_nothing_is_made(self, stub: Stub, system: WindowsSystem) -> None:
        stub.missing = {"vmcompute.dll"}
        with pytest.raises(Unsupported, match=r"vmcompute\.dll"):
            applied(system, BASE, BASE_CHANGES)
        assert names(system, "C:\\layers") == []
        assert stub.leaks() == {}

    def test_a_folder_that_is_not_empty_is_unchanged(self, system: WindowsSystem) -> None:
        applied(system, BASE, BASE_CHANGES)
        before = read_back(system, BASE)
        with pytest.raises(Conflict, match="not an empty folder"):
            applied(system, BASE, BASE_CHANGES)
        assert before == read_back(system, BASE)

    def test_an_empty_folder_is_accepted(self, system: WindowsSystem) -> None:
        system.files.make_directory(str(BASE))
        applied(system, BASE, BASE_CHANGES)
        assert tar_of(BASE_CHANGES) == read_back(system, BASE)

    def test_a_whiteout_in_a_base_layer_is_refused(self, system: WindowsSystem) -> None:
        with pytest.raises(InvalidInput, match="base layer, which has no layers below"):
            applied(system, BASE, [folder("Files"), whiteout("Files/x")])
        assert names(system, "C:\\layers") == []

    def test_the_recycle_bin_is_not_read(self, system: WindowsSystem) -> None:
        bin_ = [folder("Files/$RECYCLE.BIN"), file_at("Files/$RECYCLE.BIN/x")]
        applied(system, BASE, [folder("Files"), *bin_, *CONFIG])
        assert b"RECYCLE" not in read_back(system, BASE)

    def test_a_sparse_file_is_read_with_its_holes(self, system: WindowsSystem) -> None:
        applied(system, BASE, [folder("Files"), *CONFIG])
        holes = sparse(100_000, [(0, b"a" * 10), (50_000, b"b" * 20)])
        from lamella.layers.windows.transport import BackupStreams

        with (
            system.files.open(f"{BASE}\\Files\\holes", GENERIC_READ | GENERIC_WRITE, create=True) as handle,
            system.files.restore(handle, security=False) as output,
        ):
            streams = BackupStreams(output.write, Windows(0x20))
            streams.head(holes, holes.size)
            streams.flush()
        with layer_source(BASE, system=system) as changes:
            (found,) = [one for one in changes if isinstance(one, Put) and one.entry.path == "Files/holes"]
            assert found.content is not None
            assert found.content.size == 100_000
            assert found.content.extents == [(0, 10), (50_000, 20)]
            assert b"".join(map(bytes, found.content.chunks())) == b"a" * 10 + b"b" * 20

    def test_a_file_that_changes_while_it_is_read_is_a_conflict(self, system: WindowsSystem) -> None:
        applied(system, BASE, [folder("Files"), file_at("Files/a"), *CONFIG])
        with layer_source(BASE, system=system) as changes:
            found = next(one for one in changes if isinstance(one, Put) and one.entry.path == "Files/a")
            with system.files.open(f"{BASE}\\Files\\a", GENERIC_READ | GENERIC_WRITE) as handle:
                system.files.write(handle, b"longer than it was")
            assert found.content is not None
            with pytest.raises(Conflict, match="changed"):
                list(found.content.chunks())

    def test_reading_a_layer_with_parents_as_a_base_layer_is_refused(self, system: WindowsSystem) -> None:
        applied(system, BASE, BASE_CHANGES)
        applied(system, ABOVE, ABOVE_CHANGES, BASE)
        with pytest.raises(InvalidInput, match="in a parent of the layer"):
            read_back(system, ABOVE)

    def test_a_folder_that_is_not_a_layer_is_refused(self, stub: Stub, system: WindowsSystem) -> None:
        with pytest.raises(NotFound, match="does not exist"), layer_source(BASE, system=system):
            pass
        system.files.make_directory(str(BASE))
        with pytest.raises(NotFound, match="has no Files"):
            read_back(system, BASE)
        assert stub.leaks() == {}


class TestLayerWithParents:
    @pytest.fixture
    def system(self, windows: WindowsSystem, service: ComputeService) -> WindowsSystem:
        applied(windows, BASE, [*BASE_CHANGES, *UTILITY])
        return windows

    def test_an_applied_layer_is_exported_byte_for_byte(self, stub: Stub, system: WindowsSystem) -> None:
        data = tar_of(ABOVE_CHANGES)
        apply_blob(BytesIO(data), ABOVE, ApplyOptions(kind="windows", parents=[BASE], system=system))
        stub.raise_errors()
        assert lines_of(data) == lines_of(read_back(system, ABOVE, BASE))
        assert data == read_back(system, ABOVE, BASE)
        assert names(system, "C:\\layers") == ["above", "base"]
        assert stub.leaks() == {}

    def test_the_service_imports_with_the_parents_nearest_first(self, stub: Stub, system: WindowsSystem) -> None:
        applied(system, ABOVE, ABOVE_CHANGES, BASE)
        stub.clear()
        applied(system, TOP, [folder("Files"), file_at("Files/top"), folder("Hives")], ABOVE, BASE)
        (call,) = service_calls(stub)
        assert call.startswith("ImportLayer flavour=1 home='' id=C:\\layers\\top other=C:\\layers\\.top.transport-")
        assert [one.partition(":0:")[2] for one in call.rpartition("=")[2].split("|")] == [str(ABOVE), str(BASE)]

    def test_files_in_transport_begin_with_their_attributes_and_have_their_times(
        self, stub: Stub, system: WindowsSystem
    ) -> None:
        stub.clear()
        applied(system, ABOVE, ABOVE_CHANGES, BASE)
        made = [line for line in stub.log if line.startswith("NtCreateFile") and "disposition=2" in line]
        assert [line.split(" ")[1].partition("=")[2] for line in made if "wcidirs" in line] == [
            *("Files.$wcidirs$", "Files\\App.$wcidirs$", "Files\\dln.$wcidirs$", "Files\\fresh.$wcidirs$"),
            "Hives.$wcidirs$",
        ]
        at = next(at for at, line in enumerate(stub.log) if line.startswith("NtCreateFile name=Files\\fresh.$"))
        assert stub.log[at + 1].endswith("attributes=0x0")

    def test_a_reparse_point_directory_is_created_right_before_the_import(
        self, stub: Stub, system: WindowsSystem
    ) -> None:
        stub.clear()
        applied(system, ABOVE, ABOVE_CHANGES, BASE)
        made = [
            at
            for at, line in enumerate(stub.log)
            if line.startswith("NtCreateFile name=Files\\dln ") and "disposition=2" in line
        ]
        imported = next(at for at, line in enumerate(stub.log) if line.startswith("ImportLayer"))
        between = [line for line in stub.log[made[0] : imported] if line.startswith("NtCreateFile")]
        assert len(between) == 1

    def test_tombstones_are_removed_from_the_folder_after_the_import(self, stub: Stub, system: WindowsSystem) -> None:
        applied(system, ABOVE, ABOVE_CHANGES, BASE)
        assert "big" not in names(system, f"{ABOVE}\\Files\\App")
        assert names(system, f"{ABOVE}\\Files") == ["All Users", "App", "Windows", "dln", "fresh"]

    def test_a_whiteout_keeps_files_that_the_layer_itself_puts(self, system: WindowsSystem) -> None:
        changes = [*ABOVE_CHANGES[:4], file_at("Files/App/big", b"again"), *ABOVE_CHANGES[-2:]]
        applied(system, ABOVE, changes, BASE)
        assert content(system.files, f"{ABOVE}\\Files\\App\\big") == b"again"

    def test_links_are_made_after_the_import_into_this_layer_and_those_below(self, system: WindowsSystem) -> None:
        changes: list[Change] = [
            *(folder("Files"), file_at("Files/mine"), folder("Hives")),
            *(link("Files/of mine", "Files/mine"), link("Files/of below", "Files/App/a.txt")),
            link("Files/All Users", "Files/mine"),
        ]
        applied(system, ABOVE, changes, BASE)
        files = system.files
        identities = {}
        for path in (f"{ABOVE}\\Files\\mine", f"{ABOVE}\\Files\\of mine", f"{ABOVE}\\Files\\All Users"):
            with files.open(path) as handle:
                identities[path] = files.identity(handle)
        assert len(set(identities.values())) == 1
        with files.open(f"{ABOVE}\\Files\\of below") as one, files.open(f"{BASE}\\Files\\App\\a.txt") as other:
            assert files.identity(one) == files.identity(other)

    def test_a_hard_link_to_a_missing_file_is_refused(self, stub: Stub, system: WindowsSystem) -> None:
        with pytest.raises(NotFound, match="nowhere"):
            applied(system, ABOVE, [folder("Files"), link("Files/x", "Files/nowhere")], BASE)
        assert names(system, "C:\\layers") == ["base"]
        assert stub.leaks() == {}

    def test_directory_times_are_set_last(self, system: WindowsSystem) -> None:
        applied(system, ABOVE, ABOVE_CHANGES, BASE)
        with layer_source(ABOVE, [BASE], system=system) as changes:
            found = {one.entry.path: one.entry.windows for one in changes if isinstance(one, Put)}
        facet = found[LayerPath("Files/App")]
        assert facet is not None
        assert (facet.creation_time, facet.write_time) == (T, T + 2 * 10**9)

    def test_a_utility_vm_is_cloned_by_links_except_for_the_boot_store(self, stub: Stub, system: WindowsSystem) -> None:
        changes: list[Change] = [
            *(folder("Files"), folder("Hives"), folder("UtilityVM"), folder("UtilityVM/Files")),
            *(whiteout("UtilityVM/Files/kernel"), file_at("UtilityVM/Files/new", b"new")),
        ]
        stub.clear()
        applied(system, ABOVE, changes, BASE)
        stub.raise_errors()
        assert [line.split(" ")[0] for line in service_calls(stub)] == ["ImportLayer", "ProcessUtilityImage"]
        boot = BOOT.replace("/", "\\")
        files = system.files
        with files.open(f"{ABOVE}\\{boot}\\x.efi") as one, files.open(f"{BASE}\\{boot}\\x.efi") as other:
            assert files.identity(one) == files.identity(other)
        with files.open(f"{ABOVE}\\{boot}\\BCD") as one, files.open(f"{BASE}\\{boot}\\BCD") as other:
            assert files.identity(one) != files.identity(other)
            with files.backup(one, security=True) as read:
                assert SD in b"".join(iter(read.read, b""))
        assert names(system, f"{ABOVE}\\UtilityVM\\Files") == ["EFI", "new"]
        assert names(system, f"{BASE}\\UtilityVM\\Files") == ["EFI", "kernel"]

    def test_a_missing_parent_is_reported_before_anything_is_created(self, stub: Stub, system: WindowsSystem) -> None:
        with pytest.raises(NotFound, match=r"parent layer 'C:\\\\layers\\\\top'"):
            applied(system, ABOVE, ABOVE_CHANGES, TOP)
        assert names(system, "C:\\layers") == ["base"]
        assert stub.leaks() == {}

    def test_an_export_calls_the_service_in_order_and_leaves_nothing(self, stub: Stub, system: WindowsSystem) -> None:
        applied(system, ABOVE, ABOVE_CHANGES, BASE)
        stub.clear()
        read_back(system, ABOVE, BASE)
        assert [line.split(" ")[0] for line in service_calls(stub)] == [
            *("ActivateLayer", "PrepareLayer", "UnprepareLayer", "ExportLayer", "DeactivateLayer")
        ]
        adjusted = [line.split(" ")[3:5] for line in stub.log if line.startswith("AdjustTokenPrivileges")]
        assert adjusted == [["luid=0:9", "attributes=2"], ["luid=0:9", "attributes=0"]]
        assert names(system, "C:\\layers") == ["above", "base"]

    def test_content_of_an_export_can_be_read_again_until_the_block_ends(self, system: WindowsSystem) -> None:
        applied(system, ABOVE, ABOVE_CHANGES, BASE)
        with layer_source(ABOVE, [BASE], system=system) as changes:
            kept = [one for one in changes if isinstance(one, (Put, Stream))]
            for one in kept:
                if one.content is not None:
                    first = b"".join(map(bytes, one.content.chunks()))
                    assert first == b"".join(map(bytes, one.content.chunks()))
                    assert len(first) == one.content.size

    @pytest.mark.parametrize("call", ["ActivateLayer", "PrepareLayer", "UnprepareLayer", "ExportLayer"])
    def test_an_export_that_fails_deactivates_the_layer_and_removes_the_folder(
        self, stub: Stub, system: WindowsSystem, call: str
    ) -> None:
        applied(system, ABOVE, ABOVE_CHANGES, BASE)
        stub.clear()
        stub.fail(call)
        with pytest.raises(Exhausted, match=call), layer_source(ABOVE, [BASE], system=system):
            pass
        assert ("DeactivateLayer" in stub.calls) == (call != "ActivateLayer")
        assert names(system, "C:\\layers") == ["above", "base"]
        assert stub.leaks() == {}

    def test_an_invalid_name_in_an_export_is_refused(self, stub: Stub, system: WindowsSystem) -> None:
        applied(system, ABOVE, ABOVE_CHANGES, BASE)
        with system.files.open(f"{ABOVE}\\Files") as root:
            system.files.open_in(root, "bad\x01name", GENERIC_READ | GENERIC_WRITE, create=True).close()
        with pytest.raises(InvalidInput, match="bad"):
            read_back(system, ABOVE, BASE)
        assert stub.leaks() == {}


def lines_of(data: bytes) -> list[str]:
    from tests.unit.formats.tar.archives import buffers

    from lamella.layers.windows.tar_source import windows_tar_changes

    return lines(windows_tar_changes(buffers(data, 512)))


def sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


SMALL_BASE: Sequence[Change] = [
    folder("Files"),
    *with_stream("Files/a"),
    link("Files/b", "Files/a"),
    *CONFIG,
    *UTILITY[:2],
]
SMALL_ABOVE: Sequence[Change] = [
    *(folder("Files"), whiteout("Files/b"), file_at("Files/new"), link("Files/ln", "Files/a")),
    *(folder("Hives"), file_at("Hives/System_Delta"), folder("UtilityVM"), folder("UtilityVM/Files")),
]


class TestFailures:
    """Each call fails once; the layer is removed, and no handle or privilege leaks."""

    def sweep(
        self, stub: Stub, system: WindowsSystem, work: Callable[[], object], left: list[str], work_leaves: str = ""
    ) -> set[str]:
        failed: set[str] = set()
        for after in range(3000):
            stub.fail(after=after)
            try:
                work()
            except LamellaError:
                assert stub.failed, "it failed by itself"
            stub.never_fail()
            if not stub.failed:
                return failed
            failed.add(stub.failed)
            leaks = stub.leaks()
            if leaks.pop("privileges", 0):  # giving them back is what failed, once all had been done
                assert stub.failed in ("OpenProcessToken", "AdjustTokenPrivileges")
                stub.account(7)
                with system.files.open("C:\\layers") as root:
                    for name in set(names(system, "C:\\layers")) - set(left):
                        system.files.delete_tree(root, name)
            there = names(system, "C:\\layers")
            if work_leaves and there[:1] != left[:1]:  # its removal is what failed
                with system.files.open("C:\\layers") as root:
                    assert there[0].startswith(work_leaves)
                    system.files.delete_tree(root, there.pop(0))
            assert left == there, f"after {stub.failed}, call {after}"
            assert leaks == {}, f"after {stub.failed}, call {after}"
            stub.clear()
        raise AssertionError("it never ends")

    def test_of_any_call_while_a_base_layer_is_applied(self, stub: Stub, system: WindowsSystem) -> None:
        data, options = tar_of(SMALL_BASE), ApplyOptions(kind="windows", system=system)
        failed = self.sweep(stub, system, lambda: apply_blob(BytesIO(data), BASE, options), [])
        assert failed >= {
            *("AdjustTokenPrivileges", "ImpersonateSelf", "CreateDirectoryW", "CreateFileW", "NtCreateFile"),
            *("SetFileInformationByHandle", "BackupWrite", "NtSetInformationFile", "ProcessBaseImage"),
            "ProcessUtilityImage",
        }

    def test_of_any_call_while_a_layer_with_parents_is_applied(self, stub: Stub, system: WindowsSystem) -> None:
        applied(system, BASE, SMALL_BASE)
        data = tar_of(SMALL_ABOVE)
        work = lambda: apply_blob(BytesIO(data), ABOVE, ApplyOptions(kind="windows", parents=[BASE], system=system))  # noqa: E731
        failed = self.sweep(stub, system, work, ["base"])
        assert failed >= {"WriteFile", "NameToGuid", "ImportLayer", "ProcessUtilityImage", "BackupRead"}

    def test_of_any_call_while_a_layer_is_exported(self, stub: Stub, system: WindowsSystem) -> None:
        applied(system, BASE, SMALL_BASE)
        applied(system, ABOVE, SMALL_ABOVE, BASE)
        failed = self.sweep(stub, system, lambda: read_back(system, ABOVE, BASE), ["above", "base"], ".above.export")
        assert failed >= {"ReadFile", "SetFilePointerEx", "ActivateLayer", "ExportLayer", "DeactivateLayer"}

    def test_of_any_call_while_a_base_layer_is_read(self, stub: Stub, system: WindowsSystem) -> None:
        applied(system, BASE, SMALL_BASE)
        failed = self.sweep(stub, system, lambda: read_back(system, BASE), ["base"])
        assert failed >= {"GetFileInformationByHandleEx", "BackupRead", "BackupSeek", "ReadFile"}

    @pytest.mark.parametrize("kept", range(512, 6000, 700))
    def test_of_the_tar_which_ends_early(self, stub: Stub, system: WindowsSystem, kept: int) -> None:
        data = tar_of(BASE_CHANGES)[:kept]
        with pytest.raises((FormatError, SizeMismatch)):
            apply_blob(BytesIO(data), BASE, ApplyOptions(kind="windows", system=system))
        assert "ProcessBaseImage" not in stub.calls
        assert names(system, "C:\\layers") == []
        assert stub.leaks() == {}

    def test_a_layer_that_the_service_cannot_destroy_is_deleted(self, stub: Stub, system: WindowsSystem) -> None:
        stub.fail("DestroyLayer")
        with pytest.raises(InvalidInput):
            applied(system, BASE, [folder("Files"), file_at("Files/a"), whiteout("Files/b")])
        assert stub.failed == "DestroyLayer"
        assert names(system, "C:\\layers") == []
