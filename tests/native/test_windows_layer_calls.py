# SPDX-License-Identifier: Apache-2.0
"""Calls for layers, hives, disks and security descriptors: arguments, and no leaked resources."""

from __future__ import annotations

import ctypes
import threading
import uuid
from collections.abc import Callable

import pytest
from tests.native.stub import Stub

from lamella.errors import AlreadyExists, Denied, Exhausted, InvalidInput, LamellaError, Unsupported
from lamella.host.windows import abi, compute_service, files, virtdisk
from lamella.host.windows import security as privileges
from lamella.host.windows.abi import SystemLoader
from lamella.host.windows.security import descriptor_from_sddl
from lamella.host.windows.system import WindowsSystem, this_system

LAYER, FOLDER = "C:\\layers\\3", "C:\\stage"
PARENTS = ["C:\\layers\\ab", "C:\\layers\\z"]
GUID = uuid.UUID(bytes_le=b"ab" + bytes(14))


@pytest.mark.parametrize(
    ("structure", "size", "offsets"),
    [
        (abi.Guid, 16, {"data2": 4, "data4": 8}),
        (privileges.Luid, 8, {}),
        (privileges.TokenPrivileges, 16, {"luid": 4, "attributes": 12}),
        (files.UnicodeString, 16, {"room": 2, "buffer": 8}),
        (files.ObjectAttributes, 48, {"root": 8, "name": 16, "attributes": 24, "security": 32}),
        (files.IoStatus, 16, {"told": 8}),
        (files.BasicInformation, 40, {"write": 16, "attributes": 32}),
        (files.StandardInformation, 24, {"size": 8, "links": 16, "deleted": 20, "directory": 21}),
        (files.IdInformation, 24, {"id": 8}),
        (compute_service.DriverInfo, 16, {"home": 8}),
        (compute_service.LayerDescriptor, 32, {"flags": 16, "path": 24}),
        (virtdisk.StorageType, 20, {"vendor": 4}),
        (virtdisk.OpenParameters, 28, {"read_only": 8, "resiliency": 12}),
        (virtdisk.CreateParameters, 128, {"id": 8, "size": 24, "parent": 48, "parent_type": 68, "resiliency": 108}),
        (virtdisk.AttachParameters, 24, {"offset": 8}),
    ],
)
def test_structures_have_the_sizes_and_offsets_of_windows(
    structure: type[ctypes.Structure], size: int, offsets: dict[str, int]
) -> None:
    assert size == ctypes.sizeof(structure)
    assert offsets == {name: getattr(structure, name).offset for name in offsets}


@pytest.mark.parametrize("text", ["", "ascii", "ünï", "𝄞 outside the first plane", "lone \udc80 surrogate"])
def test_text_goes_to_utf_16_and_back(text: str) -> None:
    units = abi.wide(text)
    assert bytes(units) == text.encode("utf-16-le", "surrogatepass") + b"\0\0"
    assert text == abi.text_of(units)
    assert text == abi.text_at(ctypes.addressof(units))


def test_a_nul_inside_a_text_is_refused() -> None:
    with pytest.raises(InvalidInput, match="NUL"):
        abi.wide("a\0b")


def test_layer_calls_name_the_layer_by_its_path_and_parents_nearest_first(stub: Stub, windows: WindowsSystem) -> None:
    windows.layers.import_layer(LAYER, FOLDER, PARENTS)
    about = f"flavour=1 home='' id={LAYER}"
    assert stub.log == [
        "NameToGuid name=ab",
        "NameToGuid name=z",
        f"ImportLayer {about} other={FOLDER} parents=some:2=61620000:0:{PARENTS[0]}|7a000000:0:{PARENTS[1]}",
    ]
    stub.clear()
    windows.layers.export_layer(LAYER, FOLDER, [])
    assert stub.log == [f"ExportLayer {about} other={FOLDER} parents=null:0="]


def test_every_simple_call_of_vmcompute_passes_what_it_is_given(stub: Stub, windows: WindowsSystem) -> None:
    layers = windows.layers
    layers.create(LAYER, PARENTS[0])
    layers.create_scratch(LAYER, PARENTS[1:])
    layers.expand_scratch(LAYER, 5 << 33)
    layers.activate(LAYER)
    layers.prepare(LAYER, PARENTS[1:])
    layers.unprepare(LAYER)
    layers.deactivate(LAYER)
    layers.destroy(LAYER)
    layers.process_base(LAYER)
    layers.process_utility(LAYER + "\\UtilityVM")
    layers.grant_vm_access("vm", LAYER)
    about = f"flavour=1 home='' id={LAYER} other="
    none, one = "parents=null:0=", f"parents=some:1=7a000000:0:{PARENTS[1]}"
    assert [line for line in stub.log if not line.startswith("NameToGuid")] == [
        f"CreateLayer {about}{PARENTS[0]} {none}",
        f"CreateSandboxLayer {about} {one}",
        f"ExpandSandboxSize {about} {none} size={5 << 33}",
        f"ActivateLayer {about} {none}",
        f"PrepareLayer {about} {one}",
        f"UnprepareLayer {about} {none}",
        f"DeactivateLayer {about} {none}",
        f"DestroyLayer {about} {none}",
        f"ProcessBaseImage path={LAYER}",
        f"ProcessUtilityImage path={LAYER}\\UtilityVM",
        f"GrantVmAccess vm=vm path={LAYER}",
    ]
    assert layers.exists(LAYER)
    assert layers.guid_of("ab") == GUID


