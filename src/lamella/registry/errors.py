# SPDX-License-Identifier: Apache-2.0
"""Error responses of registries as Lamella's errors (distribution-spec, "Error Codes")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from lamella.errors import (
    Conflict,
    Denied,
    Exhausted,
    Integrity,
    InvalidInput,
    LamellaError,
    NotFound,
    Unavailable,
    Unsupported,
)
from lamella.oci.documents import load
from lamella.registry.http.transport import Response

_MAX_ERROR: Final = 64 << 10
_MAX_TEXT: Final = 300


class Refused(Denied):
    """A registry denied a request, as opposed to Lamella refusing one."""


_BY_CODE: Final[dict[str, type[LamellaError]]] = {
    "BLOB_UNKNOWN": NotFound,
    "BLOB_UPLOAD_INVALID": Conflict,
    "BLOB_UPLOAD_UNKNOWN": NotFound,
    "DENIED": Refused,
    "DIGEST_INVALID": Integrity,
    "MANIFEST_BLOB_UNKNOWN": Conflict,
    "MANIFEST_INVALID": InvalidInput,
    "MANIFEST_UNKNOWN": NotFound,
    "MANIFEST_UNVERIFIED": InvalidInput,
    "NAME_INVALID": InvalidInput,
    "NAME_UNKNOWN": NotFound,
    "PAGINATION_NUMBER_INVALID": InvalidInput,
    "SIZE_INVALID": Integrity,
    "TAG_INVALID": InvalidInput,
    "TOOMANYREQUESTS": Unavailable,
    "UNAUTHORIZED": Refused,
    "UNAVAILABLE": Unavailable,
    "UNSUPPORTED": Unsupported,
}

_BY_STATUS: Final[dict[int, type[LamellaError]]] = {
    400: InvalidInput,
    401: Refused,
    403: Refused,
    404: NotFound,
    405: Unsupported,
    406: Unsupported,
    408: Unavailable,
    409: Conflict,
    410: NotFound,
    412: Conflict,
    413: Exhausted,
    415: Unsupported,
    416: Conflict,
    429: Unavailable,
    501: Unsupported,
    507: Exhausted,
}

_STATUS_TEXT: Final = {401: ", unauthorized", 403: ", forbidden", 404: ", not found", 429: ", too many requests"}
"""For responses without a message, such as those to HEAD requests."""


def response_error(response: Response, doing: str, registry: str, *, secrets: Iterable[str] = ()) -> LamellaError:
    """The error for a response with an unexpected status, whose body is read.

    ``doing`` describes the request. The registry's own message becomes part of the error's, on one line, shortened,
    and with ``secrets`` masked, since a registry may echo what it received.
    """
    status = response.status
    try:
        raw = response.document(_MAX_ERROR)
    except LamellaError:
        raw = b""
    code, text = _first_error(raw)
    # Proxies set statuses but no codes; where both are the registry's, the code says more.
    by_status = _BY_STATUS.get(status, Unavailable if status >= 500 else LamellaError)
    status_decides = status >= 500 or status in (401, 403, 408, 429)
    category = by_status if status_decides else _BY_CODE.get(code, by_status)
    reason = ": ".join(part for part in (_one_line(code, ()), _one_line(text, secrets)) if part)
    reason = reason or f"status {status}{_STATUS_TEXT.get(status, '')}"
    hint = _hint(category, status, code, registry)
    if status == 400 and not code and response.url.startswith("http:"):
        hint = f"the registry may need TLS: set 'server = \"https://{registry}\"' in certs.d/{registry}/hosts.toml"
    return category(f"{registry}: {doing}: {reason}", hint=hint)


def _hint(category: type[LamellaError], status: int, code: str, registry: str) -> str | None:
    if status == 401 or (category is Refused and code != "DENIED" and status != 403):
        return f"log in with 'lamella login {registry}', if the repository exists"
    if category is Refused:
        return f"the account is not permitted to; log in to another with 'lamella login {registry}'"
    if status == 429 or code == "TOOMANYREQUESTS":
        return f"wait, or log in with 'lamella login {registry}' for a higher limit"
    if status >= 500 and status != 501:
        return "the registry failed; try again later"
    return None


def _first_error(raw: bytes) -> tuple[str, str]:
    """Code and message of the first error in a body; each empty if absent."""
    try:
        document = load(raw, "error")
    except LamellaError:
        return "", ""
    found = document.get("errors") if isinstance(document, dict) else None
    first = found[0] if isinstance(found, list) and found else document
    if not isinstance(first, dict):
        return "", ""
    code, text = first.get("code"), first.get("message") or first.get("details")
    return code if isinstance(code, str) else "", text if isinstance(text, str) else ""


def _one_line(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        if len(secret) > 3:
            text = text.replace(secret, "***")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:_MAX_TEXT]
