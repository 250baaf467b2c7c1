# SPDX-License-Identifier: Apache-2.0
"""The ways on which a hostile layer can get onto a disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeAlias

from tests.security.tars import Tar, buffers

from lamella.changes.apply import Limits, apply
from lamella.changes.losses import Losses
from lamella.layers.directory import DirectorySink
from lamella.layers.policy import Policy
from lamella.layers.tarball import tar_changes

Route: TypeAlias = Callable[[Path, Iterable[Tar]], None]


def apply_tar(
    layer: Tar | bytes | Iterable[bytes],
    target: Path,
    *,
    policy: Policy | None = None,
    losses: Losses | None = None,
    limits: Limits | None = None,
) -> Losses:
    """One layer onto a plain directory, straight through the driver."""
    data = layer.done() if isinstance(layer, Tar) else layer
    sink = DirectorySink(target, policy=policy, losses=losses)
    return apply(tar_changes(buffers(data)), sink, limits=limits)


def by_the_driver(target: Path, layers: Iterable[Tar]) -> None:
    for layer in layers:
        apply_tar(layer, target)


ROUTES: Final[dict[str, Route]] = {"driver": by_the_driver}
