# SPDX-License-Identifier: Apache-2.0
"""Image references by the grammar of the distribution project."""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from lamella.digests import Digest, parse_digest
from lamella.errors import InvalidInput

DEFAULT_REGISTRY: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
MAX_NAME: Final = 255
"""Maximum length of registry and repository in characters."""

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_COMPONENT: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_IDENTIFIER: Final = re.compile(r"[a-f0-9]{64}")


class Reference(Struct, frozen=True):
    """``registry/repository[:tag][@digest]``, fully qualified; made by `parse_reference`."""

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @property
    def name(self) -> str:
        """``registry/repository``."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar(self) -> str:
        """Docker's short form: without ``docker.io/`` and ``library/``."""
        name = self.name
        if self.registry == DEFAULT_REGISTRY:
            short = self.repository
            if short.count("/") == 1:
                short = short.removeprefix("library/")
            if not _names_registry(short) and not _IDENTIFIER.fullmatch(short):
                name = short
        return name + self._suffix()

    def with_default_tag(self) -> Reference:
        """The reference with the tag ``latest`` if it has neither tag nor digest."""
        return self if self.tag or self.digest else replace(self, tag=DEFAULT_TAG)

    def __str__(self) -> str:
        return self.name + self._suffix()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse_reference(text: str) -> Reference:
    """Parse a reference and expand short forms: ``busybox`` becomes ``docker.io/library/busybox``.

    No default tag is added. Raises InvalidInput, Unsupported (digest algorithm).
    """
    rest, at, digest_text = text.partition("@")
    digest = parse_digest(digest_text) if at else None
    tag: str | None = None
    head, colon, last = rest.rpartition(":")
    if colon and "/" not in last:
        rest, tag = head, last
        if not _TAG.fullmatch(tag):
            raise _malformed(text, f"{tag[:140]!r} is not a tag")
    if _IDENTIFIER.fullmatch(rest):
        raise _malformed(text, "64 hexadecimal digits are ambiguous with an image id")
    if _names_registry(rest):
        registry, _, repository = rest.partition("/")
    else:
        registry, repository = DEFAULT_REGISTRY, rest
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}"
    if not _REGISTRY.fullmatch(registry):
        raise _malformed(text, f"{registry[:100]!r} is not a registry")
    for component in repository.split("/"):
        if not _COMPONENT.fullmatch(component):
            why = "it must be in lower case" if _COMPONENT.fullmatch(component.lower()) else "not a name"
            raise _malformed(text, f"{component.removeprefix('library/')[:100]!r}: {why}")
    if len(registry) + 1 + len(repository) > MAX_NAME:
        raise _malformed(text, f"the name is longer than {MAX_NAME} characters")
    return Reference(registry, repository, tag, digest)


def _names_registry(name: str) -> bool:
    """Whether the first component is a registry, by Docker's rule, and not part of the repository."""
    first, slash, _ = name.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost" or first != first.lower())


def _malformed(text: str, why: str) -> InvalidInput:
    return InvalidInput(f"malformed reference {text[:300]!r}: {why}")
