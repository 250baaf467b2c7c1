# SPDX-License-Identifier: Apache-2.0
"""Lists that a registry gives page by page (distribution-spec, "Listing Tags")."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from lamella.errors import Denied, Exhausted, InvalidInput
from lamella.oci.documents import load
from lamella.registry.http.transport import Response
from lamella.registry.http.urls import join_url, parse_origin

if TYPE_CHECKING:
    from lamella.registry.client import Client

PAGE: Final = 1000
MAX_PAGES: Final = 10_000

_LINK: Final = re.compile(r'<([^<>]*)>((?:\s*;\s*[a-zA-Z]+\s*=\s*(?:"[^"]*"|[^\s;,"]*))*)')
_NEXT: Final = re.compile(r';\s*rel\s*=\s*"?next"?', re.IGNORECASE)
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,254}")


def pages(
    client: Client, path: str, scopes: Sequence[str], listed: str, query: str = f"n={PAGE}"
) -> Iterator[tuple[dict[str, Any], str]]:
    """The documents at ``path`` and at the pages after it, each with what to call it; ``listed`` is what they list.

    Raises InvalidInput for what is no object or goes round in circles, Denied where a page is elsewhere, Exhausted.
    """
    endpoint, what = client.own, f"{client.registry}: the list of {listed}"
    url: str | None = endpoint.url(f"{path}?{query}" if query else path)
    seen: set[str] = set()
    while url is not None:
        seen.add(url)
        response = endpoint.request("GET", url, doing=f"list {listed}", scopes=scopes)
        document = load(response.document(), what)
        following = next_page(response)
        if not isinstance(document, dict):
            raise InvalidInput(f"{what}: expected a JSON object")
        yield document, what
        if following is None:
            return
        if parse_origin(following) != parse_origin(url):
            raise Denied(f"{what}: refused to read on at another host, {parse_origin(following)}")
        url = following
        if url in seen:
            raise InvalidInput(f"{what}: its pages go round in a circle")
        if len(seen) >= MAX_PAGES:
            raise Exhausted(f"{what}: more than {MAX_PAGES} pages")


def next_page(response: Response) -> str | None:
    """The URL of the page after this one, by ``Link`` (RFC 8288)."""
    for match in _LINK.finditer(response.headers.get("Link", "")[:8192]):
        if _NEXT.search(match[2]):
            return join_url(response.url, str(match[1]))
    return None


def texts(document: dict[str, Any], key: str, what: str) -> list[str]:
    """The names listed under ``key``. Raises InvalidInput for what is none, as it may be printed on a terminal."""
    found = document.get(key) or []
    if not isinstance(found, list):
        raise InvalidInput(f"{what}: {key}: expected a list")
    for name in found:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidInput(f"{what}: {str(name)[:100]!r} is no name")
    return found
