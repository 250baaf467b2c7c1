# SPDX-License-Identifier: Apache-2.0
"""Digests by the grammar of the OCI image specification (descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

from lamella.errors import InvalidInput, Unsupported

if TYPE_CHECKING:
    from hashlib import _Hash

_GRAMMAR: Final = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_HEX_LENGTH: Final = {"sha256": 64, "sha384": 96, "sha512": 128}


class Digest(str):
    """A checked ``algorithm:hex`` string. Build it with `parse_digest`, `Digest.of` or `Digest.finish`."""

    __slots__ = ()

    @property
    def algorithm(self) -> str:
        """``sha256``, ``sha384`` or ``sha512``."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """The part after the colon: lower-case hexadecimal digits."""
        return self.partition(":")[2]

    @classmethod
    def of(cls, data: bytes | memoryview, algorithm: str = "sha256") -> Digest:
        """The digest of ``data``."""
        return cls.finish(hashlib.new(algorithm, data))

    @classmethod
    def finish(cls, state: _Hash) -> Digest:
        """The digest of a hash object."""
        return cls(f"{state.name}:{state.hexdigest()}")


def parse_digest(raw: str) -> Digest:
    """Parse a digest.

    Raises InvalidInput for malformed text, Unsupported for an unknown algorithm.
    """
    if not _GRAMMAR.fullmatch(raw):
        raise InvalidInput(f"malformed digest {raw[:200]!r}")
    algorithm, _, encoded = raw.partition(":")
    length = _HEX_LENGTH.get(algorithm)
    if length is None:
        raise Unsupported(f"digest algorithm {algorithm!r} is not one of {', '.join(_HEX_LENGTH)}")
    if len(encoded) != length or not re.fullmatch("[a-f0-9]+", encoded):
        raise InvalidInput(f"malformed digest {raw[:200]!r}: {algorithm} needs {length} lower-case hexadecimal digits")
    return Digest(raw)
