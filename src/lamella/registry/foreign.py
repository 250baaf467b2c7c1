# SPDX-License-Identifier: Apache-2.0
"""Layers whose bytes are not in the registry, but at addresses that their descriptors give (image-spec, layer.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lamella.errors import Denied, LamellaError, NotFound
from lamella.registry.addresses import Origin, origin_of
from lamella.registry.endpoint import Endpoint
from lamella.registry.hosts import HostConfig
from lamella.registry.transport import Response

if TYPE_CHECKING:
    from lamella.images.options import RegistryOptions
    from lamella.oci.descriptor import Descriptor


def fetch_from(
    descriptor: Descriptor, near: Origin, options: RegistryOptions, start: int = 0, stop: int | None = None
) -> Response:
    """The bytes at the first of the descriptor's addresses that gives them, asked for without any credentials.

    Addresses without TLS are passed over unless the registry at ``near`` does without too; those of a machine's own
    services are as they are for redirects. Raises NotFound, Denied, Unavailable.
    """
    problem: LamellaError | None = None
    headers = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
    for url in descriptor.urls:
        try:
            origin = origin_of(url)
            if origin.scheme != "https" and near.scheme == "https":
                raise Denied(f"refused to fetch a layer without TLS from {origin}")
            host = HostConfig(origin.scheme, urlsplit(url).netloc)
            endpoint = Endpoint(host, origin.host, lambda: None, options, near=near)
            doing = f"get the layer {descriptor.digest}"
            return endpoint.request("GET", url, doing=doing, headers=headers, accept=(200, 206))
        except LamellaError as refused:
            problem = refused
    raise problem or NotFound(f"{descriptor.digest}: the layer gives no address that it could be fetched from")
