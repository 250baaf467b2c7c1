# SPDX-License-Identifier: Apache-2.0
"""Platforms of images: parsing, and choosing the best match.

Follows the image index specification and, for names and variants, containerd. Architectures never match each other: a
request for arm64 does not get an arm image, nor one for amd64 a 386 image, since the image may be unpacked anywhere.
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
"""The default variant; these architectures also run images built for lower variants."""


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
    """Parse a platform: ``linux/arm64/v8``, ``windows(10.0.20348)/amd64``, ``linux``, ``arm64``.

    Missing parts are those of the host. Names used by uname (``x86_64``, ``aarch64``) are accepted.
    Raises InvalidInput.
    """
    match = _SPELLING.fullmatch(text)
    if match is None:
        raise InvalidInput(
            f"malformed platform {text[:100]!r}",
            hint="the form is os/architecture[/variant], for example linux/arm64/v8",
        )
    system, architecture = match["os"].lower(), (match["architecture"] or "").lower()
    version = match["version"] or ""
    features = [one for one in (match["features"] or "").split("+") if one]
    host = host_platform()
    if not architecture:
        if _SYSTEMS.get(system, system) in _KNOWN_SYSTEMS:
            architecture = "/".join(part for part in (host.architecture, host.variant) if part)
        elif version or features:
            raise InvalidInput(f"malformed platform {text[:100]!r}: unknown operating system {system!r}")
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
    """The platform of this host; Linux if the system is neither Linux nor Windows."""
    import platform as machine

    system = "windows" if machine.system() == "Windows" else "linux"
    name = machine.machine().lower() or "amd64"
    architecture, _, variant = _ARCHITECTURES.get(name, name).partition("/")
    return Platform(architecture=architecture, os=system, variant=variant)


T = TypeVar("T")


def best_match(wanted: Platform, offers: Iterable[tuple[Platform, T]]) -> T | None:
    """The item whose platform matches ``wanted`` best; the first of equals; None if none matches.

    For arm, arm64 and amd64 a lower variant matches too; the nearest one is best. A Windows version matches if the
    build is the same. If features are requested, the image may need no others.
    """
    best: T | None = None
    best_score: tuple[int, ...] | None = None
    for offered, what in offers:
        score = _score(wanted, offered)
        if score is not None and (best_score is None or score > best_score):
            best, best_score = what, score
    return best


def matches(wanted: Platform, offered: Platform) -> bool:
    """Whether an image for ``offered`` matches ``wanted``."""
    return _score(wanted, offered) is not None


def _score(wanted: Platform, offered: Platform) -> tuple[int, ...] | None:
    """The score of a match, higher is better; None for no match."""
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
        return theirs if theirs[1] <= ours[1] + 5 else None  # armv9.0 includes armv8.5, and so on
    return theirs if theirs <= ours else None


def _level(variant: str, baseline: tuple[int, int]) -> tuple[int, int] | None:
    if not variant:
        return baseline
    match = _VARIANT.fullmatch(variant)
    return (int(match[1]), int(match[2] or 0)) if match else None


def _build(version: str) -> list[str]:
    return version.split(".")[:3]
