# SPDX-License-Identifier: Apache-2.0
"""Keys, values and layering marks of hives, in memory or in files; and merging a delta into its base."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple, Protocol, TypeVar

from lamella.errors import InvalidInput


def fold(name: str) -> str:
    """Fold a name as the registry compares it: upper case, letter by letter.

    Folded names sort like the registry, by UTF-16 units. Letters whose upper case has several letters, like ``ß``, stay
    as they are; so does ``µ``, whose upper case is in another alphabet.
    """
    if name.isascii():
        return name.upper()
    return "".join(map(_fold_letter, name))


def _fold_letter(letter: str) -> str:
    if letter > "\uffff":  # two surrogates without case
        code = ord(letter) - 0x10000
        return chr(0xD800 + (code >> 10)) + chr(0xDC00 + (code & 0x3FF))
    if letter == "\xb5":
        return letter
    upper = letter.upper()
    if len(upper) > 1:
        upper = letter.title()
    return upper if len(upper) == 1 else letter


def encode(name: str) -> tuple[bytes, bool]:
    """Encode a name as Latin-1 if possible, else UTF-16; and whether it is Latin-1."""
    try:
        return name.encode("latin-1"), True
    except UnicodeEncodeError:
        return name.encode("utf-16-le", "surrogatepass"), False


def units(name: str) -> int:
    """Length of a name in UTF-16 units."""
    return len(name) if name.isascii() else len(name.encode("utf-16-le", "surrogatepass")) // 2


def name_hash(folded: str) -> int:
    """The hash of a folded name in a list of subkeys."""
    total = 0
    for unit in map(ord, folded):
        total = total * 37 + unit
    return total & 0xFFFFFFFF


def split_path(path: str) -> list[str]:
    """Split the path of a key at backslashes, or at slashes if it has no backslash.

    Names may contain slashes (``\\MIME\\Database\\Content Type\\text/plain``), but no backslashes.
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
"""Flag of a symbolic link, whose target is in its value ``SymbolicLinkValue``."""

DEFAULT_SECURITY: Final = bytes.fromhex(
    "010004801400000024000000000000003000000001020000000000052000000020020000010100000000000512000000"
    "02004c0003000000000214003f000f00010100000000000512000000000218003f000f00010200000000000520000000"
    "20020000000218001900020001020000000000052000000021020000"
)
"""O:BAG:SYD:(A;CI;KA;;;SY)(A;CI;KA;;;BA)(A;CI;KR;;;BU): SYSTEM and administrators write, users read."""


class Layering(IntEnum):
    """Effect of a delta's key on the key of the same name in the base."""

    MERGE = 0
    """Values replace those of the base, subkeys are merged."""
    TOMBSTONE = 1
    """The key of the base is removed with its subtree."""
    SUPERSEDE_LOCAL = 2
    """The values of the base are dropped, subkeys are merged."""
    SUPERSEDE_TREE = 3
    """Values and subkeys of the base are dropped."""


class Value(NamedTuple):
    """A value of a key. The default value has an empty name; a tombstone hides the value in the base."""

    name: str
    type: int
    data: bytes
    tombstone: bool = False


class Key(Protocol):
    """A key for the writer and for merging; values and subkeys are computed lazily.

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
    """A key in memory: ``root = MemoryKey(""); root.make("Software").put("Name", REG_SZ, b"...")``."""

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
        """Add or replace a subkey, and return it."""
        self._subkeys[fold(key.name)] = key
        return key

    def make(self, name: str) -> MemoryKey:
        """Get or create the subkey ``name``, with this key's time and security."""
        found = self._subkeys.get(fold(name))
        return found if found is not None else self.add(MemoryKey(name, time=self.time, security=self.security))

    def put(self, name: str, type: int, data: bytes) -> None:  # noqa: A002  # the format's own name
        """Set a value."""
        self._values[fold(name)] = Value(name, type, data)

    def hide(self, name: str) -> None:
        """Set a tombstone for a value."""
        self._values[fold(name)] = Value(name, REG_NONE, b"", tombstone=True)

    def values(self) -> list[Value]:
        """Values in the order of creation."""
        return list(self._values.values())

    def subkeys(self) -> list[MemoryKey]:
        """Subkeys in the order of creation."""
        return list(self._subkeys.values())

    def __repr__(self) -> str:
        return f"MemoryKey({self.name!r})"


T = TypeVar("T", Key, Value)


def merge_keys(base: Key | None, delta: Key) -> Key:
    """Merge ``delta`` into ``base``: a lazy view without layering marks.

    ``base`` must have no marks itself; without one, ``merge_keys(None, delta)``, the result still has none. Keys that
    ``delta`` does not mention are those of ``base``. Raises InvalidInput if ``delta`` is a tombstone.
    """
    if delta.layering is Layering.TOMBSTONE:
        raise InvalidInput(f"the delta removes the root key {delta.name!r}, which a hive must have")
    return MergedKey(base, delta)


class MergedKey:
    """View of a merged key, with the newer time, the security of the delta, and the spelling of the base.

    Raises InvalidInput if names of two subkeys or values in one hive differ at most in case.
    """

    __slots__ = ("_above", "_base", "_delta")

    layering = Layering.MERGE
    inherit_class = False

    def __init__(self, base: Key | None, delta: Key) -> None:
        if delta.layering is Layering.SUPERSEDE_TREE:
            base = None
        self._base = base
        self._delta = delta
        self._above = delta.layering is Layering.MERGE and base is not None

    @property
    def name(self) -> str:
        """The name in the base, if any."""
        return self._delta.name if self._base is None else self._base.name

    @property
    def time(self) -> int:
        """The newer time."""
        return self._delta.time if self._base is None else max(self._base.time, self._delta.time)

    @property
    def flags(self) -> int:
        """The flags of both: a link stays a link."""
        return self._delta.flags | (self._base.flags if self._base is not None and self._above else 0)

    @property
    def control(self) -> int:
        """The flags of both."""
        return self._delta.control | (self._base.control if self._base is not None and self._above else 0)

    @property
    def security(self) -> bytes:
        """The security of the delta, which every key has."""
        return self._delta.security

    @property
    def class_name(self) -> str:
        """The class of the delta, unless it inherits that of the base."""
        if self._base is not None and self._above and self._delta.inherit_class:
            return self._base.class_name
        return self._delta.class_name

    def values(self) -> list[Value]:
        """Values in the order of the base; new ones at the end."""
        above = _index_by_name(self._delta.values(), self._delta)
        if self._base is not None and self._above:
            above = {**_index_by_name(self._base.values(), self._base), **above}
        return [value for value in above.values() if not value.tombstone]

    def subkeys(self) -> list[Key]:
        """Subkeys in the order of the base; new ones at the end."""
        delta = self._delta.subkeys()
        if self._base is None:
            return [MergedKey(None, key) for key in delta if key.layering is not Layering.TOMBSTONE]
        below = self._base.subkeys()
        if not delta:
            return list(below)
        keys = _index_by_name(below, self._base)
        for name, key in _index_by_name(delta, self._delta).items():
            if key.layering is Layering.TOMBSTONE:
                keys.pop(name, None)
            else:
                keys[name] = MergedKey(keys.get(name), key)
        return list(keys.values())

    def __repr__(self) -> str:
        return f"<MergedKey {self.name!r}>"


def _index_by_name(found: Sequence[T], key: Key) -> dict[str, T]:
    named = {fold(one.name): one for one in found}
    if len(named) != len(found):
        raise InvalidInput(f"two names in key {key.name!r} differ at most in case")
    return named
