# SPDX-License-Identifier: Apache-2.0
"""Layers that try to escape, each with its expected outcome, and similar harmless layers of real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from tests.security.tars import Tar, header, padded, pax

from lamella.errors import FormatError, InvalidInput, LamellaError, NotFound, UnsafePath

Held: TypeAlias = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Case:
    """Layers and their outcome: an error, or the resulting content of the target (empty if it does not matter)."""

    layers: Callable[[Path], list[Tar]]
    refused: type[LamellaError] | None = None
    holds: Callable[[Path], Held] | None = None


def inside(outside: Path) -> str:
    """Return the path within the root to which an absolute path to the outside resolves."""
    return str(outside).lstrip("/")


def ways(path: str) -> dict[str, str]:
    """Return the directories that a path implies."""
    parts = path.split("/")[:-1]
    return {"/".join(parts[: count + 1]): "directory 755" for count in range(len(parts))}


def _refused(error: type[LamellaError], *layers: Callable[[Tar, Path], Tar]) -> Case:
    return Case(lambda outside: [layer(Tar(), outside) for layer in layers], error)


def _confined(holds: Callable[[Path], Held], *layers: Callable[[Tar, Path], Tar]) -> Case:
    return Case(lambda outside: [layer(Tar(), outside) for layer in layers], None, holds)


def _landed(link: str, name: str, told: str = "644 layer") -> Callable[[Path], Held]:
    """Expect that a link to the outside stays, and that files below it are written to its target within the root."""
    return lambda o: {link: f"-> {o}", **ways(f"{inside(o)}/x"), f"{inside(o)}/{name}": told}


NAMES: Final[dict[str, Case]] = {
    "dots at the start": _refused(UnsafePath, lambda t, o: t.file("../../outside/new")),
    "dots to the sibling whose path begins like ours": _refused(UnsafePath, lambda t, o: t.file("../outside/new")),
    "dots in the middle": _refused(UnsafePath, lambda t, o: t.file("a/../../../outside/new")),
    "dots that stay inside": _refused(UnsafePath, lambda t, o: t.file("a/../b")),
    "dots after a slash": _refused(UnsafePath, lambda t, o: t.file("/../../outside/new")),
    "dots at the end": _refused(UnsafePath, lambda t, o: t.directory("a/..", 0o777)),
    "dots and a slash at the end": _refused(UnsafePath, lambda t, o: t.directory("../", 0o777)),
    "two dots alone, a directory": _refused(UnsafePath, lambda t, o: t.directory("..", 0o777)),
    "two dots alone, a file": _refused(UnsafePath, lambda t, o: t.file("..")),
    "two dots alone, a link": _refused(UnsafePath, lambda t, o: t.symlink("..", str(o))),
    "two dots alone, a hard link": _refused(UnsafePath, lambda t, o: t.file("f").link("..", "f")),
    "dots in a directory that is implied": _refused(UnsafePath, lambda t, o: t.whiteout("../../outside/secret")),
    "an opaque marker above the root": _refused(UnsafePath, lambda t, o: t.opaque("../../outside")),
    "an absolute name": _confined(
        lambda o: {**ways(f"{inside(o)}/x"), f"{inside(o)}/secret": "644 layer"}, lambda t, o: t.file(f"{o}/secret")
    ),
    "an absolute name with slashes to spare": _confined(
        lambda o: {**ways(f"{inside(o)}/x"), f"{inside(o)}/secret": "644 layer"},
        lambda t, o: t.file(f"///{o}//./secret"),
    ),
    "a name of Windows": _confined(
        lambda o: {"C:\\outside": "644 layer", "..\\..\\outside": "644 layer"},
        lambda t, o: t.file("C:\\outside").file("..\\..\\outside"),
    ),
    "a NUL in a PAX name": _refused(
        FormatError, lambda t, o: t.add("f", b"0", records={"path": b"../../outside/new\0/x"})
    ),
    "dots in a PAX name": _refused(UnsafePath, lambda t, o: t.add("f", b"0", records={"path": b"../../outside/new"})),
    "dots in the prefix field": _refused(UnsafePath, lambda t, o: t.raw(_prefixed(b"../../outside", b"new"))),
    "a file whose name is empty": _refused(InvalidInput, lambda t, o: t.file("")),
    "a file in place of the root": _refused(InvalidInput, lambda t, o: t.file(".")),
    "a link in place of the root": _refused(UnsafePath, lambda t, o: t.symlink("./", str(o))),
    "a link whose name is empty": _refused(UnsafePath, lambda t, o: t.symlink("", str(o))),
    "a hard link in place of the root": _refused(UnsafePath, lambda t, o: t.file("f").link("/", "f")),
    "a hard link to the root": _refused(UnsafePath, lambda t, o: t.link("f", "./")),
    "a device in place of the root": _refused(UnsafePath, lambda t, o: t.node("/", b"3", (1, 3))),
    "a fifo in place of the root": _refused(UnsafePath, lambda t, o: t.node(".//.", b"6")),
    "a whiteout of the root": _refused(UnsafePath, lambda t, o: t.file("lower"), lambda t, o: t.file(".wh.")),
    "a whiteout of a directory by itself": _refused(
        UnsafePath, lambda t, o: t.file("d/lower"), lambda t, o: t.file("d/.wh.")
    ),
    "a whiteout of one dot": _refused(UnsafePath, lambda t, o: t.file("d/lower"), lambda t, o: t.file("d/.wh..")),
    "a whiteout of two dots": _refused(UnsafePath, lambda t, o: t.file("d/lower"), lambda t, o: t.file(".wh...")),
    "a file in a whiteout": _refused(UnsafePath, lambda t, o: t.file(".wh.d/../../outside/x")),
    "a file in a whiteout that is a directory": _refused(UnsafePath, lambda t, o: t.directory(".wh.d").file(".wh.d/x")),
    "a component of 256 bytes": _refused(InvalidInput, lambda t, o: t.file("n" * 256)),
    "a component of 256 bytes on the way": _refused(InvalidInput, lambda t, o: t.file("n" * 256 + "/f")),
    "a whiteout of 256 bytes": _refused(InvalidInput, lambda t, o: t.file("lower"), lambda t, o: t.whiteout("n" * 256)),
    "a name of 128 characters and 256 bytes": _refused(InvalidInput, lambda t, o: t.file("é" * 128)),
    "a link whose target is empty": _refused(FormatError, lambda t, o: t.symlink("l", "")),
    "a link whose target is too long": _refused(InvalidInput, lambda t, o: t.symlink("l", "n/" * 2048)),
}


def _prefixed(prefix: bytes, name: bytes) -> bytes:
    return header(name, prefix=prefix)


LINKS: Final[dict[str, Case]] = {
    "a file through an absolute link": _confined(
        _landed("l", "secret"), lambda t, o: t.symlink("l", str(o)).file("l/secret")
    ),
    "a file through a link of the layer below": _confined(
        _landed("l", "secret"), lambda t, o: t.symlink("l", str(o)), lambda t, o: t.file("l/secret")
    ),
    "a file through a link that climbs": _confined(
        lambda o: {"l": "-> ../../outside", "outside": "directory 755", "outside/secret": "644 layer"},
        lambda t, o: t.symlink("l", "../../outside").file("l/secret"),
    ),
    "a file through a link that climbs from below": _confined(
        lambda o: {
            "d": "directory 755",
            "d/e": "directory 755",
            "d/e/l": "-> ../../../../outside",
            "outside": "directory 755",
            "outside/secret": "644 layer",
        },
        lambda t, o: t.symlink("d/e/l", "../../../../outside").file("d/e/l/secret"),
    ),
    "a file through a link to the directory above": _confined(
        lambda o: {"l": "-> ..", "secret": "644 layer"}, lambda t, o: t.symlink("l", "..").file("l/secret")
    ),
    "a file through a chain of links": _confined(
        lambda o: {
            "a": "-> b",
            "b": "-> c/d",
            "c": f"-> {o}",
            **ways(f"{inside(o)}/d/x"),
            f"{inside(o)}/d/f": "644 layer",
        },
        lambda t, o: t.symlink("a", "b").symlink("b", "c/d").symlink("c", str(o)).file("a/f"),
    ),
    "a file through /proc": _confined(
        lambda o: {
            "l": "-> /proc/self/cwd",
            "proc": "directory 755",
            "proc/self": "directory 755",
            "proc/self/cwd": "directory 755",
            "proc/self/cwd/secret": "644 layer",
        },
        lambda t, o: t.symlink("l", "/proc/self/cwd").file("l/secret"),
    ),
    "a directory through a link": _confined(
        _landed("l", "etc", "directory 777"), lambda t, o: t.symlink("l", str(o)).directory("l/etc", 0o777)
    ),
    "a link through a link": _confined(
        _landed("l", "secret", "-> /"), lambda t, o: t.symlink("l", str(o)).symlink("l/secret", "/")
    ),
    "a fifo through a link": _confined(
        _landed("l", "secret", "fifo 600"), lambda t, o: t.symlink("l", str(o)).node("l/secret", b"6", mode=0o600)
    ),
    "a directory that has become a link since": _confined(
        lambda o: {"d": f"-> {o}", **ways(f"{inside(o)}/x"), f"{inside(o)}/secret": "644 layer"},
        lambda t, o: t.directory("d").file("d/x").symlink("d", str(o)).file("d/secret"),
    ),
    "a directory of the layer below that has become a link": _confined(
        lambda o: {"d": f"-> {o}", **ways(f"{inside(o)}/etc/x"), f"{inside(o)}/etc/passwd": "644 layer"},
        lambda t, o: t.file("d/etc/lower"),
        lambda t, o: t.file("d/etc/upper").symlink("d", str(o)).file("d/etc/passwd"),
    ),
    "a link, gone by a whiteout, back as a directory, and a link again": _confined(
        lambda o: {"d": "directory 755", "d/new": "644 layer"},
        lambda t, o: t.symlink("d", str(o)),
        lambda t, o: t.whiteout("d").file("d/secret"),
        lambda t, o: t.symlink("d", str(o)),
        lambda t, o: t.directory("d").file("d/new"),
    ),
    "a file in place of a link": _confined(
        lambda o: {"l": "644 layer"}, lambda t, o: t.symlink("l", f"{o}/secret").file("l")
    ),
    "a file in place of a link of the layer below": _confined(
        lambda o: {"l": "4777 layer"},
        lambda t, o: t.symlink("l", f"{o}/secret"),
        lambda t, o: t.file("l", mode=0o4777, uid=7, gid=7, xattrs={"user.x": b"1"}),
    ),
    "a file in place of a dangling link": _confined(
        lambda o: {"l": "644 layer"}, lambda t, o: t.symlink("l", f"{o}/new").file("l")
    ),
    "a directory in place of a link": _confined(
        lambda o: {"l": "directory 777", "l/secret": "644 layer"},
        lambda t, o: t.symlink("l", str(o)),
        lambda t, o: t.directory("l", 0o777, uid=7, mtime=1, xattrs={"user.x": b"1"}).file("l/secret"),
    ),
    "a directory with a slash in place of a link": _confined(
        lambda o: {"l": "directory 777"},
        lambda t, o: t.symlink("l", str(o)),
        lambda t, o: t.directory("l/", 0o777, uid=7, mtime=1),
    ),
    "a directory with a slash and a dot in place of a link": _confined(
        lambda o: {"l": "directory 777"},
        lambda t, o: t.symlink("l", str(o)),
        lambda t, o: t.directory("l/.", 0o777, uid=7, mtime=1),
    ),
    "a link that is given everything": _confined(
        lambda o: {"l": f"-> {o}/secret", "m": f"-> {o}/etc"},
        lambda t, o: t.add(
            *("l", b"2"), target=f"{o}/secret", mode=0o7777, uid=7, gid=7, mtime=5, xattrs={"user.x": b"1"}
        ).add("m", b"2", target=f"{o}/etc", mode=0, uid=7, gid=7, mtime=-5, xattrs={"trusted.x": b"1"}),
    ),
    "a fifo in place of a link": _confined(
        lambda o: {"l": "fifo 666"},
        lambda t, o: t.symlink("l", f"{o}/secret"),
        lambda t, o: t.node("l", b"6", mode=0o666),
    ),
    "a link to itself on the way": _refused(InvalidInput, lambda t, o: t.symlink("l", "l").file("l/f")),
    "two links to each other on the way": _refused(
        InvalidInput, lambda t, o: t.symlink("a", "b").symlink("b", "a").file("a/f")
    ),
    "a chain of 41 links": _refused(InvalidInput, lambda t, o: _chain(t.directory("l0"), 41).file("l41/f")),
    "more than forty links, over two components": _refused(
        InvalidInput, lambda t, o: _chain(t.directory("l0").symlink("l0/again", "/l30"), 30).file("l20/again/f")
    ),
}


def _chain(tar: Tar, count: int) -> Tar:
    for number in range(count):
        tar.symlink(f"l{number + 1}", f"l{number}")
    return tar


WHITEOUTS: Final[dict[str, Case]] = {
    "a whiteout through a link": _confined(
        lambda o: {"l": f"-> {o}"}, lambda t, o: t.symlink("l", str(o)), lambda t, o: t.whiteout("l/secret")
    ),
    "a whiteout through a link of the same layer": _confined(
        lambda o: {"l": f"-> {o}", "lower": "644 layer"},
        lambda t, o: t.file("lower"),
        lambda t, o: t.symlink("l", str(o)).whiteout("l/secret").whiteout("l/etc"),
    ),
    "a whiteout through a link that climbs": _confined(
        lambda o: {"l": "-> ../../outside"},
        lambda t, o: t.symlink("l", "../../outside"),
        lambda t, o: t.whiteout("l/etc"),
    ),
    "a whiteout of a link": _confined(lambda o: {}, lambda t, o: t.symlink("l", str(o)), lambda t, o: t.whiteout("l")),
    "a whiteout of a directory full of links": _confined(
        lambda o: {"kept": "644 layer"},
        lambda t, o: t.symlink("d/l", str(o)).symlink("d/e/m", f"{o}/etc").symlink("d/e/n", "..").file("kept"),
        lambda t, o: t.whiteout("d"),
    ),
    "an opaque marker through a link": _confined(
        lambda o: {"l": f"-> {o}", **ways(f"{inside(o)}/x")},
        lambda t, o: t.symlink("l", str(o)),
        lambda t, o: t.opaque("l"),
    ),
    "an opaque marker through a link of the same layer": _confined(
        lambda o: {"etc": f"-> {o}/etc", "lower": "644 layer", **ways(f"{inside(o)}/etc/x")},
        lambda t, o: t.file("lower"),
        lambda t, o: t.symlink("etc", f"{o}/etc").opaque("etc"),
    ),
    "an opaque marker over a directory full of links": _confined(
        lambda o: {"d": "directory 755"},
        lambda t, o: t.symlink("d/l", str(o)).symlink("d/e/m", f"{o}/etc"),
        lambda t, o: t.opaque("d"),
    ),
    "an opaque marker at the root of links": _confined(
        lambda o: {"kept": "644 layer"},
        lambda t, o: t.symlink("l", str(o)).symlink("d/m", ".."),
        lambda t, o: t.opaque().file("kept"),
    ),
    "a file in place of a directory full of links": _confined(
        lambda o: {"d": "644 layer"},
        lambda t, o: t.symlink("d/l", str(o)).symlink("d/e/m", f"{o}/etc"),
        lambda t, o: t.file("d"),
    ),
    "an opaque marker in a link to a file": _confined(
        lambda o: {"l": "-> f", "f": "644 layer"},
        lambda t, o: t.symlink("l", "f").file("f"),
        lambda t, o: t.opaque("l"),
    ),
    "a directory of aufs": _confined(
        lambda o: {}, lambda t, o: t.file(".wh..wh.plnk/1.2").file(".wh..wh.aufs").directory(".wh..wh.orph")
    ),
}

HARD_LINKS: Final[dict[str, Case]] = {
    "to an absolute path outside": _refused(NotFound, lambda t, o: t.link("f", f"{o}/secret")),
    "to a path with dots": _refused(UnsafePath, lambda t, o: t.link("f", "../../outside/secret")),
    "to a path with dots inside": _refused(UnsafePath, lambda t, o: t.file("a").link("f", "d/../a")),
    "to a name in the working directory": _refused(NotFound, lambda t, o: t.link("f", "secret")),
    "to a file through a link": _refused(NotFound, lambda t, o: t.symlink("l", str(o)).link("f", "l/secret")),
    "to a file through a link of the layer below": _refused(
        NotFound, lambda t, o: t.symlink("l", str(o)), lambda t, o: t.link("f", "l/secret")
    ),
    "to a file through a link that climbs": _refused(
        NotFound, lambda t, o: t.symlink("l", "../../outside").link("f", "l/secret")
    ),
    "to a file through /proc": _refused(NotFound, lambda t, o: t.symlink("l", "/proc/self/cwd").link("f", "l/secret")),
    "to a directory": _refused(InvalidInput, lambda t, o: t.directory("d").link("f", "d")),
    "to itself, which is not there": _refused(NotFound, lambda t, o: t.link("f", "f")),
    "in place of a directory on the way to its target": _refused(
        InvalidInput, lambda t, o: t.file("d/f").link("d", "d/f")
    ),
    "in place of a deeper directory on the way to its target": _refused(
        InvalidInput, lambda t, o: t.file("d/e/f").link("d", "d/e/f")
    ),
    "to a link, which is then written": _confined(
        lambda o: {"l": f"-> {o}/secret", "h": "644 layer"},
        lambda t, o: t.symlink("l", f"{o}/secret").link("h", "l").file("h"),
    ),
    "to a link, through which a file is written": _confined(
        lambda o: {"l": f"-> {o}", "h": f"-> {o}", **ways(f"{inside(o)}/x"), f"{inside(o)}/secret": "644 layer"},
        lambda t, o: t.symlink("l", str(o)).link("h", "l").file("h/secret"),
    ),
    "whose own name leads through a link": _confined(
        lambda o: {"f": "644 layer", "l": f"-> {o}", **ways(f"{inside(o)}/x"), f"{inside(o)}/secret": "644 layer"},
        lambda t, o: t.file("f").symlink("l", str(o)).link("l/secret", "f"),
    ),
    "in place of a link": _confined(
        lambda o: {"f": "644 layer", "l": "644 layer"},
        lambda t, o: t.file("f").symlink("l", f"{o}/secret").link("l", "f"),
    ),
    "with a mode and a time, to a link": _confined(
        lambda o: {"l": f"-> {o}/secret", "h": f"-> {o}/secret"},
        lambda t, o: t.symlink("l", f"{o}/secret").link("h", "l", mode=0o4777, mtime=7),
    ),
}

PARSERS: Final[dict[str, Case]] = {
    "a size in a record that differs from the header's": _confined(
        lambda o: {"outer": "644 " + "S" * 64, "after": "644 layer"},
        lambda t, o: t.raw(pax({"size": b"1536"}) + header(b"outer", size=0) + b"S" * 512 + _smuggled()).file("after"),
    ),
    "a size in the header that a record makes smaller": _confined(
        lambda o: {"outer": "644 " + "S" * 64, "after": "644 layer"},
        lambda t, o: t.raw(pax({"size": b"512"}) + header(b"outer", size=1536) + b"S" * 512).file("after"),
    ),
    "a directory that claims to have data": _confined(
        lambda o: {"d": "directory 644", "after": "644 layer"},
        lambda t, o: t.raw(header(b"d", b"5", size=1024)).file("after"),
    ),
    "a hard link that claims to have data": _confined(
        lambda o: {"f": "644 layer", "h": "644 layer", "after": "644 layer"},
        lambda t, o: t.file("f").raw(header(b"h", b"1", linkname=b"f", size=1024)).file("after"),
    ),
    "a long name that leads out, after a record that does not": _refused(
        UnsafePath, lambda t, o: t.raw(pax({"path": b"fine"}) + _long_name(b"../../outside/new")).file("f")
    ),
    "a record that leads out, which a long name overrules": _confined(
        lambda o: {"fine": "644 layer"},
        lambda t, o: t.raw(_long_name(b"fine")).add("f", b"0", data=b"layer", records={"path": b"../../outside/new"}),
    ),
    "a second header of records, without the first one's path": _confined(
        lambda o: {"f": "644 layer"}, lambda t, o: t.raw(pax({"path": b"../x"}) + pax({"mtime": b"1"})).file("f")
    ),
    "a path for all members": _refused(FormatError, lambda t, o: t.raw(pax({"path": b"../x"}, b"g")).file("f")),
    "a negative size": _refused(FormatError, lambda t, o: t.raw(header(b"f", size=-512)).file("g")),
    "what follows the end": _confined(
        lambda o: {"f": "644 layer"}, lambda t, o: t.file("f").raw(bytes(1024)).file("../../outside/new")
    ),
    "a link whose record leads out": _refused(
        UnsafePath, lambda t, o: t.file("a").add("h", b"1", target="a", records={"linkpath": b"../../outside/secret"})
    ),
    "a sparse file whose name leads out": _refused(
        UnsafePath, lambda t, o: t.sparse("../../outside/new", 10, [(0, b"x")])
    ),
}


def _smuggled() -> bytes:
    return Tar().file("../../outside/new").unended()


def _long_name(name: bytes) -> bytes:
    return header(b"././@LongLink", b"L", size=len(name) + 1, magic=b"ustar  \0") + padded(name + b"\0")


TWINS: Final[dict[str, Case]] = {
    "absolute names": _confined(
        lambda o: {"etc": "directory 755", "etc/passwd": "644 layer", "f": "644 layer"},
        lambda t, o: t.directory("/etc").file("/etc/passwd").file("//f"),
    ),
    "names that begin with a dot and a slash": _confined(
        lambda o: {"etc": "directory 700", "etc/passwd": "644 layer"},
        lambda t, o: t.directory("./", 0o755).directory("./etc/", 0o700).file("./etc/passwd"),
    ),
    "names that begin with dots, or are three": _confined(
        lambda o: {"..a": "644 layer", "...": "directory 755", ".../b..": "644 layer"},
        lambda t, o: t.file("..a").file(".../b.."),
    ),
    "names with spaces, newlines and other bytes": _confined(
        lambda o: {
            " ": "644 layer",
            "a\nb": "644 layer",
            "\udcff\udcfe": "644 layer",
            "é": "644 layer",
            "\\": "644 layer",
        },
        lambda t, o: t.file(" ").file("a\nb").file(b"\xff\xfe").file("é").file("\\"),
    ),
    "names of 255 bytes": _confined(
        lambda o: {"n" * 255: "directory 755", "n" * 255 + "/" + "é" * 127: "644 layer"},
        lambda t, o: t.file("n" * 255 + "/" + "é" * 127),
    ),
    "the links of a merged /usr": _confined(
        lambda o: {
            "usr": "directory 755",
            "usr/lib": "directory 755",
            "usr/bin": "directory 755",
            "lib": "-> usr/lib",
            "bin": "-> usr/bin",
            "lib64": "-> /usr/lib",
            "sbin": "-> /usr/bin",
            "usr/lib/a.so": "644 layer",
            "usr/lib/b.so": "644 layer",
            "usr/bin/sh": "755 layer",
            "usr/bin/init": "755 layer",
            "usr/lib/d": "directory 755",
            "usr/lib/d/c.so": "644 layer",
        },
        lambda t, o: (
            t.directory("usr/lib")
            .directory("usr/bin")
            .symlink("lib", "usr/lib")
            .symlink("bin", "usr/bin")
            .symlink("lib64", "/usr/lib")
            .symlink("sbin", "/usr/bin")
            .file("usr/lib/gone.so")
        ),
        lambda t, o: (
            t.file("lib/a.so")
            .file("lib64/b.so")
            .file("bin/sh", mode=0o755)
            .file("sbin/init", mode=0o755)
            .file("lib64/d/c.so")
            .whiteout("lib64/gone.so")
        ),
    ),
    "the links of /var/run and a mail spool": _confined(
        lambda o: {
            "run": "directory 755",
            "run/lock": "directory 1777",
            "run/x.pid": "644 layer",
            "var": "directory 755",
            "var/run": "-> ../run",
            "var/lock": "-> /run/lock",
            "var/spool": "directory 755",
            "var/spool/mail": "-> ../mail",
            "var/mail": "directory 2775",
            "var/mail/root": "600 layer",
            "run/lock/l": "644 layer",
        },
        lambda t, o: (
            t.directory("run/lock", 0o1777)
            .symlink("var/run", "../run")
            .symlink("var/lock", "/run/lock")
            .symlink("var/spool/mail", "../mail")
            .directory("var/mail", 0o2775)
        ),
        lambda t, o: t.file("var/run/x.pid").file("var/lock/l").file("var/spool/mail/root", mode=0o600),
    ),
    "a farm of links as pnpm makes it": _confined(
        lambda o: {
            **ways("node_modules/.pnpm/b@1.0.0/node_modules/b/x"),
            **ways("node_modules/.pnpm/a@1.0.0/node_modules/a/x"),
            "node_modules/.pnpm/a@1.0.0/node_modules/a/index.js": "644 layer",
            "node_modules/.pnpm/b@1.0.0/node_modules/b/index.js": "644 layer",
            "node_modules/.pnpm/a@1.0.0/node_modules/b": "-> ../../b@1.0.0/node_modules/b",
            "node_modules/a": "-> .pnpm/a@1.0.0/node_modules/a",
            "node_modules/.pnpm/a@1.0.0/node_modules/a/built": "644 layer",
            "node_modules/.pnpm/b@1.0.0/node_modules/b/built": "644 layer",
        },
        lambda t, o: (
            t.file("node_modules/.pnpm/a@1.0.0/node_modules/a/index.js")
            .file("node_modules/.pnpm/b@1.0.0/node_modules/b/index.js")
            .symlink("node_modules/.pnpm/a@1.0.0/node_modules/b", "../../b@1.0.0/node_modules/b")
            .symlink("node_modules/a", ".pnpm/a@1.0.0/node_modules/a")
        ),
        lambda t, o: t.file("node_modules/a/built").file("node_modules/.pnpm/a@1.0.0/node_modules/b/built"),
    ),
    "forty links on the way": _confined(
        lambda o: {
            "l0": "directory 755",
            "l0/f": "644 layer",
            **{f"l{n + 1}": f"-> l{n}" for n in range(40)},
        },
        lambda t, o: _chain(t.directory("l0"), 40).file("l40/f"),
    ),
    "links that point anywhere and are never on the way": _confined(
        lambda o: {
            "a": "-> a",
            "b": "-> ../../../..",
            "c": "-> /proc/self/mem",
            "d": f"-> {o}",
            "e": "-> " + "x" * 4095,
        },
        lambda t, o: (
            t.symlink("a", "a")
            .symlink("b", "../../../..")
            .symlink("c", "/proc/self/mem")
            .symlink("d", str(o))
            .symlink("e", "x" * 4095)
        ),
    ),
    "a link replaced by a directory and back": _confined(
        lambda o: {"d": "-> e", "e": "directory 755", "e/f": "644 layer", "e/h": "644 layer"},
        lambda t, o: t.symlink("d", "e").file("e/f"),
        lambda t, o: t.directory("d").file("d/g"),
        lambda t, o: t.symlink("d", "e").file("d/h"),
    ),
    "every kind in place of every other": _confined(
        lambda o: {"x": "644 layer"},
        *(
            (lambda t, o, first=first, second=second: first(second(first(t))))
            for first in (
                lambda t: t.file("x"),
                lambda t: t.directory("x").file("x/y/z"),
                lambda t: t.symlink("x", "y"),
                lambda t: t.node("x", b"6"),
                lambda t: t.file("w").link("x", "w").whiteout("v"),
            )
            for second in (
                lambda t: t.directory("x/y"),
                lambda t: t.symlink("x", "/"),
                lambda t: t.file("x"),
                lambda t: t.node("x", b"6"),
            )
        ),
        lambda t, o: t.opaque().file("x"),
    ),
    "whiteouts of each kind": _confined(
        lambda o: {"kept": "644 layer"},
        lambda t, o: t.file("f").directory("d").file("e/f/g").symlink("l", "kept").node("p", b"6").file("kept"),
        lambda t, o: t.whiteout("f").whiteout("d").whiteout("e").whiteout("l").whiteout("p").whiteout("not-there"),
    ),
    "whiteouts of names that begin with dots": _confined(
        lambda o: {},
        lambda t, o: t.file("...").file("..a").file(".a"),
        lambda t, o: t.whiteout("...").whiteout("..a").whiteout(".a"),
    ),
    "a whiteout never hides what the same layer puts": _confined(
        lambda o: {"d": "directory 700", "d/new": "644 layer", "f": "644 new"},
        lambda t, o: t.file("f", b"old").file("d/old"),
        lambda t, o: t.file("f", b"new").whiteout("f").directory("d", 0o700).file("d/new").whiteout("d"),
    ),
    "a hard link to a link itself": _confined(
        lambda o: {"l": "-> nowhere", "h": "-> nowhere"}, lambda t, o: t.symlink("l", "nowhere").link("h", "l")
    ),
    "a hard link to a name of the layer below, through a link": _confined(
        lambda o: {
            "usr": "directory 755",
            "usr/lib": "directory 755",
            "lib": "-> usr/lib",
            "usr/lib/f": "644 layer",
            "usr/lib/g": "644 layer",
        },
        lambda t, o: t.file("usr/lib/f").symlink("lib", "usr/lib"),
        lambda t, o: t.link("lib/g", "/lib/f"),
    ),
    "a hard link to itself, which is there": _confined(
        lambda o: {"f": "644 layer"}, lambda t, o: t.file("f").link("f", "./f")
    ),
    "a hard link to a fifo": _confined(
        lambda o: {"p": "fifo 644", "q": "fifo 644"}, lambda t, o: t.node("p", b"6").link("q", "p")
    ),
    "a hard link through a directory that is swapped for a link": _confined(
        lambda o: {"a": "-> b", "b": "directory 755", "b/f": "644 layer", "b/g": "644 layer"},
        lambda t, o: t.file("a/f"),
        lambda t, o: t.whiteout("a").file("b/f").symlink("a", "b").link("a/g", "a/f"),
    ),
}
