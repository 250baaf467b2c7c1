# SPDX-License-Identifier: Apache-2.0
"""What each image is made of.

A recipe is a list of layers, a layer a list of packages. npm packages and Python wheels are pinned, since their
registries keep every version; Debian's mirrors keep the newest alone, so its packages are named without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Layer:
    """The packages of one layer, and the paths below it that the layer removes."""

    debian: tuple[str, ...] = ()
    wheels: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    removes: tuple[str, ...] = ()
    least: int = 0
    """Files smaller than this are left out."""


def named(*lists: str) -> tuple[str, ...]:
    """Return the packages of some of the lists beside this module."""
    folder = Path(__file__).with_name("names")
    return tuple(name for item in lists for name in (folder / f"{item}.txt").read_text().split())


RECIPES: dict[str, tuple[Layer, ...]] = {
    "large": (
        Layer(debian=named("debian-root", "debian-toolchain")),
        Layer(wheels=named("wheels"), removes=("usr/share/info", "usr/share/doc/git/RelNotes", "var/log/lastlog")),
        Layer(npm=named("npm"), removes=("usr/share/vim/vim91/tutor",)),
    ),
    "few-big": (Layer(debian=named("debian-big-files"), least=1 << 20),),
    "many-small": (Layer(wheels=named("wheels-small-files"), npm=named("npm", "npm-small-files")),),
    "debian": (Layer(debian=named("debian-root")),),
}
