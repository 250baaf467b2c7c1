# SPDX-License-Identifier: Apache-2.0
"""A delta laid over the hive that it was made against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from lamella.errors import InvalidInput
from lamella.formats.regf.keys import Key, Layering, Value, fold

T = TypeVar("T", Key, Value)


def merged(base: Key | None, delta: Key) -> Key:
    """The key that ``delta`` makes of ``base``: a view without marks, computed as it is read.

    ``base`` must have no marks itself; a delta over nothing, ``merged(None, delta)``, has none. What ``delta`` does
    not mention is handed out as it is in ``base``. Raises InvalidInput where ``delta`` is a tombstone.
    """
    if delta.layering is Layering.TOMBSTONE:
        raise InvalidInput(f"the delta removes the root key {delta.name!r}, which a hive must have")
    return MergedKey(base, delta)


class MergedKey:
    """`merged`; its time is the newest, its security that of the delta, and its name is spelled as below.

    Raises InvalidInput where the names of two subkeys or values in one hive differ at most in case.
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
        """Of the key below, where there is one."""
        return self._delta.name if self._base is None else self._base.name

    @property
    def time(self) -> int:
        """The newest."""
        return self._delta.time if self._base is None else max(self._base.time, self._delta.time)

    @property
    def flags(self) -> int:
        """Those of both: a link stays one."""
        return self._delta.flags | (self._base.flags if self._base is not None and self._above else 0)

    @property
    def control(self) -> int:
        """Those of both."""
        return self._delta.control | (self._base.control if self._base is not None and self._above else 0)

    @property
    def security(self) -> bytes:
        """The delta's: each of its keys has one."""
        return self._delta.security

    @property
    def class_name(self) -> str:
        """The delta's, unless it leaves the class to the key below."""
        if self._base is not None and self._above and self._delta.inherit_class:
            return self._base.class_name
        return self._delta.class_name

    def values(self) -> list[Value]:
        """Those below in their order, with the delta's in their places or at the end."""
        above = _by_name(self._delta.values(), self._delta)
        if self._base is not None and self._above:
            above = {**_by_name(self._base.values(), self._base), **above}
        return [value for value in above.values() if not value.tombstone]

    def subkeys(self) -> list[Key]:
        """Those below in their order, with the delta's in their places or at the end."""
        delta = self._delta.subkeys()
        if self._base is None:
            return [MergedKey(None, key) for key in delta if key.layering is not Layering.TOMBSTONE]
        below = self._base.subkeys()
        if not delta:
            return list(below)
        keys = _by_name(below, self._base)
        for name, key in _by_name(delta, self._delta).items():
            if key.layering is Layering.TOMBSTONE:
                keys.pop(name, None)
            else:
                keys[name] = MergedKey(keys.get(name), key)
        return list(keys.values())

    def __repr__(self) -> str:
        return f"<MergedKey {self.name!r}>"


def _by_name(found: Sequence[T], key: Key) -> dict[str, T]:
    named = {fold(one.name): one for one in found}
    if len(named) != len(found):
        raise InvalidInput(f"two names in key {key.name!r} differ at most in case")
    return named
