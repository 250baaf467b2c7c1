# SPDX-License-Identifier: Apache-2.0
"""The calls of Windows that Wine implements."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import lamella
from lamella.errors import AlreadyExists, Conflict, Denied, InvalidInput, NotFound, Unsupported
from lamella.host.windows.abi import BOOL, HANDLE, PTR, U32, SystemLoader, signature
from lamella.host.windows.files import DIRECTORY, GENERIC_READ, GENERIC_WRITE, Basic, Files, Handle
from lamella.host.windows.security import BACKUP, RESTORE, SECURITY
from lamella.host.windows.system import WindowsSystem, this_system

WRITE = GENERIC_READ | GENERIC_WRITE

POSIX_ONLY = (
    *("lamella.service", "lamella.store", "lamella.client", "lamella.protocol", "lamella.testing"),
    "lamella.operations.store",
)
"""Packages that need POSIX sockets, locks and directory descriptors."""


@pytest.fixture
def windows() -> WindowsSystem:
    system = this_system()
    assert system is not None
    return system


@pytest.fixture
def files(windows: WindowsSystem) -> Files:
    return windows.files


@pytest.fixture
def root(files: Files, tmp_path: Path) -> Iterator[Handle]:
    with files.open(str(tmp_path)) as handle:
        yield handle


def test_this_is_windows() -> None:
    assert (sys.platform, os.sep) == ("win32", "\\")


def test_every_part_for_any_host_is_imported() -> None:
    wrong = {}
    for module in pkgutil.walk_packages(lamella.__path__, "lamella."):
        if module.name.startswith(POSIX_ONLY) or module.name == "lamella.__main__":
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name != "fcntl":  # writing images locks directories
                wrong[module.name] = repr(error)
        except Exception as error:  # noqa: BLE001
            wrong[module.name] = repr(error)
    assert wrong == {}


@pytest.mark.parametrize(
    "name",
    [
        *(
            "lamella.cli.main",
            "lamella.cli.layers",
            "lamella.cli.windows.hive",
            "lamella.cli.windows.cim",
        ),
        *(
            "lamella.service.differs.windows",
            "lamella.operations.layers.apply",
            "lamella.operations.layers.diff",
            "lamella.operations.windows.cim",
        ),
        *("lamella.layers.windows.sink", "lamella.layers.windows.folder.reader", "lamella.layers.directory.sink"),
        *("lamella.images.layout", "lamella.registry.client", "lamella.formats.regf"),
    ],
)
def test_modules_for_windows_layers_are_importable(name: str) -> None:
    importlib.import_module(name)


def test_the_command_line_starts() -> None:
    done = subprocess.run([sys.executable, "-m", "lamella", "--version"], capture_output=True, text=True, check=False)
    assert (0, f"lamella {lamella.__version__}") == (done.returncode, done.stdout.strip())


def test_a_place_that_needs_directory_descriptors_is_unsupported(tmp_path: Path) -> None:
    from lamella.layers.directory.dirfd_cache import open_root

    with pytest.raises(Unsupported, match="directory descriptor"):
        open_root(tmp_path)


# The loader and last errors


def test_functions_are_found_in_the_system_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.dll").write_bytes(b"MZ")
    monkeypatch.chdir(tmp_path)
    loader = SystemLoader()
    assert loader.has("kernel32.dll")
    assert not loader.has("planted.dll")
    assert not loader.has("no-such-library.dll")


def test_missing_functions_of_windows_are_unsupported() -> None:
    loader = SystemLoader()
    with pytest.raises(Unsupported, match="has no no-such-library"):
        loader.find("no-such-library.dll", "Any", signature(BOOL))
    with pytest.raises(Unsupported, match="has no NoSuchFunction"):
        loader.find("kernel32.dll", "NoSuchFunction", signature(BOOL))


def test_without_the_containers_feature_the_error_says_what_to_turn_on(windows: WindowsSystem) -> None:
    if windows.layers.available():
        pytest.fail("this Windows has the Containers feature; take tools/check_windows.py there")
    with pytest.raises(Unsupported) as caught:
        windows.layers.process_base("C:\\nothing")
    assert caught.value.hint == "turn on the Containers feature of Windows"


def test_layers_of_the_kind_windows_are_made_and_exported_by_the_systems_calls(
    windows: WindowsSystem, tmp_path: Path
) -> None:
    """Wine has no compute service, so that they are refused here, where another host would make a folder."""
    from lamella.layers import kinds
    from lamella.operations.layers.apply import ApplyOptions, apply_blob

    (tmp_path / "layer.tar").write_bytes(bytes(1024))
    (tmp_path / "base").mkdir()
    base = tmp_path / "base"
    works = (
        lambda: kinds.sink("windows", tmp_path / "layer"),
        lambda: apply_blob(tmp_path / "layer.tar", tmp_path / "layer", ApplyOptions(kind="windows")),
        lambda: kinds.source("windows", base, kinds.SourceOptions(parents=[base])).__enter__(),
    )
    for work in works:
        with pytest.raises(Unsupported) as caught:
            work()
        assert caught.value.hint == "turn on the Containers feature of Windows"
    assert sorted(os.listdir(tmp_path)) == ["base", "layer.tar"]
    assert os.listdir(tmp_path / "base") == []


def test_the_last_error_is_that_of_the_last_call() -> None:
    loader = SystemLoader()
    set_error = loader.find("kernel32.dll", "SetLastError", signature(None, U32))
    set_error(1300)
    assert loader.last_error() == 1300
    set_error(0)
    assert loader.last_error() == 0


def test_python_does_not_disturb_the_last_error(tmp_path: Path) -> None:
    loader = SystemLoader()
    close = loader.find("kernel32.dll", "CloseHandle", signature(BOOL, HANDLE))
    loader.find("kernel32.dll", "SetLastError", signature(None, U32))(0)
    assert not close(0x7FFF_FFF0)
    (tmp_path / "file").write_text("calls that set it, and an allocation" * 1000)
    os.path.exists("C:\\no\\such\\file")
    assert loader.last_error() == 6


def test_each_thread_has_its_own_last_error() -> None:
    loader = SystemLoader()
    set_error = loader.find("kernel32.dll", "SetLastError", signature(None, U32))
    set_error(5)
    seen: list[int] = []

    def other() -> None:
        set_error(87)
        seen.append(loader.last_error())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert (seen, loader.last_error()) == ([87], 5)


def test_arguments_of_sixty_four_bits_arrive_whole() -> None:
    loader = SystemLoader()
    process = loader.find("kernel32.dll", "GetCurrentProcess", signature(HANDLE))
    assert process() == 0xFFFF_FFFF_FFFF_FFFF
    assert loader.find("kernel32.dll", "GetProcAddress", signature(PTR, HANDLE, PTR))(0, None) in (None, 0)


# Privileges


def test_privileges_are_enabled_and_released(windows: WindowsSystem) -> None:
    with windows.privileges(BACKUP, RESTORE), windows.privileges(BACKUP, SECURITY):
        pass
    with windows.privileges(BACKUP):
        pass


def test_a_privilege_that_the_account_lacks_is_denied_though_the_call_succeeds(windows: WindowsSystem) -> None:
    with pytest.raises(Denied, match="1300") as caught, windows.privileges("SeCreateTokenPrivilege"):
        pass
    assert caught.value.hint == "run as an administrator, in an elevated session"


def test_there_is_no_privilege_of_such_a_name(windows: WindowsSystem) -> None:
    with pytest.raises(InvalidInput, match="1313"), windows.privileges("SeNothing"):
        pass


def test_a_thread_gets_a_privilege_with_its_own_token(windows: WindowsSystem) -> None:
    loader = windows.loader
    open_token = loader.find("advapi32.dll", "OpenThreadToken", signature(BOOL, HANDLE, U32, BOOL, PTR))
    close = loader.find("kernel32.dll", "CloseHandle", signature(BOOL, HANDLE))
    thread = loader.find("kernel32.dll", "GetCurrentThread", signature(HANDLE))
    import ctypes

    def has_token() -> bool:
        token = HANDLE()
        if open_token(thread(), 8, 1, ctypes.byref(token)):
            close(token)
            return True
        return False

    assert not has_token()
    with windows.privileges.in_thread(SECURITY):
        assert has_token()
        with windows.privileges.in_thread(SECURITY, BACKUP):
            assert has_token()
        assert has_token()
    assert not has_token()


# Paths


@pytest.mark.parametrize("name", ["plain", "ünïcode 𝄞", "trailing.", "trailing ", "nul.txt", "x" * 200])
def test_files_of_any_name_are_made_and_found(files: Files, root: Handle, tmp_path: Path, name: str) -> None:
    with files.open_in(root, name, WRITE, create=True) as handle:
        files.write(handle, b"content")
    with files.open(
        f"{tmp_path}\\{name}".rstrip("\0") if name.strip(". ") == name else f"\\\\?\\{tmp_path}\\{name}"
    ) as handle:
        assert files.read(handle) == b"content"
    assert [one.name for one in files.listing(root)] == [name]


def test_a_path_of_more_than_260_units_is_opened(files: Files, tmp_path: Path) -> None:
    path = str(tmp_path)
    for _ in range(8):
        path += "\\" + "d" * 60
        files.make_directory(path)
    with files.open(path + "\\file", WRITE, create=True) as handle:
        files.write(handle, b"deep")
    with files.open(path + "\\file") as handle:
        assert files.read(handle) == b"deep"
    with files.open(str(tmp_path)) as root:
        files.delete_tree(root, "d" * 60)
        assert list(files.listing(root)) == []


@pytest.mark.parametrize(
    ("work", "category"),
    [
        (lambda files, path: files.open(f"{path}\\missing"), NotFound),
        (lambda files, path: files.open(f"{path}\\missing\\inside"), NotFound),
        (lambda files, path: files.open(f"{path}\\file", WRITE, create=True), AlreadyExists),
        (lambda files, path: files.make_directory(f"{path}\\directory"), AlreadyExists),
        (lambda files, path: files.open("relative"), InvalidInput),
    ],
)
def test_failures_have_their_categories(files: Files, tmp_path: Path, work: object, category: type[Exception]) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "directory").mkdir()
    with pytest.raises(category):
        work(files, tmp_path)  # type: ignore[operator]


def test_failures_in_a_directory_have_their_categories(files: Files, root: Handle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "inside").write_text("x")
    with pytest.raises(NotFound):
        files.open_in(root, "missing")
    with pytest.raises(NotFound):
        files.open_in(root, "missing\\inside")
    with pytest.raises(AlreadyExists):
        files.open_in(root, "file", WRITE, create=True)
    with pytest.raises(Conflict):
        files.open_in(root, "file", directory=True)
    with pytest.raises(Conflict):
        files.delete(root, "directory")
    files.delete_tree(root, "directory")
    files.delete(root, "file")
    assert list(files.listing(root)) == []


def test_a_long_directory_is_listed_wholly(files: Files, root: Handle, tmp_path: Path) -> None:
    wanted = {f"{'n' * 100}{number}" for number in range(600)}
    for name in wanted:
        (tmp_path / name).touch()
    (tmp_path / "directory").mkdir()
    found = {one.name: one.attributes for one in files.listing(root)}
    assert wanted | {"directory"} == set(found)
    assert found["directory"] & DIRECTORY


def test_content_sizes_and_write_times_come_back(files: Files, root: Handle) -> None:
    with files.open_in(root, "file", WRITE, create=True) as handle:
        files.write(handle, bytes(range(256)) * 4000)
        files.set_basic(handle, Basic(0, 0, 133278304891234560, 0, 0))
    with files.open_in(root, "file") as handle:
        assert files.standard(handle).size == 1024000
        assert files.basic(handle).write == 133278304891234560
        files.seek(handle, 1023999)
        assert files.read(handle) == b"\xff"


def test_a_read_only_file_is_deleted(files: Files, root: Handle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.chmod(tmp_path / "file", 0o444)
    files.delete(root, "file")
    assert list(files.listing(root)) == []


# Hard links


def test_a_hard_link_is_one_file_of_two_names(files: Files, root: Handle, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with files.open_in(root, "file", WRITE, create=True) as handle:
        files.write(handle, b"one")
        files.link(handle, root, "directory\\ünicode")
        assert files.standard(handle).links == 2
        with files.open_in(root, "directory\\ünicode", WRITE) as other:
            assert files.identity(handle) == files.identity(other)
            files.write(other, b"two")
    assert (tmp_path / "file").read_bytes() == b"two"


def test_a_hard_link_does_not_replace_a_file(files: Files, root: Handle, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("stays")
    with files.open_in(root, "file", WRITE, create=True) as handle, pytest.raises(AlreadyExists):
        files.link(handle, root, "other")
    assert (tmp_path / "other").read_text() == "stays"
