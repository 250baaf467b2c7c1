# SPDX-License-Identifier: Apache-2.0
"""``lamella ls``, ``tree``, ``cat`` and ``find``: files in an image, a layer or a directory."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any, Final

import click

from lamella.changes.model import TYPE_BITS, Entry, Kind, Windows
from lamella.cli.console import Console, columns, counted
from lamella.cli.options import IMAGE_PATH, collect, platform_option, split_place
from lamella.cli.verb import ImageVerb
from lamella.times import SECOND, format_pax_time

if TYPE_CHECKING:
    from lamella.changes.contracts import Tree
    from lamella.operations.trees.find import Sizes, Wanted
    from lamella.paths import LayerPath

_RIGHT: Final = frozenset({1, 2, 3})
"""Columns of `_long_row` that are flush right."""

# ls ------------------------------------------------------------------------------------------------------------------


@click.command("ls", cls=ImageVerb, example="lamella ls -l oci:app:1.0::etc")
@click.argument("place", metavar=IMAGE_PATH)
@click.option("-l", "long", is_flag=True, help="Show mode, owner, group, size and time (UTC).")
@click.option("-R", "--recursive", is_flag=True, help="Also list the content of directories, with whole paths.")
@click.option("-d", "--directory", is_flag=True, help="List the file itself, not its content or its target.")
@platform_option
@click.pass_obj
def ls(console: Console, place: str, long: bool, recursive: bool, directory: bool, platform: str | None) -> None:
    """List files.

    The default PATH is the root. Links are followed inside the image. Instead of an image, dir:DIR names a directory on
    disk, blob:FILE a single layer, windows:PLACE the folder or blob of a Windows layer, erofs:FILE an EROFS image, and
    cim:DIR/NAME.cim a composite image. With -l, => marks the target of a hard link in another layer.
    """
    from lamella.changes.tree import resolve
    from lamella.operations.trees.find import find
    from lamella.operations.trees.open import open_tree
    from lamella.paths import LayerPath

    name, path = split_place(place)
    with open_tree(name, platform=platform, job=console.job()) as tree:
        entry = _lookup(tree, resolve(tree, LayerPath(path), follow=not directory), path)
        if directory or entry.kind is not Kind.DIRECTORY:
            shown = [(entry, f"/{entry.path}")]
        elif recursive:
            shown = [(one, f"/{one.path}") for one in find(tree, entry.path) if one.path != entry.path]
        else:
            shown = [(one, one.path.rpartition("/")[2]) for one in tree.entries(entry.path)]
        if console.json:
            console.document([entry_document(one) for one, _ in shown])
        elif long:
            for line in columns([_long_row(one, name) for one, name in shown], _RIGHT):
                console.line(line)
        else:
            for _, name in shown:
                console.line(name)


def _lookup(tree: Tree, found: LayerPath, path: str) -> Entry:
    from lamella.errors import NotFound

    entry = tree.lookup(found)
    if entry is None:
        raise NotFound(f"{path!r} does not exist")
    return entry


# tree ----------------------------------------------------------------------------------------------------------------


@click.command("tree", cls=ImageVerb, example="lamella tree -L 2 oci:app:1.0")
@click.argument("place", metavar=IMAGE_PATH)
@click.option("-L", "--depth", type=click.IntRange(min=1), help="Draw at most so many levels.")
@click.option("-d", "--directories", is_flag=True, help="Draw directories only.")
@platform_option
@click.pass_obj
def tree(console: Console, place: str, depth: int | None, directories: bool, platform: str | None) -> None:
    """Draw a directory and its content.

    The default PATH is the root. Links are followed on the way to PATH, and shown beneath it. Instead of an image,
    dir:DIR names a directory on disk, blob:FILE a single layer, windows:PLACE the folder or blob of a Windows layer,
    erofs:FILE an EROFS image, and cim:DIR/NAME.cim a composite image.
    """
    from lamella.changes.tree import resolve
    from lamella.operations.trees.open import open_tree
    from lamella.paths import LayerPath

    name, path = split_place(place)
    with open_tree(name, platform=platform, job=console.job()) as opened:
        entry = _lookup(opened, resolve(opened, LayerPath(path)), path)
        if console.json:
            console.document(_tree_document(opened, entry, depth, directories))
            return
        console.line(f"/{entry.path}")
        directory_count = file_count = 0
        # Entries to draw, the next one last: the entry, the text before it, whether it is the last one, and its level.
        todo = _children(opened, entry, "", 1, depth, directories)
        while todo:
            entry, stem, last, level = todo.pop()
            link = _link_text(entry)
            console.line(f"{stem}{'└── ' if last else '├── '}{entry.path.rpartition('/')[2]}{link}")
            if entry.kind is not Kind.DIRECTORY:
                file_count += 1
            else:
                directory_count += 1
                todo += _children(opened, entry, stem + ("    " if last else "│   "), level + 1, depth, directories)
        files = "" if directories else f", {counted(file_count, 'file', 'files')}"
        console.summary("")
        console.summary(f"{counted(directory_count, 'directory', 'directories')}{files}")


def _children(
    tree: Tree, entry: Entry, stem: str, level: int, depth: int | None, directories: bool
) -> list[tuple[Entry, str, bool, int]]:
    inside = _entries(tree, entry, level, depth, directories)
    return [(one, stem, one is inside[-1], level) for one in reversed(inside)]


def _entries(tree: Tree, entry: Entry, level: int, depth: int | None, directories: bool) -> list[Entry]:
    if entry.kind is not Kind.DIRECTORY or (depth is not None and level > depth):
        return []
    return [one for one in tree.entries(entry.path) if not directories or one.kind is Kind.DIRECTORY]


def _tree_document(tree: Tree, top: Entry, depth: int | None, directories: bool) -> dict[str, Any]:
    document = entry_document(top)
    todo = [(top, document, 1)]
    while todo:
        entry, about, level = todo.pop()
        if entry.kind is Kind.DIRECTORY:
            inside = _entries(tree, entry, level, depth, directories)
            about["entries"] = [entry_document(one) for one in inside]
            todo += [(one, below, level + 1) for one, below in zip(inside, about["entries"], strict=True)]
    return document


# cat -----------------------------------------------------------------------------------------------------------------


@click.command("cat", cls=ImageVerb, example="lamella cat oci:app:1.0::etc/os-release")
@click.argument("place", metavar="IMAGE::PATH")
@click.argument("more", metavar="[PATH]...", nargs=-1)
@platform_option
@click.pass_obj
def cat(console: Console, place: str, more: tuple[str, ...], platform: str | None) -> None:
    """Print the content of files.

    Each further PATH is a file in the same image. Links are followed inside the image. Instead of an image, dir:DIR
    names a directory on disk, blob:FILE a single layer, windows:PLACE the folder or blob of a Windows layer, erofs:FILE
    an EROFS image, and cim:DIR/NAME.cim a composite image.
    """
    from lamella.changes.model import dense
    from lamella.operations.trees.filesystem import Filesystem
    from lamella.operations.trees.open import open_tree

    name, path = split_place(place)
    if not path:
        raise click.UsageError("no file is named; write it as IMAGE::PATH")
    with open_tree(name, platform=platform, job=console.job()) as opened:
        filesystem = Filesystem(opened)
        contents = [(one, (filesystem / one).content()) for one in (path, *more)]
        if console.json:
            from base64 import b64encode

            encoded = ((one, b64encode(b"".join(map(bytes, dense(content))))) for one, content in contents)
            console.document([{"path": one, "base64": content.decode()} for one, content in encoded])
            return
        output = console.binary()
        for _, content in contents:
            for chunk in dense(content):
                output.write(chunk)
        output.flush()


# find ----------------------------------------------------------------------------------------------------------------

_TYPES: Final = {
    "f": Kind.FILE,
    "d": Kind.DIRECTORY,
    "l": Kind.SYMLINK,
    "c": Kind.CHARACTER,
    "b": Kind.BLOCK,
    "p": Kind.FIFO,
}


def _parse_types(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> frozenset[Kind]:  # noqa: ARG001
    return frozenset(_TYPES[letter] for letter in values)


def _parse_sizes(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[Sizes, ...]:  # noqa: ARG001
    from lamella.operations.trees.find import Sizes

    return tuple(Sizes.parse(size) for size in values)


@click.command("find", cls=ImageVerb, example="lamella find --name '*.so' --size +1M oci:app:1.0::usr")
@click.argument("place", metavar=IMAGE_PATH)
@collect(
    "wanted",
    "operations.trees.find:Wanted",
    click.option("--name", "names", multiple=True, metavar="GLOB", help="The name matches; may be repeated."),
    click.option("--path", "paths", multiple=True, metavar="GLOB", help="The whole path, from /, matches."),
    click.option("-i", "any_case", is_flag=True, help="Globs ignore case."),
    click.option(
        "--type",
        "kinds",
        multiple=True,
        type=click.Choice(list(_TYPES)),
        callback=_parse_types,
        help="A file, directory, symbolic link, character or block device, fifo.",
    ),
    click.option(
        "--size",
        "sizes",
        multiple=True,
        callback=_parse_sizes,
        metavar="[+|-]N[k|M|G]",
        help="A file of N bytes, or more, or fewer.",
    ),
)
@click.option("--newer", metavar="TIME|PATH", help="Modified later than 2024-01-31[T12:00:00], or than PATH.")
@click.option("-l", "long", is_flag=True, help="Show mode, owner, group, size and time (UTC).")
@click.option("-0", "null", is_flag=True, help="End each path with a NUL instead of a newline.")
@platform_option
@click.pass_obj
def find(
    console: Console, place: str, wanted: Wanted, newer: str | None, long: bool, null: bool, platform: str | None
) -> None:
    """Find files by name, kind, size or time.

    The search begins at PATH, or at the root. Quote a GLOB so that the shell does not expand it. Instead of an image,
    dir:DIR names a directory on disk, blob:FILE a single layer, windows:PLACE the folder or blob of a Windows layer,
    erofs:FILE an EROFS image, and cim:DIR/NAME.cim a composite image.
    """
    from msgspec.structs import replace

    from lamella.changes.tree import resolve
    from lamella.operations.trees.find import find as find_entries
    from lamella.operations.trees.open import open_tree
    from lamella.paths import LayerPath

    image, path = split_place(place)
    with open_tree(image, platform=platform, job=console.job()) as opened:
        if newer is not None:
            wanted = replace(wanted, newer=_parse_time(opened, newer))
        found = find_entries(opened, resolve(opened, LayerPath(path)), wanted)
        if console.json:
            console.document([entry_document(entry) for entry in found])
        elif null:
            output = console.binary()
            for entry in found:
                output.write(f"/{entry.path}".encode("utf-8", "surrogateescape") + b"\0")
        elif long:
            rows = [_long_row(entry, f"/{entry.path}") for entry in found]
            for line in columns(rows, _RIGHT):
                console.line(line)
        else:
            for entry in found:
                console.line(f"/{entry.path}")


def _parse_time(tree: Tree, text: str) -> int:
    """Nanoseconds since the epoch: of the time ``text``, UTC without a zone, or of the file at that path."""
    from datetime import UTC, datetime, timedelta

    from lamella.operations.trees.filesystem import Filesystem

    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return (Filesystem(tree) / text).stat().st_mtime_ns
    zoned = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return (zoned - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1) * 1000


# Entries -------------------------------------------------------------------------------------------------------------


def _long_row(entry: Entry, name: str) -> list[str]:
    """Mode, owner, group, size (of a device its numbers), time in UTC, and name."""
    shown = name + _link_text(entry)
    posix = entry.posix
    if posix is None:
        windows = entry.windows
        if windows is None:
            return ["?", "?", "?", str(entry.size), "?", shown]
        time = "?" if windows.write_time is None else _utc(windows.write_time)
        return [_attributes(entry, windows.attributes), "-", "-", str(entry.size), time, shown]
    device = entry.kind in (Kind.CHARACTER, Kind.BLOCK)
    size = f"{posix.device[0]},{posix.device[1]}" if device else str(entry.size)
    mode = stat.filemode(posix.mode | TYPE_BITS[entry.kind]) + ("+" if posix.xattrs else "")
    return [mode, str(posix.uid), str(posix.gid), size, _utc(posix.mtime), shown]


def _link_text(entry: Entry) -> str:
    """The target of a symbolic link, or of a hard link to a lower layer; empty for other files."""
    if entry.kind is Kind.SYMLINK:
        return f" -> {entry.target}"
    return f" => /{entry.target}" if entry.target else ""


def _attributes(entry: Entry, attributes: int) -> str:
    """The kind, then read-only, hidden, system and archive as letters."""
    kind = {Kind.DIRECTORY: "d", Kind.SYMLINK: "l"}.get(entry.kind, "-")
    letters = ((0x1, "r"), (0x2, "h"), (0x4, "s"), (0x20, "a"))
    return kind + "".join(letter if attributes & bit else "-" for bit, letter in letters)


def _utc(ns: int) -> str:
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(ns // SECOND, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"@{format_pax_time(ns)}"


def entry_document(entry: Entry) -> dict[str, Any]:
    """An entry for --json. Times are in seconds, as text with all decimals."""
    document: dict[str, Any] = {"path": f"/{entry.path}", "kind": entry.kind.value}
    if entry.kind is Kind.FILE:
        document["size"] = entry.size
    if entry.kind is Kind.SYMLINK:
        document["target"] = entry.target
    elif entry.target:
        document["link"] = f"/{entry.target}"
    posix = entry.posix
    if posix is not None:
        document |= {
            "mode": f"{posix.mode:04o}",
            "uid": posix.uid,
            "gid": posix.gid,
            "mtime": format_pax_time(posix.mtime),
        }
        if entry.kind in (Kind.CHARACTER, Kind.BLOCK):
            document["device"] = list(posix.device)
        if posix.xattrs:
            from base64 import b64encode

            document["xattrs"] = {name: b64encode(value).decode() for name, value in sorted(posix.xattrs.items())}
    if entry.windows is not None:
        document["windows"] = _windows_document(entry.windows)
    return document


def _windows_document(windows: Windows) -> dict[str, Any]:
    """The NTFS metadata: attributes as a number, times as in `entry_document`, bytes in base64."""
    from base64 import b64encode

    times = {
        "created": windows.creation_time,
        "accessed": windows.access_time,
        "written": windows.write_time,
        "changed": windows.change_time,
    }
    document: dict[str, Any] = {"attributes": windows.attributes}
    document |= {name: format_pax_time(time) for name, time in times.items() if time is not None}
    for name, value in (("security_descriptor", windows.security_descriptor), ("reparse", windows.reparse)):
        if value is not None:
            document[name] = b64encode(value).decode()
    if windows.extended_attributes:
        attributes = sorted(windows.extended_attributes.items())
        document["extended_attributes"] = {name: b64encode(value).decode() for name, value in attributes}
    return document