def test_a_mount_path_is_queried_twice_first_for_its_length(stub: Stub, windows: WindowsSystem) -> None:
    assert windows.layers.mount_path(LAYER) == "\\\\?\\Volume{1}"
    assert [line.rpartition("=")[2] for line in stub.log] == [" no buffer", " buffer"]


def test_two_layers_are_never_prepared_at_once(stub: Stub, windows: WindowsSystem) -> None:
    inside, most = 0, 0
    guard = threading.Lock()

    def work(call: str, layer: str, other: str) -> None:
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.02)
        with guard:
            inside -= 1

    stub.on_layer(work)
    prepare: Callable[[], None] = lambda: windows.layers.prepare(LAYER, PARENTS)  # noqa: E731
    with stub.in_thread(prepare), stub.in_thread(prepare), stub.in_thread(prepare):
        pass
    assert most == 1


def test_without_the_containers_feature_the_error_says_so(stub: Stub, windows: WindowsSystem) -> None:
    stub.missing = {"vmcompute.dll"}
    assert not windows.layers.available()
    with pytest.raises(Unsupported, match=r"has no vmcompute\.dll"):
        windows.layers.activate(LAYER)


def test_a_function_missing_from_this_windows_is_unsupported(stub: Stub, windows: WindowsSystem) -> None:
    stub.missing = {"ORMergeHives"}
    with pytest.raises(Unsupported, match="has no ORMergeHives"):
        windows.registry.merge([])
    stub.missing = set()
    with pytest.raises(Unsupported, match="has no Nothing"):
        stub.find("kernel32.dll", "Nothing", files._KERNEL32["ReadFile"])


def test_computestorage_gets_the_layers_as_json(stub: Stub, windows: WindowsSystem) -> None:
    parents = [(GUID, PARENTS[0])]
    told = (
        '{"SchemaVersion":{"Major":2,"Minor":1},"Layers":[{"Id":"00006261-0000-0000-0000-000000000000",'
        '"Path":"C:\\\\layers\\\\ab"}]}'
    )
    storage = windows.storage
    storage.import_layer(LAYER, FOLDER, parents)
    storage.export_layer(LAYER, FOLDER, parents, writable=True)
    storage.set_up_base(LAYER, disk=7, vm=True)
    storage.set_up_base_volume(LAYER, "\\\\?\\Volume{2}")
    storage.initialize_writable(LAYER, parents)
    storage.attach_filter(LAYER, parents)
    storage.detach_filter(LAYER)
    storage.format_disk(9)
    storage.destroy(LAYER)
    assert stub.log == [
        f"HcsImportLayer layer={LAYER} source={FOLDER} data={told}",
        f'HcsExportLayer layer={LAYER} folder={FOLDER} data={told} options={{"IsWritableLayer":true}}',
        f'HcsSetupBaseOSLayer layer={LAYER} disk=7 options={{"Type":"Vm"}}',
        f'HcsSetupBaseOSVolume layer={LAYER} volume=\\\\?\\Volume{{2}} options={{"Type":"Container"}}',
        f"HcsInitializeWritableLayer path={LAYER} data={told} options=(null)",
        f"HcsAttachLayerStorageFilter path={LAYER} data={told}",
        f"HcsDetachLayerStorageFilter path={LAYER}",
        "HcsFormatWritableLayerVhd disk=9",
        f"HcsDestroyLayer layer={LAYER}",
    ]


def test_a_path_that_windows_allocated_is_freed(stub: Stub, windows: WindowsSystem) -> None:
    assert windows.storage.disk_mount_path(9) == "\\\\?\\Volume{2}"
    assert stub.calls == ["HcsGetLayerVhdMountPath", "CoTaskMemFree"]
    assert stub.leaks() == {}


def test_hives_are_merged_and_saved_for_windows_10(stub: Stub, windows: WindowsSystem) -> None:
    registry = windows.registry
    with registry.open("base") as base, registry.open("delta") as delta, registry.merge([base, delta]) as merged:
        merged.save("result")
    assert stub.log == [
        "OROpenHive path=base",
        "OROpenHive path=delta",
        "ORMergeHives count=2",
        "ORSaveHive path=result version=10.0",
        *["ORCloseHive"] * 3,
    ]
    assert stub.leaks() == {}


