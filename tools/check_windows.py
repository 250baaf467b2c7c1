# SPDX-License-Identifier: Apache-2.0
"""Checks what only a real Windows can show: python tools/check_windows.py FOLDER [--base BLOB] [--layer BLOB]

Run it as administrator with Lamella installed. FOLDER is on NTFS, and not there yet; it is removed at the end. A host
with the Containers feature checks the compute service too: with a base layer of Lamella's own making, and given the
blob of one of Windows (--base) and of one above it (--layer), with those. They are applied, read back and compared
entry by entry. Exit status 0 says that all was checked and held; what of a layer came back otherwise is printed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lamella.errors import Conflict, Denied, LamellaError
from lamella.formats import backup
from lamella.formats.ntfs import extended_attributes, names, reparse, sddl
from lamella.formats.ntfs.extended_attributes import ExtendedAttribute
from lamella.formats.ntfs.security import SecurityDescriptor
from lamella.host.windows.files import GENERIC_READ, GENERIC_WRITE, RESTORING, Basic, Handle
from lamella.host.windows.security import BACKUP, RESTORE, SECURITY
from lamella.host.windows.system import WindowsSystem, this_system

WRITE = GENERIC_READ | GENERIC_WRITE
DESCRIPTOR = "O:BAG:SYD:P(A;;FA;;;BA)(A;;FA;;;SY)(A;;0x1200a9;;;BU)S:P(AU;SA;FA;;;WD)"
TIMES = Basic(133278304891234567, 133278304901234567, 133278304911234567, 133278304921234567, 0x22)


def streams(*parts: tuple[int, bytes]) -> bytes:
    """Backup streams, one after the other."""
    written = bytearray()
    writer = backup.BackupWriter(written.extend)
    for id_, body in parts:
        writer.small(id_, body)
    return bytes(written)


def restore(system: WindowsSystem, root: Handle, name: str, data: bytes, *, directory: bool = False) -> None:
    """Make a file of backup streams."""
    with (
        system.files.open_in(root, name, RESTORING, create=True, directory=directory) as handle,
        system.files.restore(handle, security=True) as output,
    ):
        output.write(data)


def surveyed(system: WindowsSystem, root: Handle, name: str) -> backup.Surveyed:
    """What BackupRead gives of a file."""
    access = GENERIC_READ | 0x0100_0000  # ACCESS_SYSTEM_SECURITY, so that the SACL comes too
    with system.files.open_in(root, name, access) as handle, system.files.backup(handle, security=True) as read:
        return backup.survey(backup.BackupReader(read.read, skip=read.skip))


def same(expected: object, actual: object) -> None:
    """Raise unless the two are equal."""
    if expected != actual:
        raise AssertionError(f"expected {expected!r}, got {actual!r}")


def check_security_descriptor(system: WindowsSystem, root: Handle) -> None:
    """a security descriptor is restored, owner, group, DACL and SACL, and read back"""
    given = sddl.parse(DESCRIPTOR)
    restore(system, root, "described", streams((backup.SECURITY_DATA, given.encode()), (backup.DATA, b"x")))
    found = surveyed(system, root, "described").security_descriptor
    assert found is not None
    same(sddl.format(given), sddl.format(SecurityDescriptor.decode(found)))


def check_extended_attributes(system: WindowsSystem, root: Handle) -> None:
    """extended attributes are restored and read back"""
    given = [ExtendedAttribute(b"EMPTY", b""), ExtendedAttribute(b"FOO", b"bar")]
    restore(system, root, "extended", streams((backup.EA_DATA, extended_attributes.encode(given))))
    found = surveyed(system, root, "extended").extended_attributes
    assert found is not None
    # NTFS takes one with an empty value for its removal.
    kept = [one for one in extended_attributes.decode(found) if one.value]
    same([(b"FOO", b"bar")], [(one.name, one.value) for one in kept])


def check_reparse_points(system: WindowsSystem, root: Handle) -> None:
    """symbolic links and mount points are restored, read back, and never followed on the way to a file"""
    for name, point, directory in (
        ("link", reparse.symlink("..\\x"), False),
        ("directory link", reparse.symlink("C:\\Windows"), True),
        ("junction", reparse.mount_point("C:\\Windows"), True),
    ):
        restore(system, root, name, streams((backup.REPARSE_DATA, reparse.encode(point))), directory=directory)
        same(reparse.encode(point), surveyed(system, root, name).reparse)
    for name in ("directory link", "junction"):
        try:
            system.files.open_in(root, f"{name}\\System32").close()
        except Conflict:
            continue
        raise AssertionError(f"{name!r} was followed")


def check_alternate_streams(system: WindowsSystem, root: Handle) -> None:
    """alternate data streams are restored, listed, and opened by name"""
    written = bytearray(streams((backup.DATA, b"content")))
    writer = backup.BackupWriter(written.extend)
    writer.stream(backup.ALTERNATE_DATA, 3, name=backup.stream_name("zone"))
    writer.data(b"ads")
    restore(system, root, "with stream", bytes(written))
    found = surveyed(system, root, "with stream")
    same([("zone", 3)], [(name, size) for name, size, _ in found.alternates])
    with system.files.open_in(root, "with stream:zone") as handle:
        same(b"ads", system.files.read(handle))


def check_sparse_file(system: WindowsSystem, root: Handle) -> None:
    """a sparse file is restored with its holes, and BackupRead tells them"""
    written = bytearray()
    writer = backup.BackupWriter(written.extend)
    writer.stream(backup.DATA, 0, attributes=backup.SPARSE_ATTRIBUTE)
    writer.stream(backup.SPARSE_BLOCK, 65536, offset=1 << 20)
    writer.data(b"x" * 65536)
    writer.stream(backup.SPARSE_BLOCK, 0, offset=4 << 20)
    restore(system, root, "sparse", bytes(written))
    found = surveyed(system, root, "sparse")
    same((4 << 20, True), (found.size, found.sparse))
    assert sum(length for _, length, _ in found.pieces) < 1 << 20


def check_times(system: WindowsSystem, root: Handle) -> None:
    """all four times and the attributes are kept to the tick, whatever is written after them by the same handle"""
    with system.files.open_in(root, "timed", RESTORING, create=True) as handle:
        system.files.set_basic(handle, TIMES)
        with system.files.restore(handle, security=True) as output:
            output.write(streams((backup.DATA, b"content")))
    with system.files.open_in(root, "timed") as handle:
        same(TIMES, system.files.basic(handle))


def check_empty_files(system: WindowsSystem, root: Handle) -> None:
    """an empty file has no data stream"""
    restore(system, root, "empty", b"")
    same(False, surveyed(system, root, "empty").has_data)


def check_names(system: WindowsSystem, root: Handle) -> None:
    """NTFS takes the names that Lamella takes, and no other"""
    for name in ("con", "nul.txt", "a.", "a ", "é 𝄞", ".wh..wh..opq", "x" * 255, "\u0130", "a\u0308"):
        same(None, names.illegal(name))
        system.files.open_in(root, name, WRITE, create=True).close()
        system.files.delete(root, name)
    for character in '"*/<>?|\x01\x1f':
        same(False, names.illegal(f"a{character}b") is None)
        try:
            system.files.open_in(root, f"a{character}b", WRITE, create=True).close()
        except LamellaError:
            continue
        raise AssertionError(f"NTFS takes {character!r}")


def check_upper_case(system: WindowsSystem, root: Handle) -> None:
    """two names are one to NTFS where they are to Lamella: all characters of the first plane that have another case"""
    wrong = []
    with system.files.open_in(root, "case", create=True, directory=True) as inside:
        for code in range(0x80, 0xD800):
            character = chr(code)
            upper = names.folded(character)
            if upper == character:
                continue
            system.files.open_in(inside, character, WRITE, create=True).close()
            try:
                system.files.open_in(inside, upper).close()
            except LamellaError:
                wrong.append(f"U+{code:04X}")
            system.files.delete(inside, character)
    same([], wrong)


def check_hives(system: WindowsSystem, root: Handle, folder: str) -> None:
    """hives that Lamella writes are read by offreg.dll, and those of offreg.dll by Lamella"""
    from lamella.formats.regf import Hive, MemoryKey, encode_hive

    with system.files.open_in(root, "lamella.hive", WRITE, create=True) as handle:
        system.files.write(handle, encode_hive(MemoryKey("ROOT")))
    with system.registry.open(f"{folder}\\lamella.hive") as hive, hive.create("Software") as key:
        key.set("value", 3, b"\xff" * 20000)
        hive.save(f"{folder}\\saved.hive")
    with system.files.open_in(root, "saved.hive") as handle:
        data = b"".join(iter(lambda: system.files.read(handle), b""))
    (found,) = Hive(data).root_key.subkeys()
    (value,) = found.values()
    same(("Software", "value", b"\xff" * 20000), (found.name, value.name, value.data))


def check_thread_privileges(system: WindowsSystem, root: Handle) -> None:
    """a thread's privilege is what it takes to ask for everything of a file"""
    with system.privileges.in_thread(SECURITY):
        system.files.open_in(root, "everything", RESTORING, create=True).close()


