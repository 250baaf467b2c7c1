# SPDX-License-Identifier: Apache-2.0
"""Log in to registries: credentials are tried before they are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.errors import InvalidInput, LamellaError
from lamella.images.options import RegistryOptions
from lamella.oci.reference import parse_reference

if TYPE_CHECKING:
    from pathlib import Path

    from lamella.registry.credentials import Credential


def log_in(
    registry: str, credential: Credential, options: RegistryOptions | None = None, *, path: Path | None = None
) -> str:
    """Show ``credential`` to ``registry`` and, where it is taken, keep it, in the file ``path`` if given; return where.

    The registry itself is asked, none of its mirrors. Raises Denied where it refuses; InvalidInput, NotFound,
    Unavailable, Cancelled, and as `lamella.registry.credentials.login`.
    """
    from lamella.registry.client import check_login
    from lamella.registry.credentials import login

    registry = registry_name(registry)
    check_login(registry, credential, options)
    return login(registry, credential, path)


def log_out(registry: str, path: Path | None = None) -> None:
    """Forget what is kept for ``registry``, in ``path`` or wherever it is.

    Raises as `lamella.registry.credentials.logout`.
    """
    from lamella.registry.credentials import logout

    logout(registry_name(registry), path)


def registry_name(text: str) -> str:
    """The registry that ``text`` writes, a host with a port perhaps. Raises InvalidInput."""
    try:
        reference = parse_reference(f"{text}/name")
    except LamellaError:
        reference = None
    if reference is None or (text != reference.registry and text != "index.docker.io"):
        hint = "write its host, and its port where it has one, as in quay.io or localhost:5000"
        raise InvalidInput(f"{text[:100]!r} is not a registry", hint=hint)
    return reference.registry
