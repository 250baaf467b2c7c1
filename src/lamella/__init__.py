# SPDX-License-Identifier: Apache-2.0
"""Lamella: a layer engine for OCI container images.

The names here are what most programs need; each is loaded at its first use::

    import lamella

    with lamella.open_image("oci:images:app") as image:
        image.unpack("rootfs")
    lamella.diff("before", "after", "change.tar.gz")
    lamella.Image.open("oci:images:app").append({"etc/motd": "hello\\n"}).write("oci:images:more")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from lamella.changes.job import Job
    from lamella.changes.losses import Loss, Losses
    from lamella.digests import Digest, parse_digest
    from lamella.errors import LamellaError
    from lamella.host.durability import durable_outputs
    from lamella.layers.policy import Devices, Owners, Policy
    from lamella.operations.copy import copy
    from lamella.operations.image import Image, open_image
    from lamella.operations.layers.apply import ApplyOptions
    from lamella.operations.layers.apply import apply_blob as apply
    from lamella.operations.layers.diff import DiffOptions, diff, list_changes
    from lamella.operations.layers.write import LayerOptions
    from lamella.operations.pack import PackOptions, pack
    from lamella.operations.surgery.append import AppendOptions, append
    from lamella.operations.surgery.convert import ConvertOptions, convert
    from lamella.operations.surgery.flatten import FlattenOptions, flatten
    from lamella.operations.surgery.index import index, subset
    from lamella.operations.surgery.mutate import Settings, mutate
    from lamella.operations.surgery.new_layers import Directory, File, Symlink
    from lamella.operations.surgery.rebase import rebase
    from lamella.operations.trees.compare import compare
    from lamella.operations.trees.filesystem import Filesystem, TreePath
    from lamella.operations.verify import verify
    from lamella.progress import Cancellation, Progress

__version__: Final = "0.1.0"

__all__ = [
    "AppendOptions",
    "ApplyOptions",
    "Cancellation",
    "ConvertOptions",
    "Devices",
    "DiffOptions",
    "Digest",
    "Directory",
    "File",
    "Filesystem",
    "FlattenOptions",
    "Image",
    "Job",
    "LamellaError",
    "LayerOptions",
    "Loss",
    "Losses",
    "Owners",
    "PackOptions",
    "Policy",
    "Progress",
    "Settings",
    "Symlink",
    "TreePath",
    "append",
    "apply",
    "compare",
    "convert",
    "copy",
    "diff",
    "durable_outputs",
    "flatten",
    "index",
    "list_changes",
    "mutate",
    "open_image",
    "pack",
    "parse_digest",
    "rebase",
    "subset",
    "verify",
]

_HOMES: Final = {
    "AppendOptions": "operations.surgery.append",
    "ApplyOptions": "operations.layers.apply",
    "Cancellation": "progress",
    "ConvertOptions": "operations.surgery.convert",
    "Devices": "layers.policy",
    "DiffOptions": "operations.layers.diff",
    "Digest": "digests",
    "Directory": "operations.surgery.new_layers",
    "File": "operations.surgery.new_layers",
    "Filesystem": "operations.trees.filesystem",
    "FlattenOptions": "operations.surgery.flatten",
    "Image": "operations.image",
    "Job": "changes.job",
    "LamellaError": "errors",
    "LayerOptions": "operations.layers.write",
    "Loss": "changes.losses",
    "Losses": "changes.losses",
    "Owners": "layers.policy",
    "PackOptions": "operations.pack",
    "Policy": "layers.policy",
    "Progress": "progress",
    "Settings": "operations.surgery.mutate",
    "Symlink": "operations.surgery.new_layers",
    "TreePath": "operations.trees.filesystem",
    "append": "operations.surgery.append",
    "apply": "operations.layers.apply:apply_blob",
    "compare": "operations.trees.compare",
    "convert": "operations.surgery.convert",
    "copy": "operations.copy",
    "diff": "operations.layers.diff",
    "durable_outputs": "host.durability",
    "flatten": "operations.surgery.flatten",
    "index": "operations.surgery.index",
    "list_changes": "operations.layers.diff",
    "mutate": "operations.surgery.mutate",
    "open_image": "operations.image",
    "pack": "operations.pack",
    "parse_digest": "digests",
    "rebase": "operations.surgery.rebase",
    "subset": "operations.surgery.index",
    "verify": "operations.verify",
}
"""Name -> its module, and its name there if that differs."""


def __getattr__(name: str) -> Any:
    try:
        home, _, real = _HOMES[name].partition(":")
    except KeyError:
        raise AttributeError(f"module 'lamella' has no attribute {name!r}") from None
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"lamella.{home}"), real or name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
