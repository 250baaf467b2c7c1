# SPDX-License-Identifier: Apache-2.0
"""What a hive holds, wherever it comes from: keys, their values, and the marks that a delta lays over other keys."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple, Protocol


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


REG_NONE: Final = 0
REG_SZ: Final = 1
REG_EXPAND_SZ: Final = 2
REG_BINARY: Final = 3
REG_DWORD: Final = 4
REG_DWORD_BIG_ENDIAN: Final = 5
REG_LINK: Final = 6
REG_MULTI_SZ: Final = 7
REG_QWORD: Final = 11

TYPE_NAMES: Final = {
    REG_NONE: "REG_NONE",
    REG_SZ: "REG_SZ",
    REG_EXPAND_SZ: "REG_EXPAND_SZ",
    REG_BINARY: "REG_BINARY",
    REG_DWORD: "REG_DWORD",
    REG_DWORD_BIG_ENDIAN: "REG_DWORD_BIG_ENDIAN",
    REG_LINK: "REG_LINK",
    REG_MULTI_SZ: "REG_MULTI_SZ",
    8: "REG_RESOURCE_LIST",
    9: "REG_FULL_RESOURCE_DESCRIPTOR",
    10: "REG_RESOURCE_REQUIREMENTS_LIST",
    REG_QWORD: "REG_QWORD",
}

SYMLINK: Final = 0x10
"""Flag of a key that stands for the one that its value ``SymbolicLinkValue`` names."""

DEFAULT_SECURITY: Final = bytes.fromhex(
    "010004801400000024000000000000003000000001020000000000052000000020020000010100000000000512000000"
    "02004c0003000000000214003f000f00010100000000000512000000000218003f000f00010200000000000520000000"
    "20020000000218001900020001020000000000052000000021020000"
)
"""O:BAG:SYD:(A;CI;KA;;;SY)(A;CI;KA;;;BA)(A;CI;KR;;;BU): the system and administrators write, users read."""


class Layering(IntEnum):
    """What a key of a delta does to the key of its name below."""

    MERGE = 0
    """Values are put over those below, subkeys merge."""
    TOMBSTONE = 1
    """The key below is gone, with all that is in it."""
    SUPERSEDE_LOCAL = 2
    """The values below do not count, subkeys merge."""
    SUPERSEDE_TREE = 3
    """Nothing below counts."""


class Value(NamedTuple):
    """A value of a key. The default value's name is empty; a tombstone hides the value of its name below."""

    name: str
    type: int
    data: bytes
    tombstone: bool = False


class Key(Protocol):
    """A key as the writer and the merge see it; values and subkeys are looked up when they are asked for.

    ``time`` is a FILETIME; ``security`` a self-relative security descriptor; ``control`` the byte of user flags and
    virtualization flags.
    """

    @property
    def name(self) -> str: ...

    @property
    def time(self) -> int: ...

    @property
    def flags(self) -> int: ...

    @property
    def control(self) -> int: ...

    @property
    def security(self) -> bytes: ...

    @property
    def class_name(self) -> str: ...

    @property
    def layering(self) -> Layering: ...

    @property
    def inherit_class(self) -> bool: ...

    def values(self) -> Sequence[Value]: ...

    def subkeys(self) -> Sequence[Key]: ...


class MemoryKey:
    """A key that is built in memory: ``root = MemoryKey(""); root.make("Software").put("Name", REG_SZ, b"...")``."""

    __slots__ = (
        "_subkeys",
        "_values",
        "class_name",
        "control",
        "flags",
        "inherit_class",
        "layering",
        "name",
        "security",
        "time",
    )

    def __init__(
        self,
        name: str,
        *,
        time: int = 0,
        security: bytes = DEFAULT_SECURITY,
        class_name: str = "",
        flags: int = 0,
        control: int = 0,
        layering: Layering = Layering.MERGE,
        inherit_class: bool = False,
    ) -> None:
        self.name = name
        self.time = time
        self.security = security
        self.class_name = class_name
        self.flags = flags
        self.control = control
        self.layering = layering
        self.inherit_class = inherit_class
        self._subkeys: dict[str, MemoryKey] = {}
        self._values: dict[str, Value] = {}

    def add(self, key: MemoryKey) -> MemoryKey:
        """Put ``key`` in this one, in place of the one of its name, and return it."""
        self._subkeys[fold(key.name)] = key
        return key

    def make(self, name: str) -> MemoryKey:
        """The subkey ``name``, made where there is none, with this key's time and security."""
        found = self._subkeys.get(fold(name))
        return found if found is not None else self.add(MemoryKey(name, time=self.time, security=self.security))

    def put(self, name: str, type: int, data: bytes) -> None:  # noqa: A002  # the format's own name
        """Put a value in this key, in place of the one of its name."""
        self._values[fold(name)] = Value(name, type, data)

    def hide(self, name: str) -> None:
        """Put a tombstone for the value ``name`` in this key."""
        self._values[fold(name)] = Value(name, REG_NONE, b"", tombstone=True)

    def values(self) -> list[Value]:
        """The values, in the order in which their names were first put."""
        return list(self._values.values())

    def subkeys(self) -> list[MemoryKey]:
        """The subkeys, in the order in which they were made."""
        return list(self._subkeys.values())

    def __repr__(self) -> str:
        return f"MemoryKey({self.name!r})"
