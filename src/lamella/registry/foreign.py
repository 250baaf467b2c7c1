# SPDX-License-Identifier: Apache-2.0
"""Layers whose bytes are not with the image, but at addresses that their descriptors give (image-spec, layer.md)."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Final, cast
from urllib.parse import urlsplit

from lamella.errors import Denied, LamellaError, NotFound
from lamella.registry.addresses import Origin, origin_of
from lamella.registry.endpoint import Endpoint
from lamella.registry.hosts import HostConfig
from lamella.registry.streaming import SPARE_PIECES, BlobStream, Budget
from lamella.registry.transport import HOSTS, Response

if TYPE_CHECKING:
    from lamella.images.options import RegistryOptions
    from lamella.oci.descriptor import Descriptor

_FAR: Final = "a document"
"""In place of a host: whoever wrote a file of this machine need not be on it."""


class Elsewhere:
    """Opens layers that ``where`` lacks, as streams that mend themselves, and without any credentials.

    ``near`` is the registry that the image came from. Addresses without TLS are passed over unless it does without
    too, and those of a machine's own services are as they are for redirects. Where the image is a file, addresses
    without TLS are passed over unless ``options`` do without.
    """

    def __init__(self, where: str, options: RegistryOptions, near: Origin | None = None) -> None:
        self._where = where
        self._options = options
        self._near = near or Origin("http" if options.plain_http else "https", _FAR, 0)
        self._budget = Budget(SPARE_PIECES)
        self._endpoints: dict[tuple[Origin, str], Endpoint] = {}
        """By what the addresses begin with: where a token is asked for, what is below one path has the same."""
        self._lock = threading.Lock()

    def __call__(self, layer: Descriptor) -> BinaryIO:
        """A stream of the layer, which is already coming. Raises NotFound, SizeMismatch, Denied, Unavailable."""
        fetch = partial(self._fetch, layer)
        return cast("BinaryIO", BlobStream(fetch, layer, self._where, self._options, self._budget))

    def close(self) -> None:
        """Close idle connections; layers that are being read stay open."""
        with self._lock:
            endpoints, self._endpoints = list(self._endpoints.values()), {}
        for endpoint in endpoints:
            endpoint.close()

    def _fetch(self, layer: Descriptor, start: int = 0, stop: int | None = None) -> Response:
        """The bytes at the first of the layer's addresses that gives them."""
        problem: LamellaError | None = None
        headers = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
        for url in layer.urls:
            try:
                origin = origin_of(url)
                if origin.scheme != "https" and self._near.scheme == "https":
                    raise Denied(f"refused to fetch a layer without TLS from {origin}")
                doing = f"get the layer {layer.digest}"
                return self._endpoint(origin, url).request("GET", url, doing=doing, headers=headers, accept=(200, 206))
            except LamellaError as refused:
                problem = refused
        raise problem or NotFound(f"{layer.digest}: the layer gives no address that it could be fetched from")

    def _endpoint(self, origin: Origin, url: str) -> Endpoint:
        parts = urlsplit(url)
        key = origin, parts.path.rpartition("/")[0]
        with self._lock:
            endpoint = self._endpoints.pop(key, None)
            if endpoint is None:
                host = HostConfig(origin.scheme, parts.netloc)
                endpoint = Endpoint(host, origin.host, lambda: None, self._options, near=self._near)
            self._endpoints[key] = endpoint
            oldest = self._endpoints.pop(next(iter(self._endpoints))) if len(self._endpoints) > HOSTS else None
        if oldest is not None:
            oldest.close()
        return endpoint
