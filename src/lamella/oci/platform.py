# SPDX-License-Identifier: Apache-2.0
"""Platforms: what an image was built for, and which of several images suits one best.

Follows the image index specification and, for names and variants, what containerd takes. An architecture is never
crossed: a request for arm64 is not answered with an arm image, nor one for amd64 with a 386 image, since what is
asked for here may be unpacked anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, TypeVar

import msgspec

from lamella.errors import InvalidInput
from lamella.oci.documents import Document

_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "armhf": "arm/v7",
    "armel": "arm/v6",
    "armv5l": "arm/v5",
    "armv6l": "arm/v6",
    "armv7l": "arm/v7",
    "armv8l": "arm/v8",
}
_SYSTEMS: Final = {"macos": "darwin"}
_KNOWN_SYSTEMS: Final = frozenset(
    {"linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "dragonfly", "solaris", "illumos", "aix", "android"}
    | {"plan9", "wasi", "js", "ios"}
)

_SPELLING: Final = re.compile(
    r"(?P<os>[A-Za-z0-9_.-]+)(?:\((?P<version>[A-Za-z0-9_.-]*)(?P<features>(?:\+[A-Za-z0-9_.-]+)*)\))?"
    r"(?:/(?P<architecture>[A-Za-z0-9_.-]+)(?:/(?P<variant>[A-Za-z0-9_.-]+))?)?"
)
_VARIANT: Final = re.compile(r"v([0-9]{1,4})(?:\.([0-9]{1,4}))?")

_BASELINE: Final = {"arm": (7, 0), "arm64": (8, 0), "amd64": (1, 0)}
"""The variant that no variant means; these architectures run what was built for a lower one."""


class Platform(Document, frozen=True, kw_only=True):
    """The ``platform`` of a descriptor; its string form is ``os[(os.version[+feature...])]/architecture[/variant]``."""

    architecture: str
    os: str
    os_version: str = msgspec.field(name="os.version", default="")
    os_features: list[str] = msgspec.field(name="os.features", default_factory=list)
    variant: str = ""

    def __str__(self) -> str:
        release = "".join([self.os_version, *(f"+{feature}" for feature in self.os_features)])
        text = f"{self.os}({release})" if release else self.os
        return "/".join(part for part in (text, self.architecture, self.variant) if part)


def parse_platform(text: str) -> Platform:
    """The platform that ``text`` writes, as in ``linux/arm64/v8``, ``windows(10.0.20348)/amd64``, ``linux``, ``arm64``.

    What is left out is the host's. Names that uname uses (``x86_64``, ``aarch64``) are understood.
    Raises InvalidInput.
    """
    match = _SPELLING.fullmatch(text)
    if match is None:
        raise InvalidInput(
            f"malformed platform {text[:100]!r}", hint="write it as os/architecture[/variant], as in linux/arm64/v8"
        )
    system, architecture = match["os"].lower(), (match["architecture"] or "").lower()
    version = match["version"] or ""
    features = [one for one in (match["features"] or "").split("+") if one]
    host = host_platform()
    if not architecture:
        if _SYSTEMS.get(system, system) in _KNOWN_SYSTEMS:
            architecture = "/".join(part for part in (host.architecture, host.variant) if part)
        elif version or features:
            raise InvalidInput(f"malformed platform {text[:100]!r}: {system!r} is no operating system that is known")
        else:
            system, architecture = host.os, system
    architecture, _, implied = _ARCHITECTURES.get(architecture, architecture).partition("/")
    return Platform(
        architecture=architecture,
        os=_SYSTEMS.get(system, system),
        os_version=version,
        os_features=features,
        variant=(match["variant"] or implied).lower(),
    )


def host_platform() -> Platform:
    """What this machine runs; images for Linux where the system is neither Linux nor Windows."""
    import platform as machine

    system = "windows" if machine.system() == "Windows" else "linux"
    name = machine.machine().lower() or "amd64"
    architecture, _, variant = _ARCHITECTURES.get(name, name).partition("/")
    return Platform(architecture=architecture, os=system, variant=variant)


T = TypeVar("T")


def best_match(wanted: Platform, offers: Iterable[tuple[Platform, T]]) -> T | None:
    """What goes with the offered platform that suits ``wanted`` best; the first of equals, None where none suits.

    A variant suits when it is the wanted one or a lower one of arm, arm64 or amd64; the nearest is best. A Windows
    version suits when it has the same build. Features that are asked for bound those an image may need.
    """
    best: T | None = None
    best_score: tuple[int, ...] | None = None
    for offered, what in offers:
        score = _score(wanted, offered)
        if score is not None and (best_score is None or score > best_score):
            best, best_score = what, score
    return best


def matches(wanted: Platform, offered: Platform) -> bool:
    """Whether an image for ``offered`` suits ``wanted``."""
    return _score(wanted, offered) is not None


def _score(wanted: Platform, offered: Platform) -> tuple[int, ...] | None:
    """Higher is better, None is unsuitable."""
    os = _SYSTEMS.get(offered.os.lower(), offered.os.lower())
    name, _, implied = _ARCHITECTURES.get(offered.architecture.lower(), offered.architecture.lower()).partition("/")
    if os != wanted.os or name != wanted.architecture:
        return None
    version = 0
    if wanted.os_version and offered.os_version:
        if wanted.os_version == offered.os_version:
            version = 2
        elif wanted.os == "windows" and _build(wanted.os_version) == _build(offered.os_version):
            version = 1
        else:
            return None
    features = 0
    if wanted.os_features:
        if not set(offered.os_features) <= set(wanted.os_features):
            return None
        features = len(set(offered.os_features))
    variant = _variant_score(name, wanted.variant, (offered.variant or implied).lower())
    return None if variant is None else (*variant, version, features)


def _variant_score(architecture: str, wanted: str, offered: str) -> tuple[int, int] | None:
    baseline = _BASELINE.get(architecture)
    if baseline is None:
        return (0, 0) if wanted == offered else None
    ours, theirs = _level(wanted, baseline), _level(offered, baseline)
    if ours is None or theirs is None:
        return (0, 0) if wanted == offered else None
    if architecture == "arm64" and (ours[0], theirs[0]) == (9, 8):
        return theirs if theirs[1] <= ours[1] + 5 else None  # armv9.0 has what armv8.5 has, and so on
    return theirs if theirs <= ours else None


def _level(variant: str, baseline: tuple[int, int]) -> tuple[int, int] | None:
    if not variant:
        return baseline
    match = _VARIANT.fullmatch(variant)
    return (int(match[1]), int(match[2] or 0)) if match else None


def _build(version: str) -> list[str]:
    return version.split(".")[:3]
