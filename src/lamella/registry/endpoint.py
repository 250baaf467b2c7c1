# SPDX-License-Identifier: Apache-2.0
"""Requests to one host of a registry: signed, repeated where that is safe, and refused in Lamella's own errors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit, urlunsplit

from lamella.errors import Denied
from lamella.images.contract import Buffer
from lamella.registry.auth.authorizer import Authorizer, FindCredential
from lamella.registry.errors import failure
from lamella.registry.http.retry import PASSING, Patience, retry_after
from lamella.registry.http.transport import Interrupted, Response, Transport
from lamella.registry.http.urls import Origin, join_url, parse_origin

if TYPE_CHECKING:
    from lamella.images.options import RegistryOptions
    from lamella.registry.hosts import HostConfig

_NOTHING_DONE: Final = frozenset({429, 503})
"""Statuses by which a server says that it did not begin with a request."""


class Endpoint:
    """One host that serves a registry, be it a mirror."""

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
        self._answered = False
        self.options = options
        self._transport = Transport(host, options, near=near)
        self._authorizer = Authorizer(self._transport, registry, find_credential, options)

    @property
    def origin(self) -> Origin:
        """Who it is."""
        return self._transport.origin

    def can(self, capability: str) -> bool:
        """Whether the settings let it be used for that."""
        return capability in self.host.capabilities

    def url(self, path: str) -> str:
        """The URL of a path below ``/v2/``; a mirror is told what it stands for."""
        url = f"{self.host.url}/{path}"
        return f"{url}{'&' if '?' in path else '?'}ns={quote(self.registry)}" if self.mirror else url

    def location(self, response: Response) -> str | None:
        """Where ``response`` says to go on.

        A registry behind a proxy that ends TLS may take itself for one without: its own address is mended.
        """
        text = response.headers.get("Location")
        if text is None:
            return None
        url = join_url(response.url, text)
        origin, own = parse_origin(url), self.origin
        if origin.scheme == "http" and own.scheme == "https":
            if origin.host != own.host:
                raise Denied(f"{self.registry}: refused to go on without TLS at {origin}")
            parts = urlsplit(url)
            url = urlunsplit(("https", urlsplit(self.host.url).netloc, parts.path, parts.query, ""))
        return url

    def request(
        self,
        method: str,
        url: str,
        *,
        doing: str,
        scopes: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        body: Buffer | None = None,
        accept: Collection[int] = (200,),
        repeat: bool = True,
    ) -> Response:
        """The answer to a request, whose status is one of ``accept``.

        With ``repeat`` a request is made again where it failed in a way that may pass; without, only where it cannot
        have been carried out. ``doing`` is for messages.
        Raises as `failure` says, and Interrupted, Cancelled.
        """
        patience = Patience(self.options)
        signed_again = False
        while True:
            if self.options.cancel is not None:
                self.options.cancel.check()
            own = parse_origin(url) == self.origin
            authorization = self._authorizer.header(scopes) if own else None
            try:
                response = self._transport.send(
                    method, url, headers=headers or {}, authorization=authorization, body=body
                )
            except Interrupted as problem:
                # Nobody waits for a host that has never been there, which is more often a slip than a pause.
                if (problem.sent and not repeat) or not (problem.sent or self._answered):
                    raise
                patience.pause(problem)
                continue
            self._answered = True
            if response.status in accept:
                return response
            # What another host asks for is none of the registry's business: it gets no credentials.
            asked = response.status == 401 and parse_origin(response.url) == self.origin
            try:
                again = asked and not signed_again and self._authorizer.learn(response, scopes, authorization)
            except BaseException:
                response.close()
                raise
            if again:
                signed_again = True
                response.discard()
                continue
            refused = failure(response, doing, self.registry, secrets=self._authorizer.secrets())
            passing = response.status in (PASSING if repeat else _NOTHING_DONE)
            if not passing:
                raise refused
            patience.pause(refused, retry_after(response.headers))

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()
