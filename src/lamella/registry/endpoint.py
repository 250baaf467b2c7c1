# SPDX-License-Identifier: Apache-2.0
"""Requests to one host of a registry: authorized, retried where that is safe, with the registry's errors as ours."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit, urlunsplit

from msgspec import Struct

from lamella.errors import Denied
from lamella.images.contract import Buffer
from lamella.registry.auth.authorizer import Authorizer, FindCredential
from lamella.registry.errors import response_error
from lamella.registry.http.retry import RETRYABLE, Retries, retry_after
from lamella.registry.http.transport import Interrupted, Response, Transport
from lamella.registry.http.urls import Origin, join_url, parse_origin

if TYPE_CHECKING:
    from lamella.images.options import RegistryOptions
    from lamella.registry.hosts import HostConfig

_NOT_PROCESSED: Final = frozenset({429, 503})
"""Statuses of requests that the server did not begin to process."""


class Request(Struct, frozen=True):
    """A request to an endpoint."""

    method: str
    url: str
    doing: str
    """Describes it in messages."""
    scopes: Sequence[str] = ()
    """Token scopes that it needs."""
    headers: Mapping[str, str] = {}
    body: Buffer | None = None
    accept: Collection[int] = (200,)
    """Statuses of success."""
    repeat: bool = True
    """Whether failures that may pass are retried; if not, only those before the server processed the request are."""


class Endpoint:
    """One host that serves a registry, or a mirror of it. Thread-safe."""

    def __init__(
        self,
        host: HostConfig,
        registry: str,
        find_credential: FindCredential,
        options: RegistryOptions,
        *,
        mirror: bool = False,
        near: Origin | None = None,
    ) -> None:
        self.host = host
        self.registry = registry
        self.mirror = mirror
        self.options = options
        self._has_answered = False
        self._transport = Transport(host, options, near=near)
        self._authorizer = Authorizer(self._transport, registry, find_credential, options)

    def can(self, capability: str) -> bool:
        """Whether the settings give the host a capability."""
        return capability in self.host.capabilities

    def url(self, path: str) -> str:
        """The URL of a path below ``/v2/``; for a mirror, with the registry in the query."""
        url = f"{self.host.url}/{path}"
        return f"{url}{'&' if '?' in path else '?'}ns={quote(self.registry)}" if self.mirror else url

    @property
    def origin(self) -> Origin:
        """The origin of the host's URLs."""
        return self._transport.origin

    def location(self, response: Response) -> str | None:
        """The URL of the ``Location`` header.

        A registry behind a proxy that ends TLS may give its own URLs without TLS; they are corrected. Raises Denied
        for a URL without TLS on another host.
        """
        text = response.headers.get("Location")
        if text is None:
            return None
        url = join_url(response.url, text)
        origin, own = parse_origin(url), self.origin
        if origin.scheme == "http" and own.scheme == "https":
            if origin.host != own.host:
                raise Denied(f"{self.registry}: refused to continue without TLS at {origin}")
            parts = urlsplit(url)
            url = urlunsplit(("https", urlsplit(self.host.url).netloc, parts.path, parts.query, ""))
        return url

    def send(self, request: Request) -> Response:
        """Send a request and return the response, whose status is one of ``request.accept``.

        Raises as `response_error` says, Interrupted, Cancelled.
        """
        retries = Retries(self.options)
        authorized_again = False
        while True:
            if self.options.cancel is not None:
                self.options.cancel.check()
            own = parse_origin(request.url) == self.origin
            authorization = self._authorizer.header(request.scopes) if own else None
            retries.begin()
            try:
                response = self._transport.send(
                    request.method,
                    request.url,
                    headers=request.headers,
                    authorization=authorization,
                    body=request.body,
                )
            except Interrupted as problem:
                # A host that has never answered is more often misspelt than down: it is not retried.
                if (problem.sent and not request.repeat) or not (problem.sent or self._has_answered):
                    raise
                retries.pause(problem)
                continue
            self._has_answered = True
            if response.status in request.accept:
                return response
            # Only the host itself is given credentials, not a host that it redirects to.
            own_answer = parse_origin(response.url) == self.origin
            challenged = response.status == 401 and own_answer and not authorized_again
            try:
                again = challenged and self._authorizer.learn(response, request.scopes, authorization)
            except BaseException:
                response.close()
                raise
            if again:
                authorized_again = True
                response.discard()
                continue
            error = response_error(response, request.doing, self.registry, secrets=self._authorizer.secrets())
            if response.status not in (RETRYABLE if request.repeat else _NOT_PROCESSED):
                raise error
            retries.pause(error, retry_after(response.headers))

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()
