# SPDX-License-Identifier: Apache-2.0
"""The kinds of place that a layer can live in, by name. Each is loaded when it is used, and not before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from lamella.changes.contracts import Sink
from lamella.changes.losses import Losses
from lamella.errors import InvalidInput

if TYPE_CHECKING:
    from lamella.layers.policy import Policy


def sink(
    kind: str,
    place: Path,
    parents: Sequence[Path] = (),
    *,
    policy: Policy | None = None,
    losses: Losses | None = None,
) -> Sink[Losses]:
    """The sink that applies a layer to the directory ``place`` as ``kind`` has it.

    ``parents`` are places of the same kind, nearest first. None means that they are not known where the kind keeps
    layers apart; of the kinds for Windows (``"windows"``, ``"cim"``, ``"blockcim"``), that the layer is a base layer.
    Raises InvalidInput for an unknown kind, and for parents where the kind has none; Unsupported where this host
    cannot write the kind.
    """
    try:
        make = SINKS[kind]
    except KeyError:
        raise InvalidInput(f"no kind of layer is called {kind!r}; there are {', '.join(SINKS)}") from None
    return make(place, parents, policy, losses)


def directory_of(kind: str, place: Path) -> Path:
    """What must be there before a layer goes to ``place``. Raises Unsupported where this host cannot write the kind."""
    if kind == "cim":
        return place.parent
    if kind == "blockcim":
        from lamella.layers.blockcim.place import BlockCimLayer, system_calls

        layer = BlockCimLayer.parse(place)
        system_calls()
        return layer.folder
    return place


def _directory(place: Path, parents: Sequence[Path], policy: Policy | None, losses: Losses | None) -> Sink[Losses]:
    from lamella.layers.directory import DirectorySink

    if parents:
        raise InvalidInput("a plain directory has what is below in it; it takes no parents")
    return DirectorySink(place, policy=policy, losses=losses)


def _overlay(place: Path, parents: Sequence[Path], policy: Policy | None, losses: Losses | None) -> Sink[Losses]:
    from lamella.layers.overlay import OverlayLayer, OverlaySink
    from lamella.layers.stack import LayerStack

    stack = LayerStack.from_nearest(OverlayLayer(parent) for parent in parents) if parents else None
    return OverlaySink(OverlayLayer(place), parents=stack, policy=policy, losses=losses)


def _windows(place: Path, parents: Sequence[Path], policy: Policy | None, losses: Losses | None) -> Sink[Losses]:
    from lamella.layers.stack import LayerStack
    from lamella.layers.windows.place import WindowsLayer
    from lamella.layers.windows.sink import WindowsSink

    if policy is not None:
        raise InvalidInput("owners and devices are chosen for POSIX layers; a Windows layer keeps what it has")
    stack = LayerStack.from_nearest(WindowsLayer(parent) for parent in parents) if parents else None
    return WindowsSink(WindowsLayer(place), parents=stack, losses=losses)


def cim_sink(
    place: Path,
    parents: Sequence[Path],
    policy: Policy | None,
    losses: Losses | None,
    *,
    contents: Callable[[], bytes] | None = None,
) -> Sink[Losses]:
    """The sink of the kind ``"cim"``; see `CimSink` for ``contents``."""
    from lamella.layers.cim.files import CimLayer
    from lamella.layers.cim.sink import CimSink
    from lamella.layers.stack import LayerStack

    if policy is not None:
        raise InvalidInput("owners and devices are chosen for POSIX layers; a Windows layer keeps what it has")
    stack = LayerStack.from_nearest(CimLayer(parent) for parent in parents) if parents else None
    return CimSink(CimLayer(place), parents=stack, contents=contents, losses=losses)


def _blockcim(place: Path, parents: Sequence[Path], policy: Policy | None, losses: Losses | None) -> Sink[Losses]:
    from lamella.layers.blockcim.place import BlockCimLayer
    from lamella.layers.blockcim.sink import BlockCimSink
    from lamella.layers.stack import LayerStack

    if policy is not None:
        raise InvalidInput("owners and devices are chosen for POSIX layers; a Windows layer keeps what it has")
    stack = LayerStack.from_nearest(BlockCimLayer.parse(parent) for parent in parents) if parents else None
    return BlockCimSink(BlockCimLayer.parse(place), parents=stack, losses=losses)


MakeSink: TypeAlias = "Callable[[Path, Sequence[Path], Policy | None, Losses | None], Sink[Losses]]"

SINKS: Final[dict[str, MakeSink]] = {
    "directory": _directory,
    "overlay": _overlay,
    "windows": _windows,
    "cim": cim_sink,
    "blockcim": _blockcim,
}
"""Kind of layer -> what makes its sink from the arguments of `sink`."""