def check_denied(system: WindowsSystem, root: Handle) -> None:
    """a privilege that the account lacks is denied with error 1300"""
    try:
        with system.privileges("SeCreateTokenPrivilege"):
            pass
    except Denied as error:
        same(True, "1300" in str(error))
        return
    raise AssertionError("SeCreateTokenPrivilege was given")


Check = Callable[[WindowsSystem, Handle], None]
FILES: tuple[Check, ...] = (
    check_security_descriptor,
    check_extended_attributes,
    check_reparse_points,
    check_alternate_streams,
    check_sparse_file,
    check_times,
    check_empty_files,
    check_names,
    check_upper_case,
)
OTHERS: tuple[Check, ...] = (check_denied,)


def own_base(place: Path) -> Path:
    """A base layer as 'lamella pack' makes it: a file, and registry hives that are empty."""
    from lamella.changes.apply import apply
    from lamella.changes.model import Entry, Inline, Kind, Posix, Put
    from lamella.layers.windows.hives import missing_hives, with_hives
    from lamella.layers.windows.tar_sink import WindowsTarSink
    from lamella.layers.windows.transforms import container_layer
    from lamella.paths import LayerPath

    file = Put(Entry(LayerPath("App/hello.txt"), Kind.FILE, Posix(0o644, 0, 0, 0), 5), Inline(b"hello"))
    blob = place / "own.tar"
    with blob.open("wb") as output:
        apply(
            container_layer(with_hives([file], missing_hives(lambda _: ()), 0), base=True), WindowsTarSink(output.write)
        )
    return blob


