# SPDX-License-Identifier: Apache-2.0
"""Lamella: a layer engine for OCI container images.

The names here are all that most programs need; each is loaded when it is first used::

    import lamella

    with lamella.open_image("oci:images:app") as image:
        image.unpack("rootfs")
    lamella.diff("old", "new", "change.tar.gz")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from lamella.changes.losses import Loss, Losses
    from lamella.digests import Digest, parse_digest
    from lamella.errors import LamellaError
    from lamella.layers.policy import Devices, Owners, Policy
    from lamella.operations.filesystem import Filesystem, TreePath
    from lamella.operations.opened import Image, open_image
    from lamella.operations.verbs import apply, copy, diff, flatten, list_changes, pack, unpack, verify
    from lamella.progress import Cancellation, Progress

__version__: Final = "0.1.0"

__all__ = [
    "Cancellation",
    "Devices",
    "Digest",
    "Filesystem",
    "Image",
    "LamellaError",
    "Loss",
    "Losses",
    "Owners",
    "Policy",
    "Progress",
    "TreePath",
    "apply",
    "copy",
    "diff",
    "flatten",
    "list_changes",
    "open_image",
    "pack",
    "parse_digest",
    "unpack",
    "verify",
]

_HOMES: Final = {
    "changes.losses": ("Loss", "Losses"),
    "digests": ("Digest", "parse_digest"),
    "errors": ("LamellaError",),
    "layers.policy": ("Devices", "Owners", "Policy"),
    "operations.filesystem": ("Filesystem", "TreePath"),
    "operations.opened": ("Image", "open_image"),
    "operations.verbs": ("apply", "copy", "diff", "flatten", "list_changes", "pack", "unpack", "verify"),
    "progress": ("Cancellation", "Progress"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"lamella.{home}"), name)
            return value
    raise AttributeError(f"module 'lamella' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
