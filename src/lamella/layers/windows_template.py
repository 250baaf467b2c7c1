# SPDX-License-Identifier: Apache-2.0
"""What files get that become a Windows layer and have nothing of Windows yet, as somebody says it in words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate
from typing import Final

from msgspec import Struct

from lamella.errors import InvalidInput
from lamella.formats.ntfs import attributes, names, sddl
from lamella.layers.facets import SecurityTemplate, usual_security

NONE: Final = "none"
"""In place of a descriptor: files have none, and inherit one where they are unpacked."""


class WindowsTemplate(Struct, frozen=True):
    """Security descriptors, and attributes for the files whose path on drive C a pattern matches."""

    security: SecurityTemplate
    attributes: tuple[tuple[re.Pattern[str], int], ...] = ()
    """Patterns of paths as NTFS compares them, and the bits that are set besides those of the kind of file."""

    def bits(self, path: str) -> int:
        """The further attributes of the file ``path``; that is relative to drive C, with slashes."""
        folded = names.folded(path)
        found = 0
        for pattern, bits in self.attributes:
            if pattern.match(folded):
                found |= bits
        return found


def parse_template(
    file_security: str | None = None, directory_security: str | None = None, attributes: Iterable[str] = ()
) -> WindowsTemplate:
    """The template for descriptors in SDDL, or ``none``, and attributes as ``PATTERN=hidden,system``.

    What is None is as `usual_security` has it. ``*`` in a pattern stands for any characters, slashes too, and case does
    not matter. Raises InvalidInput, and Unsupported for accounts that only a domain knows.
    """
    usual = usual_security()
    security = SecurityTemplate(
        usual.directory if directory_security is None else _descriptor(directory_security),
        usual.file if file_security is None else _descriptor(file_security),
    )
    return WindowsTemplate(security, tuple(map(_attributes, attributes)))


def _descriptor(text: str) -> bytes | None:
    return None if text == NONE else sddl.parse(text).encode()


def _attributes(text: str) -> tuple[re.Pattern[str], int]:
    pattern, equals, words = text.rpartition("=")
    if not equals or not pattern:
        raise InvalidInput(f"attributes {text!r}: expected PATTERN=NAME[,NAME...]")
    bits = 0
    for word in words.split(","):
        bits |= attributes.parse_settable(word)
    return re.compile(translate(names.folded(pattern.replace("\\", "/").removeprefix("/")))), bits
