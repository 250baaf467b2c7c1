# SPDX-License-Identifier: Apache-2.0
"""Tars of Windows layers as other producers write them, member by member."""

from __future__ import annotations

import base64
from typing import Final

from tests.unit.formats.tar.archives import END, GNU, block, file, long_name, pax
from tests.unit.formats.tar.archives import record as pax_record

from lamella.formats.ntfs import sddl
from lamella.formats.regf import MemoryKey, encode_hive

TIME: Final = 1683356889

_DIRECTORY_SDDL: Final = (
    "O:BAG:SYD:(A;OICI;FA;;;BA)(A;OICI;FA;;;SY)(A;;FA;;;BA)(A;OICIIO;GA;;;CO)(A;OICI;0x1200a9;;;BU)(A;CI;LC;;;BU)"
    "(A;CI;DC;;;BU)"
)
_FILE_SDDL: Final = "O:BAG:SYD:(A;;FA;;;BA)(A;;FA;;;SY)(A;;0x1200a9;;;BU)"
USERS: Final = b"AQAAgBQAAAAkAAAAAAAAAAAAAAABAgAAAAAABSAAAAAhAgAAAQIAAAAAAAUgAAAAIQIAAA=="
"""O:BUG:BU, and no access list."""


def _bytes_of(words: str) -> bytes:
    return base64.b64encode(sddl.parse(words).encode())


def buildkit() -> bytes:
    """A layer that BuildKit writes on Linux: records on all but links, slashes after directories, permission bits."""

    def member(name: bytes, flag: bytes, mode: int, attributes: int, words: str, data: bytes = b"") -> bytes:
        records = pax(
            # Nanoseconds stand behind the dot as they are, without the zeros that belong before them.
            (b"LIBARCHIVE.creationtime", b"%d.123456" % TIME),
            (b"MSWINDOWS.fileattr", b"%d" % attributes),
            (b"MSWINDOWS.rawsd", _bytes_of(words)),
            (b"mtime", b"%d.000123456" % TIME),
        )
        return records + file(name, data, flag, mode=mode, mtime=TIME, devmajor=0, devminor=0)

    def directory(name: bytes) -> bytes:
        return member(name, b"5", 0o040755, 16, _DIRECTORY_SDDL)

    return b"".join(
        (
            directory(b"Hives/"),
            directory(b"Files/"),
            directory(b"Files/app/"),
            member(b"Files/app/run.exe", b"0", 0o100755, 32, _FILE_SDDL, b"program" * 100),
            file(b"Files/app/current", b"", b"2", linkname=b"Files/run.exe", mode=0o120777, mtime=TIME),
            file(b"Files/app/again.exe", b"", b"1", linkname=b"Files/app/run.exe", mode=0o100755, mtime=TIME),
            file(b"Files/app/.wh.old", b"", mode=0, mtime=TIME),
            END,
        )
    )


def container_registry(uname: bytes = b"") -> bytes:
    """A layer as go-containerregistry makes it: bare directories first, then files with a descriptor and no more."""

    def member(name: bytes, flag: bytes, mode: int, data: bytes = b"") -> bytes:
        owner = {265: uname} if uname else {}
        return pax((b"MSWINDOWS.rawsd", USERS)) + file(name, data, flag, mode=mode, at=owner)

    return b"".join(
        (
            *(block(name, b"5", mode=0o555) for name in (b"Files", b"Hives")),
            member(b"Files/ko-app", b"5", 0o555),
            member(b"Files/ko-app/app.exe", b"0", 0o555, bytes(range(256)) * 9),
            END,
        )
    )


def buildpacks() -> bytes:
    """A layer of buildpacks: no records at all, parents before what is in them."""
    members = [block(name, b"5", mode=0o755) for name in (b"Files", b"Hives", b"Files/cnb", b"Files/cnb/bin")]
    return b"".join((*members, file(b"Files/cnb/bin/lifecycle.exe", b"MZ" * 700, mode=0o755, uid=1, gid=1), END))


def buildpacks_base() -> bytes:
    """The least base layer that Windows takes, as buildpacks make it for tests: empty hives and a boot store."""
    boot = b"UtilityVM/Files/EFI/Microsoft/Boot"
    directories = [b"Files", b"Files/Windows", b"Files/Windows/System32", b"Files/Windows/System32/config"]
    parts = boot.split(b"/")
    utility = [b"/".join(parts[: count + 1]) for count in range(len(parts))]
    config = [file(directories[-1] + b"/" + name) for name in (b"DEFAULT", b"SAM", b"SECURITY", b"SOFTWARE", b"SYSTEM")]
    store = file(boot + b"/BCD", encode_hive(MemoryKey("BCD")))
    members = [block(name, b"5", mode=0o755) for name in (*directories, *utility)]
    return b"".join((*members, *config, store, END))


