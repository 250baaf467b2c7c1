# SPDX-License-Identifier: Apache-2.0
"""All routes by which a hostile layer can reach a disk."""

from __future__ import annotations

import signal
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from tests.security.surroundings import listing
from tests.security.tars import Tar, buffers

from lamella.changes.apply import apply
from lamella.changes.limits import Limits
from lamella.changes.losses import Losses
from lamella.changes.model import Kind
from lamella.changes.tree import walk
from lamella.cli.main import run
from lamella.errors import EXIT_STATUS, LamellaError
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.overlay.layer import OverlayLayer
from lamella.layers.overlay.sink import OverlaySink
from lamella.layers.overlay.tree import OverlayTree
from lamella.layers.policy import Policy
from lamella.layers.stack import LayerStack
from lamella.layers.tar.source import tar_changes
from lamella.testing.images import OCI, compact, digest, tagged, write_layout
from lamella.testing.reading import held

Route: TypeAlias = Callable[[Path, Path, list[bytes]], Mapping[str, str]]
"""Takes the existing empty target, a work directory and tars; returns the resulting content of the target."""


def apply_tar(
    layer: Tar | bytes | Iterable[bytes],
    target: Path,
    *,
    policy: Policy | None = None,
    losses: Losses | None = None,
    limits: Limits | None = None,
) -> Losses:
    """Apply one layer to a plain directory, directly through the driver."""
    data = layer.done() if isinstance(layer, Tar) else layer
    sink = DirectorySink(target, policy=policy, losses=losses)
    return apply(tar_changes(buffers(data)), sink, limits=limits)


def gzipped(tar: bytes) -> bytes:
    return zlib.compress(tar, 1, 31)


@dataclass(slots=True)
class CommandFailed(Exception):
    """The command line ended with this exit code."""

    code: int


def category(error: type[LamellaError]) -> int:
    """Return the exit code of ``error``."""
    return next(code for kind, code, _ in EXIT_STATUS if issubclass(error, kind))


def lamella(*words: str | Path) -> None:
    """Run the command line in this process. Raises CommandFailed."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    try:
        code = run([str(word) for word in words])
    finally:
        for number, action in zip(numbers, before, strict=True):
            signal.signal(number, action)
    if code:
        raise CommandFailed(code)


def image_of(place: Path, blobs: Iterable[bytes], tars: Iterable[bytes]) -> str:
    """Write an image of ``blobs``, the compressed ``tars``, and return its name."""
    blobs = list(blobs)
    config = compact(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar in tars]},
        }
    )
    manifest = compact(
        {
            "schemaVersion": 2,
            "mediaType": OCI + "manifest.v1+json",
            "config": {"mediaType": OCI + "config.v1+json", "digest": digest(config), "size": len(config)},
            "layers": [
                {"mediaType": OCI + "layer.v1.tar+gzip", "digest": digest(blob), "size": len(blob)} for blob in blobs
            ],
        }
    )
    entry = {"mediaType": OCI + "manifest.v1+json", "digest": digest(manifest), "size": len(manifest)}
    write_layout(str(place), [tagged(entry, "x")], {digest(raw): raw for raw in (config, manifest, *blobs)})
    return f"oci:{place}:x"


def by_the_driver(target: Path, work: Path, tars: list[bytes]) -> Mapping[str, str]:
    for tar in tars:
        apply_tar(tar, target)
    return listing(target)


def by_the_command_line(target: Path, work: Path, tars: list[bytes]) -> Mapping[str, str]:
    for tar in tars:
        (work / "blob").write_bytes(gzipped(tar))
        lamella("apply", "-q", work / "blob", target)
    return listing(target)


def as_an_image(target: Path, work: Path, tars: list[bytes]) -> Mapping[str, str]:
    """Unpack; a failure must leave neither the target nor anything beside it."""
    target.rmdir()
    beside = set(target.parent.iterdir())
    try:
        lamella("unpack", "-q", image_of(work / "image", map(gzipped, tars), tars), target)
    except CommandFailed:
        assert set(target.parent.iterdir()) == beside
        raise
    assert {*beside, target} == set(target.parent.iterdir())
    return listing(target)


def into_upper_directories(target: Path, work: Path, tars: list[bytes]) -> Mapping[str, str]:
    """Return the merged view of all layers."""
    stack: LayerStack[OverlayLayer] = LayerStack(())
    for number, tar in enumerate(tars):
        upper = target / str(number)
        upper.mkdir()
        layer = OverlayLayer(upper)
        apply(tar_changes(buffers(tar)), OverlaySink(layer, parents=stack))
        stack = stack.with_top(layer)
    told: dict[str, str] = {}
    with OverlayTree(stack) as tree:
        paths = [change.entry.path if hasattr(change, "entry") else change.path for change in walk(tree)]
        for path in paths:
            entry = tree.lookup(path)
            assert entry is not None
            assert entry.posix is not None
            match entry.kind:
                case Kind.DIRECTORY | Kind.FIFO:
                    told[path] = f"{entry.kind.value} {entry.posix.mode:o}"
                case Kind.SYMLINK:
                    told[path] = f"-> {entry.target}"
                case Kind.FILE:
                    told[path] = f"{entry.posix.mode:o} {held(tree.open(path))[:64].decode('latin-1')}"
                case kind:
                    told[path] = f"{kind.value[0]} {entry.posix.mode:o} {entry.posix.device[0]}:{entry.posix.device[1]}"
    del told[""]
    return told


ROUTES: Final[dict[str, Route]] = {
    "driver": by_the_driver,
    "command line": by_the_command_line,
    "image": as_an_image,
    "overlay": into_upper_directories,
}
