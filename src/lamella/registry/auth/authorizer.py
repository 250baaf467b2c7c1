# SPDX-License-Identifier: Apache-2.0
"""Authorization of requests: Basic (RFC 7617), and bearer tokens (distribution's token specification)."""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import urlencode, urlsplit, urlunsplit

from msgspec import Struct

from lamella.errors import Denied, InvalidInput, LamellaError, Unavailable, Unsupported
from lamella.oci.documents import load
from lamella.registry.errors import response_error
from lamella.registry.http.retry import RETRYABLE, Retries, retry_after
from lamella.registry.http.transport import Interrupted, Response, Transport
from lamella.registry.http.urls import check_address, is_loopback, parse_origin, redact_url

if TYPE_CHECKING:
    from lamella.images.options import Credential, RegistryOptions

_MAX_TOKEN: Final = 256 << 10
_MAX_CHALLENGE: Final = 16 << 10
_CLIENT_ID: Final = "lamella"
_MIN_LIFETIME: Final = 60.0
"""Seconds that a token is valid at least, and if its lifetime is not given (token specification)."""

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PART: Final = re.compile(rf'\s*({_WORD})(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*)))?\s*(,?)')

FindCredential: TypeAlias = "Callable[[], Credential | None]"
"""Called when a host first asks for a credential, since a keychain may have to be unlocked for it."""


class Challenge(Struct, frozen=True):
    """One challenge of a ``WWW-Authenticate`` header."""

    scheme: str
    """In lower case."""
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """The challenges of one or several joined ``WWW-Authenticate`` headers (RFC 9110, section 11.6.1).

    Malformed parts are skipped.
    """
    found: list[Challenge] = []
    parameters: dict[str, str] = {}
    at, header = 0, header[:_MAX_CHALLENGE]
    while at < len(header):
        match = _PART.match(header, at)
        if match is None:
            at += 1
            continue
        at = match.end()
        name, quoted, bare, _ = match.groups()
        if quoted is None and bare is None:
            parameters = {}
            found.append(Challenge(name.lower(), parameters))
        elif found:
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare
            parameters.setdefault(name.lower(), value)
    return found


class _Token(Struct):
    value: str
    expires: float
    """Monotonic time."""

    def __repr__(self) -> str:
        return f"_Token(expires={self.expires})"


