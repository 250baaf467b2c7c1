# SPDX-License-Identifier: Apache-2.0
"""Names of keys and values: their encodings, and when two of them are the same name."""

from __future__ import annotations


def fold(name: str) -> str:
    """What two names have in common that the registry takes for one: upper case, letter by letter.

    Folded names sort as the registry sorts, by UTF-16 units. A letter whose upper case is several ones stays itself, as
    in ``ß``; so does ``µ``, whose upper case is in another alphabet.
    """
    if name.isascii():
        return name.upper()
    return "".join(map(_upper, name))


def _upper(letter: str) -> str:
    if letter > "\uffff":  # two units, which have no case each
        code = ord(letter) - 0x10000
        return chr(0xD800 + (code >> 10)) + chr(0xDC00 + (code & 0x3FF))
    if letter == "\xb5":
        return letter
    upper = letter.upper()
    if len(upper) > 1:
        upper = letter.title()
    return upper if len(upper) == 1 else letter


def encode(name: str) -> tuple[bytes, bool]:
    """The bytes of a name, and whether they are Latin-1, which is used where it can be, or else UTF-16."""
    try:
        return name.encode("latin-1"), True
    except UnicodeEncodeError:
        return name.encode("utf-16-le", "surrogatepass"), False


def units(name: str) -> int:
    """The length of a name in UTF-16 units."""
    return len(name) if name.isascii() else len(name.encode("utf-16-le", "surrogatepass")) // 2


def name_hash(folded: str) -> int:
    """The hash that a list of subkeys has beside a name, from the folded name."""
    total = 0
    for unit in map(ord, folded):
        total = total * 37 + unit
    return total & 0xFFFFFFFF


def split_path(path: str) -> list[str]:
    """The names in the path of a key: between backslashes, or between slashes where there is no backslash.

    Names may have slashes in them (``\\MIME\\Database\\Content Type\\text/plain``), but no backslashes.
    """
    return [name for name in path.split("\\" if "\\" in path else "/") if name]
