# SPDX-License-Identifier: Apache-2.0
"""What a registry says when it refuses, as errors of Lamella (distribution-spec, "Error Codes")."""

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
    """A registry has said that we may not."""


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

_SAID: Final = {401: ", a login is wanted", 403: ", this is denied", 404: ", there is none", 429: ", not so often"}
"""In words, where the registry has none: to a HEAD request it can say nothing."""


def failure(response: Response, doing: str, registry: str, *, secrets: Iterable[str] = ()) -> LamellaError:
    """The error for an answer with a status that was not hoped for; reads what is left of it.

    ``doing`` says what was asked for. The registry's own words are part of the message, on one line, cut short, and
    without any of ``secrets``, since a registry may send back what it was sent.
    """
    status = response.status
    try:
        raw = response.document(_MAX_ERROR)
    except LamellaError:
        raw = b""
    code, text = _first_error(raw)
    # A status is what proxies and load balancers understand too; a code is finer where both are the registry's.
    by_status = _BY_STATUS.get(status, Unavailable if status >= 500 else LamellaError)
    decided = status >= 500 or status in (401, 403, 408, 429)
    category = by_status if decided else _BY_CODE.get(code, by_status)
    said = ": ".join(part for part in (_plain(code, ()), _plain(text, secrets)) if part)
    said = said or f"status {status}{_SAID.get(status, '')}"
    hint = _hint(category, status, code, registry)
    if status == 400 and not code and response.url.startswith("http:"):
        hint = (
            f"the registry may want TLS: say so by 'server = \"https://{registry}\"' in certs.d/{registry}/hosts.toml"
        )
    return category(f"{registry}: {doing}: {said}", hint=hint)


def _hint(category: type[LamellaError], status: int, code: str, registry: str) -> str | None:
    if status == 401 or (category is Refused and code != "DENIED" and status != 403):
        return f"log in with 'lamella login {registry}', if there is such a repository"
    if category is Refused:
        return f"the account may not do this; another one can be used with 'lamella login {registry}'"
    if status == 429 or code == "TOOMANYREQUESTS":
        return f"wait, or log in with 'lamella login {registry}' for a higher limit"
    if status >= 500 and status != 501:
        return "the registry has a problem of its own; try again later"
    return None


def _first_error(raw: bytes) -> tuple[str, str]:
    """Code and message of the first error in a body; empty where it has none."""
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


def _plain(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        if len(secret) > 3:
            text = text.replace(secret, "***")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:_MAX_TEXT]
