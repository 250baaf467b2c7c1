# SPDX-License-Identifier: Apache-2.0
"""Log in to registries: credentials are tried before they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from lamella.errors import InvalidInput, LamellaError
from lamella.images.options import DEFAULT_OPTIONS, RegistryOptions
from lamella.oci.reference import parse_reference

if TYPE_CHECKING:
    from lamella.registry.credentials import Credential


def log_in(
    registry: str,
    credential: Credential,
    *,
    options: RegistryOptions = DEFAULT_OPTIONS,
    environ: Mapping[str, str] | None = None,
) -> str:
    """Show ``credential`` to ``registry`` and, where it is taken, keep it; the result says where.

    The registry itself is asked, none of its mirrors. Raises Denied where it refuses; InvalidInput, NotFound,
    Unavailable, Cancelled, and as `lamella.registry.credentials.login`.
    """
    from lamella.registry.credentials import login
    from lamella.registry.endpoint import Endpoint
    from lamella.registry.hosts import hosts_for

    registry = registry_name(registry)
    host = hosts_for(registry, plain_http=bool(options.plain_http), environ=environ)[-1]
    endpoint = Endpoint(host, registry, credential, replace(options, credential=credential, anonymous=False))
    try:
        endpoint.request("GET", endpoint.url(""), doing="log in").close()
    finally:
        endpoint.close()
    return login(registry, credential, environ=environ)


def log_out(registry: str, *, environ: Mapping[str, str] | None = None) -> None:
    """Forget what is kept for ``registry``. Raises as `lamella.registry.credentials.logout`."""
    from lamella.registry.credentials import logout

    logout(registry_name(registry), environ=environ)


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
