# SPDX-License-Identifier: Apache-2.0
"""Names of images on the command line: a form, a place and what to take there, as skopeo's users know them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

from lamella.errors import InvalidInput

ON_DISK: Final = ("oci", "oci-archive", "docker-archive")
RESERVED: Final = ("docker", "store", "containerd")
"""Forms that are names already, but that nothing reads yet."""

_HINT: Final = "write oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:REF]"


@dataclass(slots=True, frozen=True)
class ImageName:
    """Where an image is. Build it with `parse_image_name`."""

    form: str
    path: str
    """A directory or file; for the forms that are reserved, all that follows the form."""
    tag: str | None = None
    """The tag of an OCI layout, the full reference of a Docker archive."""
    position: int | None = None
    """The number of the image there, from 0, where that was asked for (``@0``)."""

    def __str__(self) -> str:
        which = self.tag if self.position is None else f"@{self.position}"
        return f"{self.form}:{self.path}" + (f":{which}" if which is not None else "")


def parse_image_name(text: str) -> ImageName:
    """The image that ``text`` names, as in ``oci:DIR:TAG``; ``oci:DIR:@0`` is the first one there, whatever its tag.

    The path ends at its first colon, so it cannot have one. Raises InvalidInput, with a hint that names the forms.
    """
    form, colon, rest = text.partition(":")
    if not colon or form not in ON_DISK + RESERVED:
        raise InvalidInput(f"{text[:300]!r} does not say what kind of place the image is in", hint=_HINT)
    if form in RESERVED:
        return ImageName(form, rest)
    drive = re.match(r"[A-Za-z]:(?=[\\/])", rest) if os.name == "nt" else None
    start = drive.end() if drive else 0
    path, _, which = rest[start:].partition(":")
    path = rest[:start] + path
    if not path or "\0" in path:
        raise InvalidInput(f"{text[:300]!r} has no path", hint=_HINT)
    if not which:
        return ImageName(form, path)
    if which.startswith("@"):
        if not re.fullmatch("@[0-9]{1,9}", which):
            raise InvalidInput(f"{text[:300]!r}: {which[:40]!r} is not the number of an image", hint="count from @0")
        return ImageName(form, path, position=int(which[1:]))
    if form == "docker-archive":
        from lamella.oci.reference import parse_reference

        reference = parse_reference(which).with_default_tag()
        if reference.digest is not None:
            raise InvalidInput(f"{text[:300]!r}: an archive's images are named by tags, not by digests")
        which = str(reference)
    return ImageName(form, path, which)
