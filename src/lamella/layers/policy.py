# SPDX-License-Identifier: Apache-2.0
"""Choices of the caller about what a place takes over from a layer: owners, devices, extended attributes."""

from __future__ import annotations

import os
from enum import Enum

from msgspec import Struct


class Owners(Enum):
    """What becomes of the owner and group that a layer states."""

    KEEP = "keep"
    """Files get them; needs the rights to do so."""
    IGNORE = "ignore"
    """Files belong to whoever runs this."""
    RECORD = "record"
    """Files belong to whoever runs this; the ids are kept in the attribute ``user.rootlesscontainers``."""


class Devices(Enum):
    """What becomes of character and block devices."""

    CREATE = "create"
    SKIP = "skip"
    """Left out, and reported as lost."""
    RECORD = "record"
    """An empty file whose attribute ``user.containers.override_stat`` says what it stands for."""


class Policy(Struct, frozen=True):
    """How a directory takes a layer. `Policy.default` fits the rights of this process."""

    owners: Owners = Owners.KEEP
    devices: Devices = Devices.CREATE

    @classmethod
    def default(cls) -> Policy:
        """Keep and create for root, record both for everybody else."""
        return cls() if os.geteuid() == 0 else cls(Owners.RECORD, Devices.RECORD)


_REFUSED_PREFIXES = (
    ("trusted.", "attributes of this class steer the host's file systems"),
    ("user.overlay.", "it would steer an overlay mount"),
    ("user.fuseoverlayfs.", "it would steer an overlay mount"),
)
_REFUSED_NAMES = {
    "user.rootlesscontainers": "it would change who owns the file",
    "user.containers.override_stat": "it would change what the file is",
}
_KEPT_SECURITY = frozenset({"security.capability"})
_KEPT_SYSTEM = frozenset({"system.posix_acl_access", "system.posix_acl_default"})


def refusal(name: str) -> str | None:
    """Why the extended attribute ``name`` is never taken from a layer nor into one; None where it is."""
    if name in _KEPT_SECURITY or name in _KEPT_SYSTEM:
        return None
    if name.startswith("security."):
        return "it belongs to the host's security modules"
    if name.startswith("system."):
        return "it belongs to the host's file system"
    for prefix, why in _REFUSED_PREFIXES:
        if name.startswith(prefix):
            return why
    return _REFUSED_NAMES.get(name)
