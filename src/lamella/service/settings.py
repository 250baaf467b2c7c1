# SPDX-License-Identifier: Apache-2.0
"""The settings of a service from a file, in TOML: what its options say, by their names."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path

from lamella.errors import InvalidInput, from_os

MAX_SIZE = 1 << 20
"""Bytes of a file of settings."""


def read_settings(path: Path, known: Mapping[str, Collection[str] | None]) -> dict[str, str]:
    """What the file at ``path`` says of the settings in ``known``, each with the values that it may have, None for any.

    Raises NotFound, Denied, InvalidInput (no TOML, another setting, a value that is no text or not one of those).
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_SIZE + 1)
    except OSError as problem:
        raise from_os(problem, f"read the settings in {str(path)!r}") from problem
    if len(raw) > MAX_SIZE:
        raise InvalidInput(f"{str(path)!r} has more than {MAX_SIZE} bytes")
    try:
        found = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise InvalidInput(f"{str(path)!r} is not TOML: {problem}") from problem
    for name, value in found.items():
        if name not in known:
            raise InvalidInput(f"{str(path)!r}: there is no setting {name!r}", hint=f"known are {', '.join(known)}")
        if not isinstance(value, str) or not value:
            raise InvalidInput(f"{str(path)!r}: the setting {name!r} must be text, in quotes")
        values = known[name]
        if values is not None and value not in values:
            raise InvalidInput(f"{str(path)!r}: the setting {name!r} is {value!r}, not one of {', '.join(values)}")
    return found