def microsoft_base() -> bytes:
    """A base layer in Microsoft's manner: permission bits, names not sorted by bytes, links into `Files`."""

    def member(name: bytes, flag: bytes, mode: int, attributes: int, data: bytes = b"", **fields: bytes) -> bytes:
        records = [
            (b"LIBARCHIVE.creationtime", b"%d.1234567" % TIME),
            (b"MSWINDOWS.fileattr", b"%d" % attributes),
            (b"atime", b"%d.7654321" % TIME),
            (b"ctime", b"%d.5" % TIME),
            (b"mtime", b"%d.25" % TIME),
        ]
        if flag != b"1":
            records.insert(2, (b"MSWINDOWS.rawsd", _bytes_of(_FILE_SDDL)))
        return pax(*records) + file(name, data, flag, mode=mode, mtime=TIME, devmajor=0, devminor=0, **fields)

    files = b"Files/Windows/System32"
    vm = b"UtilityVM/Files/Windows/System32"
    return b"".join(
        (
            member(b"Files", b"5", 0o040000, 0x10),
            member(b"Files/Windows", b"5", 0o040755, 0x10),
            member(files, b"5", 0o040755, 0x10),
            member(files + b"/Ntdll.dll", b"0", 0o100644, 0x20, b"\x90" * 5000),
            member(files + b"/advapi32.dll", b"0", 0o100755, 0x21, b"\x91" * 600),
            member(b"Files/Documents and Settings", b"2", 0o160755, 0x2416, linkname=b"C:\\Users"),
            member(b"UtilityVM", b"5", 0o040000, 0x10),
            member(b"UtilityVM/Files", b"5", 0o040000, 0x10),
            member(b"UtilityVM/Files/Windows", b"5", 0o040755, 0x10),
            member(vm, b"5", 0o040755, 0x10),
            member(vm + b"/Ntdll.dll", b"1", 0o644, 0x20, linkname=files + b"/Ntdll.dll"),
            END,
        )
    )


def microsoft_update() -> bytes:
    """A servicing layer upon `microsoft_base`: hard links to files of the base, whiteouts, deltas of hives."""

    def member(name: bytes, flag: bytes, attributes: int, data: bytes = b"", **fields: bytes) -> bytes:
        records = pax((b"MSWINDOWS.fileattr", b"%d" % attributes), (b"atime", b"1.5"), (b"ctime", b"2.5"))
        return records + file(name, data, flag, mode=0o644, mtime=TIME, **fields)

    files = b"Files/Windows/System32"
    return b"".join(
        (
            *(member(name, b"5", 0x10) for name in (b"Files", b"Files/Windows", files)),
            member(files + b"/ntdll.dll", b"0", 0x20, b"\x92" * 4000),
            member(files + b"/advapi.dll", b"1", 0x21, linkname=files + b"/advapi32.dll"),
            file(files + b"/.wh.old.dll", b"", mode=0),
            member(b"Hives", b"5", 0x10),
            member(b"Hives/System_Delta", b"0", 0x20, encode_hive(MemoryKey("ROOT"))),
            END,
        )
    )


def by_hand() -> bytes:
    """What somebody makes with GNU tar: a root, owners, long names in GNU's way, padded to its usual ten KiB."""
    deep = b"Files/" + b"d" * 90 + b"/" + b"f" * 60
    made = b"".join(
        (
            block(b"./", b"5", magic=GNU, uid=1000, gid=1000, mtime=TIME),
            block(b"./Files/", b"5", magic=GNU, mtime=TIME, at={265: b"somebody"}),
            block(b"./Hives/", b"5", magic=GNU, mtime=TIME),
            block(b"./Files/" + b"d" * 90 + b"/", b"5", magic=GNU, mtime=TIME),
            long_name(b"./" + deep),
            file((b"./" + deep)[:100], b"deep", magic=GNU, mtime=TIME),
            END,
        )
    )
    return made + bytes(-len(made) % 10240)


def with_odd_bytes() -> bytes:
    """A tar that says nothing unusual in unusual ways: records out of order and unknown, dirty padding, a tail."""
    records = pax_record(b"mtime", b"5.50") + pax_record(b"comment", b"?") + pax_record(b"MSWINDOWS.fileattr", b"0032")
    data = b"content" + b"\xaa" * 505
    return b"".join(
        (
            pax((b"comment", b"of all"), flag=b"g"),
            block(b"Files//", b"5", at={500: b"scratch"}),
            file(b"PaxHeader/x", records, b"x"),
            block(b"Files/a", size=7),
            data,
            END,
            b"what follows",
        )
    )


BASES: Final = {
    "buildpacks": buildpacks_base,
    "Microsoft": microsoft_base,
    "GNU tar": by_hand,
    "odd bytes": with_odd_bytes,
}
LAYERS: Final = {
    "BuildKit": buildkit,
    "go-containerregistry": container_registry,
    "NET SDK": lambda: container_registry(b"root"),
    "buildpacks": buildpacks,
    "Microsoft": microsoft_update,
    "GNU tar": by_hand,
    "odd bytes": with_odd_bytes,
}
"""Of layers with parents, all of which can lie upon Microsoft's base."""