def layers(system: WindowsSystem, folder: str, blobs: Sequence[tuple[str, Path]]) -> None:
    """Apply the layers, base first, by the compute service; read them back, and compare their changes."""
    from lamella.changes.dump import dump
    from lamella.layers import kinds
    from lamella.layers.windows.names import AS_WINDOWS
    from lamella.layers.windows.tar_source import windows_tar_changes
    from lamella.operations.layers.apply import ApplyOptions, apply_blob
    from lamella.streams.blob_reader import BlobReader

    parents: list[Path] = []
    for name, blob in blobs:
        place = Path(folder) / name
        apply_blob(blob, place, ApplyOptions("windows", parents, rules=AS_WINDOWS, system=system))
        with BlobReader(blob) as reader:
            wanted = set(dump(windows_tar_changes(reader.next_buffer, end=reader.finish, rules=AS_WINDOWS), inline=0))
        with kinds.source("windows", place, kinds.SourceOptions(parents=parents, system=system)) as (changes, _):
            found = set(dump(changes, inline=0))
        for line in sorted(wanted - found)[:40]:
            print(f"    lost   {line[:150]}")
        for line in sorted(found - wanted)[:40]:
            print(f"    new    {line[:150]}")
        print(f"    {name}: {len(wanted & found)} of {len(wanted)} entries came back alike; the boot store may not")
        parents.insert(0, place)


def run(system: WindowsSystem, folder: str, checks: tuple[Check, ...]) -> Iterator[tuple[str, str | None]]:
    """Each check's promise, and what was wrong."""
    with system.files.open(folder) as root:
        for check in checks:
            problem = None
            try:
                check(system, root)
            except (AssertionError, LamellaError) as error:
                problem = str(error) or "it does not hold"
            yield check.__doc__ or check.__name__, problem


def main() -> int:
    """Run all checks that this host can, and say what was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder on NTFS that is not there yet")
    parser.add_argument("--base", type=Path, help="blob of a base layer for Windows")
    parser.add_argument("--layer", type=Path, help="blob of a layer upon it")
    options = parser.parse_args()
    system = this_system()
    if system is None:
        print("this host is not Windows", file=sys.stderr)
        return 1
    folder = os.path.abspath(options.folder)
    system.files.make_directory(folder)
    failed = left_out = 0
    try:
        with system.privileges(BACKUP, RESTORE):
            hives: Check = lambda system, root: check_hives(system, root, folder)  # noqa: E731
            hives.__doc__ = check_hives.__doc__
            found = [*run(system, folder, (*OTHERS, check_thread_privileges))]
            with system.privileges(SECURITY):
                found += run(system, folder, (*FILES, hives))
            for promise, problem in found:
                print(f"{'ok    ' if problem is None else 'FAILED'} {promise}" + (f": {problem}" if problem else ""))
                failed += problem is not None
        if not system.layers.available():
            print("left out: the compute service, which needs the Containers feature")
            left_out = 1
        else:
            with tempfile.TemporaryDirectory() as place:
                layers(system, folder, [("own", own_base(Path(place)))])
            if options.base is None:
                print("left out: a layer of Windows itself, which is given by --base")
                left_out = 1
            else:
                above = [] if options.layer is None else [("above", options.layer)]
                layers(system, folder, [("base", options.base), *above])
    finally:
        above, name = os.path.split(folder)
        with system.privileges(BACKUP, RESTORE), system.files.open(above) as parent:
            system.files.delete_tree(parent, name)
    print(f"{failed} failed, {left_out} left out")
    return int(bool(failed or left_out))


if __name__ == "__main__":
    raise SystemExit(main())
