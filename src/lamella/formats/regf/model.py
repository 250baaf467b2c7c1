# SPDX-License-Identifier: Apache-2.0
"""What a hive holds, wherever it comes from: keys, their values, and the marks that a delta lays over other keys."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

from lamella.formats.regf.names import fold

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
    def name(self) -> str: ...  # noqa: D102

    @property
    def time(self) -> int: ...  # noqa: D102

    @property
    def flags(self) -> int: ...  # noqa: D102

    @property
    def control(self) -> int: ...  # noqa: D102

    @property
    def security(self) -> bytes: ...  # noqa: D102

    @property
    def class_name(self) -> str: ...  # noqa: D102

    @property
    def layering(self) -> Layering: ...  # noqa: D102

    @property
    def inherit_class(self) -> bool: ...  # noqa: D102

    def values(self) -> Sequence[Value]: ...  # noqa: D102

    def subkeys(self) -> Sequence[Key]: ...  # noqa: D102


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
