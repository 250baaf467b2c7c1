# SPDX-License-Identifier: Apache-2.0
"""``lamella hive``: verbs for registry hives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lamella.cli.console import Console, columns, human_size
from lamella.cli.options import platform_option
from lamella.cli.verb import ImageVerb, VerbGroup

if TYPE_CHECKING:
    from lamella.formats.regf import Hive, HiveKey
    from lamella.formats.regf.keys import Value
    from lamella.operations.windows.hives import HivePlace

F = TypeVar("F", bound=Callable[..., Any])

FILE_KEY = "FILE[::KEY]"


@click.group("hive", cls=VerbGroup)
def command() -> None:
    """List, print and merge registry hives.

    FILE is a file on disk, - for standard input, or a file in an image or a layer, as IMAGE::PATH or
    windows:PLACE::PATH, or with blob:, cim: or dir: as for 'lamella ls'. KEY is the path of a key below the root, with
    backslashes or, if it has none, slashes between the names; case does not matter.

    Layers of a Windows image above the base have deltas of the base's hives. In an image, Hives/System_Base is the
    merged hive, with which a container starts; Hives/System_Delta is the delta of the topmost layer that has one, or
    of layer N with --layer N; Files/Windows/System32/config/SYSTEM is the hive of the base alone. The other hives are
    called Software, Sam, Security and DefaultUser (DEFAULT in config).
    """


def _dirty_option(function: F) -> F:
    return click.option(
        "--dirty", is_flag=True, help="Read a hive without its last changes if they are only in its log."
    )(function)


def _layer_option(function: F) -> F:
    return click.option(
        "--layer",
        type=click.IntRange(min=0),
        metavar="N",
        help="In a Windows image, the delta of layer N, or the hive merged up to layer N; 0 is the base.",
    )(function)


@command.command("ls", cls=ImageVerb, example="lamella hive ls -l SYSTEM::ControlSet001/Services")
@click.argument("place", metavar=FILE_KEY)
@click.option("-l", "long", is_flag=True, help="Show types, sizes of data, and times of keys (UTC).")
@_dirty_option
@_layer_option
@platform_option
@click.pass_obj
def ls(console: Console, place: str, long: bool, dirty: bool, layer: int | None, platform: str | None) -> None:
    """List the subkeys and values of a key.

    A subkey ends with a backslash; @ is the default value.
    """
    from lamella.formats.regf.text import time_text, type_name
    from lamella.operations.windows.hives import value_document

    _, key, _ = _opened(console, place, dirty, layer, platform)
    subkeys, values = key.subkeys(), key.values()
    if console.json:
        console.document(
            {
                "subkeys": [{"name": one.name, "time": time_text(one.time)} for one in subkeys],
                "values": [value_document(one) for one in values],
            }
        )
        return
    if not long:
        for name in (*(f"{one.name}\\" for one in subkeys), *map(_value_name, values)):
            console.line(_encodable(name))
        return
    rows = [("key", "-", time_text(one.time), _encodable(f"{one.name}\\")) for one in subkeys]
    for one in values:
        kind = "-" if one.tombstone else type_name(one.type)
        rows.append((kind, str(len(one.data)), "-", _encodable(_value_name(one))))
    if rows:
        for line in columns(rows, {1}):
            console.line(line)


@command.command("get", cls=ImageVerb, example="lamella hive get oci:app:1.0::Hives/System_Base::Select Current")
@click.argument("place", metavar=FILE_KEY)
@click.argument("name", metavar="[VALUE]", required=False)
@click.option("--raw", is_flag=True, help="Write the raw bytes of VALUE.")
@_dirty_option
@_layer_option
@platform_option
@click.pass_obj
def get(
    console: Console,
    place: str,
    name: str | None,
    raw: bool,
    dirty: bool,
    layer: int | None,
    platform: str | None,
) -> None:
    """Print a value, or all values of a key.

    Strings are printed as they are, lists of strings line by line, numbers in decimal, other data in hexadecimal. @ is
    the default value. Without VALUE, each value is a line with its name and type.
    """
    from lamella.errors import NotFound
    from lamella.formats.regf.text import meaning, value_line
    from lamella.operations.windows.hives import value_document

    if raw and name is None:
        raise click.UsageError("--raw needs the name of a value")
    _, key, path = _opened(console, place, dirty, layer, platform)
    if name is None:
        values = key.values()
        if console.json:
            console.document([value_document(one) for one in values])
            return
        for one in values:
            console.line(value_line(one))
        return
    value = key.value(name) or (key.value("") if name == "@" else None)
    if value is None:
        raise NotFound(f"there is no value {name!r} in {path!r}")
    if console.json:
        console.document(value_document(value))
        return
    if value.tombstone:
        raise NotFound(f"the value {name!r} in {path!r} is a tombstone: it removes that of the lower hive")
    if raw:
        output = console.binary()
        output.write(value.data)
        output.flush()
        return
    known = meaning(value)
    if known is None:
        console.line(value.data.hex())
    elif isinstance(known, list):
        for text in known:
            console.line(_encodable(text))
    else:
        console.line(_encodable(str(known)))


@command.command("merge", cls=ImageVerb, example="lamella hive merge -o SYSTEM System_Base System_Delta")
@click.argument("base", metavar="BASE")
@click.argument("deltas", metavar="[DELTA]...", nargs=-1)
@click.option("-o", "--output", metavar="OUT", required=True, help="The new hive; - is standard output.")
@_dirty_option
@platform_option
@click.pass_obj
def merge(
    console: Console,
    base: str,
    deltas: tuple[str, ...],
    output: str,
    dirty: bool,
    platform: str | None,
) -> None:
    """Merge deltas into a hive.

    Each DELTA is the hive of a layer, the lowest first, named as FILE. The result is an ordinary hive. Without DELTA
    it is BASE: IMAGE::Hives/System_Base is merged already.
    """
    from lamella.operations.windows.hives import merge_hives

    if [base, *deltas].count("-") > 1:
        raise click.UsageError("only one hive can be read from standard input")
    if output == "-" and console.json:
        raise click.UsageError("--json and -o - both write to standard output")
    size = merge_hives(
        _place(base),
        [_place(one) for one in deltas],
        console.blob_output() if output == "-" else Path(output),
        dirty=dirty,
        platform=platform,
        job=console.job(),
    )
    if output == "-":
        console.binary().flush()
    elif console.json:
        console.document({"output": output, "size": size})
    else:
        console.summary(f"{output}: {human_size(size)}")


@command.command("dump", cls=ImageVerb, example="lamella hive dump SYSTEM::Select")
@click.argument("place", metavar=FILE_KEY)
@_dirty_option
@_layer_option
@platform_option
@click.pass_obj
def dump(console: Console, place: str, dirty: bool, layer: int | None, platform: str | None) -> None:
    """Print a key and all below it as canonical text.

    A line for each key, in brackets, and one for each of its values, in visible ASCII. Hives with the same content
    have the same dump.
    """
    from lamella.formats.regf.text import dump as lines
    from lamella.operations.windows.hives import key_documents

    hive, key, path = _opened(console, place, dirty, layer, platform)
    path = "" if path == "\\" else path
    if console.json:
        console.document({"layered": hive.layered, "keys": list(key_documents(key, path))})
        return
    for line in lines(key, path):
        console.line(line)


def _place(text: str) -> HivePlace:
    return Console.binary_input() if text == "-" else text


def _opened(
    console: Console, text: str, dirty: bool, layer: int | None, platform: str | None
) -> tuple[Hive, HiveKey, str]:
    """Open FILE[::KEY]: the hive, the key and its path."""
    from lamella.formats.regf.keys import split_path
    from lamella.operations.windows.hives import open_hive, split_hive_place

    place, path = split_hive_place(text)
    hive = open_hive(_place(place), dirty=dirty, layer=layer, platform=platform, job=console.job(), warn=console.warn)
    return hive, hive.key(path), "\\" + "\\".join(split_path(path))


def _value_name(value: Value) -> str:
    return value.name or "@"


def _encodable(text: str) -> str:
    """``text`` for standard output; halves of letters, which have no encoding, are replaced."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
