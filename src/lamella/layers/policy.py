# SPDX-License-Identifier: Apache-2.0
"""Policy for applying layers to directories: owners, devices, extended attributes."""

from __future__ import annotations

import os
from enum import Enum

from msgspec import Struct


class Owners(Enum):
    """What happens to the owner and group of a file in a layer."""

    KEEP = "keep"
    """Files get them; this takes the rights to change owners."""
    IGNORE = "ignore"
    """Files belong to the current user."""
    RECORD = "record"
    """Files belong to the current user; the ids are in the attribute ``user.rootlesscontainers``."""


class Devices(Enum):
    """What happens to character and block devices."""

    CREATE = "create"
    SKIP = "skip"
    """Left out, and reported as a loss."""
    RECORD = "record"
    """An empty file with the device in the attribute ``user.containers.override_stat``."""


class Policy(Struct, frozen=True):
    """How a layer is applied to a directory. `Policy.default` fits the rights of this process."""

    owners: Owners = Owners.KEEP
    devices: Devices = Devices.CREATE

    @classmethod
    def default(cls) -> Policy:
        """Keep owners and create devices for root; record both for other users."""
        return cls() if os.geteuid() == 0 else cls(Owners.RECORD, Devices.RECORD)


_REFUSED_PREFIXES = (
    ("trusted.", "attributes of this class control the file systems of the host"),
    ("user.overlay.", "it would control an overlay mount"),
    ("user.fuseoverlayfs.", "it would control an overlay mount"),
)
_REFUSED_NAMES = {
    "user.rootlesscontainers": "it would change who owns the file",
    "user.containers.override_stat": "it would change what the file is",
}
_KEPT_SECURITY = frozenset({"security.capability"})
_KEPT_SYSTEM = frozenset({"system.posix_acl_access", "system.posix_acl_default"})


def refusal(name: str) -> str | None:
    """Why the extended attribute ``name`` is never read from a layer or written to one; None if it is."""
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