def test_keys_and_values_of_a_hive(stub: Stub, windows: WindowsSystem) -> None:
    with windows.registry.create() as hive:
        with hive.create("Software\\é") as key:
            key.set("name", 3, b"\xff\0")
        with hive.open("Software") as key:
            assert key.get("name", "sub") == (3, b"\xab" * 300)
        hive.delete("Software")
    assert stub.log == [
        "ORCreateHive",
        "ORCreateKey name=Software\\é class=(null) options=0 descriptor=no",
        "ORSetValue name=name type=3 size=2 first=255",
        "ORCloseKey",
        "OROpenKey name=Software",
        "ORGetValue subkey=sub name=name room=256",
        "ORGetValue subkey=sub name=name room=300",
        "ORCloseKey",
        "ORDeleteKey name=Software",
        "ORCloseHive",
    ]
    assert stub.leaks() == {}


def test_a_hive_is_never_saved_over_another_file(stub: Stub, windows: WindowsSystem) -> None:
    with windows.registry.create() as hive:
        hive.save("\\\\?\\C:\\hive")
        with pytest.raises(AlreadyExists):
            hive.save("\\\\?\\C:\\hive")


def test_a_disk_is_made_opened_attached_and_found(stub: Stub, windows: WindowsSystem) -> None:
    with windows.disks.create("C:\\base.vhdx", 20 << 30):
        pass
    with windows.disks.create("C:\\child.vhdx", 0, parent="C:\\base.vhdx"):
        pass
    with windows.disks.open("C:\\child.vhdx", read_only=True) as disk:
        disk.attach(read_only=True)
        assert disk.physical_path() == "\\\\.\\PhysicalDrive7"
        disk.detach()
    rest = "overlapped=no"
    assert stub.log == [
        (
            "CreateVirtualDisk device=3 path=C:\\base.vhdx access=0x0 descriptor=no flags=0 provider=0 version=2 "
            f"size={20 << 30} block=1048576 sector=0 parent=(null) {rest}"
        ),
        "CloseHandle disk",
        (
            "CreateVirtualDisk device=3 path=C:\\child.vhdx access=0x0 descriptor=no flags=0 provider=0 version=2 "
            f"size=0 block=0 sector=0 parent=C:\\base.vhdx {rest}"
        ),
        "CloseHandle disk",
        "OpenVirtualDisk device=3 vendor=ec5b path=C:\\child.vhdx access=0x0 flags=0 version=2 read_only=1",
        f"AttachVirtualDisk descriptor=no flags=3 provider=0 version=1 {rest}",
        "GetVirtualDiskPhysicalPath room=64",
        "DetachVirtualDisk flags=0 provider=0",
        "CloseHandle disk",
    ]
    assert stub.leaks() == {}


def test_windows_parses_sddl_and_the_result_is_freed(stub: Stub) -> None:
    assert descriptor_from_sddl(stub, "O:BA") == b"\1\0\0\x80" + bytes(16)
    assert stub.log[-1] == "LocalFree"
    assert stub.leaks() == {}
    with pytest.raises(InvalidInput, match="access control list"):
        descriptor_from_sddl(stub, "nonsense")


def everything(windows: WindowsSystem) -> None:
    """Each call of layers, hives and disks once."""
    windows.layers.import_layer(LAYER, FOLDER, PARENTS)
    windows.layers.mount_path(LAYER)
    windows.storage.disk_mount_path(9)
    windows.storage.initialize_writable(LAYER, [])
    with windows.registry.open("base") as base, windows.registry.merge([base]) as merged:
        with merged.create("key") as key:
            key.get("value")
        merged.save("result")
    with windows.disks.open("disk") as disk:
        disk.attach()
        disk.physical_path()
    descriptor_from_sddl(windows.loader, "O:BA")


def test_a_failure_of_any_call_is_raised_and_leaves_nothing(stub: Stub, windows: WindowsSystem) -> None:
    failed = []
    for after in range(100):
        stub.fail(after=after, code=5)
        try:
            everything(windows)
        except Denied:
            failed.append(stub.failed)
        except LamellaError as error:  # pragma: no cover
            raise AssertionError(f"{stub.failed}: {error!r}") from error
        assert stub.leaks() == {}
        if not stub.failed:
            break
    assert failed == [
        *("NameToGuid", "NameToGuid", "ImportLayer", "GetLayerMountPath", "GetLayerMountPath"),
        *("HcsGetLayerVhdMountPath", "HcsInitializeWritableLayer", "OROpenHive", "ORMergeHives", "ORCreateKey"),
        *("ORGetValue", "ORGetValue", "ORSaveHive", "OpenVirtualDisk", "AttachVirtualDisk"),
        *("GetVirtualDiskPhysicalPath", "ConvertStringSecurityDescriptorToSecurityDescriptorW"),
    ]


def test_an_hresult_of_the_service_itself_is_named(stub: Stub, windows: WindowsSystem) -> None:
    def work(call: str, layer: str, other: str) -> None:
        raise ValueError

    stub.on_layer(work)
    with pytest.raises(LamellaError, match="0x8000FFFF"):
        windows.layers.activate(LAYER)
    stub.fail("ActivateLayer", code=1450)
    with pytest.raises(Exhausted, match="ActivateLayer"):
        windows.layers.activate(LAYER)


def test_on_another_host_the_system_is_not_there() -> None:
    assert this_system() is None
    with pytest.raises(Unsupported, match="this host is not Windows"):
        SystemLoader()