class Authorizer:
    """Answers the challenges of one host for one account. Thread-safe.

    Tokens are cached by scopes until shortly before they expire. No repr shows a secret.
    """

    def __init__(
        self, transport: Transport, registry: str, find_credential: FindCredential, options: RegistryOptions
    ) -> None:
        self._transport = transport
        self._registry = registry
        self._find_credential = find_credential
        self._credential: Credential | None = None
        self._options = options
        self._lock = threading.Lock()
        self._challenge: Challenge | None = None
        self._tokens: dict[tuple[str, ...], _Token] = {}

    def header(self, scopes: Sequence[str]) -> str | None:
        """The Authorization header for a request that needs ``scopes``; None before the host's first challenge.

        Raises Denied, Unavailable, InvalidInput, Unsupported.
        """
        with self._lock:
            if self._challenge is None:
                return None
            if self._challenge.scheme == "basic":
                return self._basic() if self._has_password() else None
            return f"Bearer {self._token(tuple(sorted(set(scopes))))}"

    def learn(self, response: Response, scopes: Sequence[str], sent: str | None) -> bool:
        """Take the challenge of a 401 response; return whether another try can succeed.

        ``sent`` is the Authorization header of the request. The body is not read. Raises as `header`.
        """
        challenges = parse_challenges(response.headers.get("WWW-Authenticate", ""))
        by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
        bearer, basic = by_scheme.get("bearer"), by_scheme.get("basic")
        with self._lock:
            if bearer is not None and bearer.parameters.get("realm"):
                key = tuple(sorted(set(scopes)))
                cached = self._tokens.get(key)
                if cached is not None and sent != f"Bearer {cached.value}":
                    return True  # another thread has renewed it
                self._tokens.pop(key, None)
                self._accept(bearer)
                self._token(key)
                return True
            if basic is not None:
                self._accept(basic)
                return self._has_password() and sent is None
            if challenges and not by_scheme.keys() & {"bearer", "basic"}:
                scheme = challenges[0].scheme[:40]
                raise Unsupported(f"{self._registry}: unsupported authentication scheme {scheme!r}")
        return False

    def secrets(self) -> Iterator[str]:
        """All secrets, to mask them in messages."""
        credential = self._credential
        if credential is not None:
            yield from (one for one in (credential.password, credential.identity_token) if one)
            if self._has_password():
                yield self._basic().removeprefix("Basic ")
        yield from [token.value for token in list(self._tokens.values())]

    def _accept(self, challenge: Challenge) -> None:
        if self._challenge is None:
            self._credential = self._find_credential()
        self._challenge = challenge

    def _has_password(self) -> bool:
        return self._credential is not None and bool(self._credential.password)

    def _basic(self) -> str:
        credential = self._credential
        assert credential is not None  # noqa: S101 callers check
        pair = f"{credential.username or ''}:{credential.password or ''}"
        return "Basic " + base64.b64encode(pair.encode()).decode()

    def _token(self, scopes: tuple[str, ...]) -> str:
        token = self._tokens.get(scopes)
        if token is None or token.expires <= time.monotonic():
            token = self._tokens[scopes] = self._fetch_token(scopes)
        return token.value

    def _fetch_token(self, scopes: tuple[str, ...]) -> _Token:
        assert self._challenge is not None  # noqa: S101 callers check
        parameters = self._challenge.parameters
        wanted = list(scopes)
        wanted += [one for one in parameters.get("scope", "").split() if one not in scopes]
        realm = parameters["realm"]
        identity = self._credential.identity_token if self._credential is not None else None
        self._check_realm(realm, has_secret=bool(identity) or self._has_password())
        retries = Retries(self._options)
        while True:
            retries.begin()
            asked = time.monotonic()
            try:
                if identity:
                    response = self._request_by_identity(realm, parameters, wanted, identity)
                else:
                    response = self._request_by_password(realm, parameters, wanted)
            except Interrupted as problem:
                retries.pause(problem)
                continue
            if response.status == 200:
                return self._parse_token(response, realm, asked)
            error = response_error(response, "ask for a token", self._registry, secrets=self.secrets())
            if response.status not in RETRYABLE:
                raise error
            retries.pause(error, retry_after(response.headers))

    def _request_by_password(self, realm: str, parameters: Mapping[str, str], scopes: Sequence[str]) -> Response:
        query = [("service", parameters["service"])] if parameters.get("service") else []
        query += [("scope", scope) for scope in scopes]
        authorization = None
        if self._credential is not None and self._has_password():
            query.append(("account", self._credential.username or ""))
            authorization = self._basic()
        parts = urlsplit(realm)
        text = "&".join(part for part in (parts.query, urlencode(query)) if part)
        url = urlunsplit((parts.scheme, parts.netloc, parts.path or "/", text, ""))
        return self._transport.send("GET", url, headers={"Accept": "application/json"}, authorization=authorization)

    def _request_by_identity(
        self, realm: str, parameters: Mapping[str, str], scopes: Sequence[str], identity: str
    ) -> Response:
        form = {
            "grant_type": "refresh_token",
            "service": parameters.get("service", ""),
            "client_id": _CLIENT_ID,
            "scope": " ".join(scopes),
            "refresh_token": identity,
        }
        headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
        body = urlencode(form).encode()
        return self._transport.send("POST", realm, headers=headers, body=body, follow=False)

    def _check_realm(self, realm: str, *, has_secret: bool) -> None:
        """Refuse a token server that must not be asked, or not with a secret. Raises Denied, InvalidInput."""
        origin, own = parse_origin(realm), self._transport.origin
        if origin.host != own.host:
            check_address(origin.host, loopback=is_loopback(own.host))
        if origin.scheme == "https":
            return
        if own.scheme == "https":
            raise Denied(f"{self._registry}: refused to ask for a token without TLS at {redact_url(realm)}")
        same = origin.host == own.host or (is_loopback(origin.host) and is_loopback(own.host))
        if has_secret and not same and not self._options.plain_http:
            raise Denied(f"{self._registry}: refused to log in without TLS at another host, {redact_url(realm)}")

    def _parse_token(self, response: Response, realm: str, asked: float) -> _Token:
        what = f"{self._registry}: the token from {redact_url(realm)}"
        try:
            document = load(response.document(_MAX_TOKEN), what)
        except InvalidInput:
            raise Unavailable(f"{what} is malformed") from None
        except Interrupted:
            raise
        except LamellaError as problem:
            raise Unavailable(f"{what}: {problem}") from None
        value = document.get("token") or document.get("access_token") if isinstance(document, dict) else None
        if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
            raise Unavailable(f"{what} is malformed")
        lifetime = document.get("expires_in")
        seconds = float(lifetime) if isinstance(lifetime, (int, float)) and not isinstance(lifetime, bool) else 0.0
        return _Token(value, asked + 0.8 * max(_MIN_LIFETIME, min(seconds, 86_400.0)))
