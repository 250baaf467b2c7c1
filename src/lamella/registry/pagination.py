# SPDX-License-Identifier: Apache-2.0
"""Lists that a registry returns page by page (distribution-spec, "Listing Tags", "Listing Referrers")."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from lamella.errors import Denied, Exhausted, InvalidInput
from lamella.oci.documents import load
from lamella.registry.endpoint import Endpoint, Request
from lamella.registry.http.transport import Response
from lamella.registry.http.urls import join_url, parse_origin

PAGE: Final = 1000
MAX_PAGES: Final = 10_000
MAX_LIST: Final = 16 << 20
"""Bytes of all pages of one list together; in memory, what they list takes a multiple of that."""

_LINK: Final = re.compile(r'<([^<>]*)>((?:\s*;\s*[a-zA-Z]+\s*=\s*(?:"[^"]*"|[^\s;,"]*))*)')
_NEXT: Final = re.compile(r';\s*rel\s*=\s*"?next"?', re.IGNORECASE)
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,254}")


def pages(
    endpoint: Endpoint, path: str, scopes: Sequence[str], listed: str, query: str = f"n={PAGE}"
) -> Iterator[tuple[bytes, str]]:
    """Yield the document at ``path`` and those of the following pages, each with its name for messages.

    ``listed`` names what the pages list. Raises InvalidInput for a circle of pages, Denied for a page on another host,
    Exhausted beyond `MAX_PAGES` or `MAX_LIST`.
    """
    what = f"{endpoint.registry}: the list of {listed}"
    url: str | None = endpoint.url(f"{path}?{query}" if query else path)
    seen: set[str] = set()
    size = 0
    while url is not None:
        seen.add(url)
        response = endpoint.send(Request("GET", url, doing=f"list {listed}", scopes=scopes))
        raw = response.document()
        size += len(raw)
        if size > MAX_LIST:
            raise Exhausted(f"{what}: more than {MAX_LIST} bytes")
        following = next_page(response)
        yield raw, what
        if following is None:
            return
        if parse_origin(following) != parse_origin(url):
            raise Denied(f"{what}: refused a next page on another host, {parse_origin(following)}")
        url = following
        if url in seen:
            raise InvalidInput(f"{what}: its pages form a circle")
        if len(seen) >= MAX_PAGES:
            raise Exhausted(f"{what}: more than {MAX_PAGES} pages")


def next_page(response: Response) -> str | None:
    """The URL of the next page, from the ``Link`` header (RFC 8288)."""
    for match in _LINK.finditer(response.headers.get("Link", "")[:8192]):
        if _NEXT.search(match[2]):
            return join_url(response.url, str(match[1]))
    return None


def parse_names(raw: bytes, key: str, what: str) -> list[str]:
    """The tags or repositories under ``key`` of a page.

    Raises InvalidInput for a malformed page or name, since names are printed on terminals.
    """
    document = load(raw, what)
    if not isinstance(document, dict):
        raise InvalidInput(f"{what}: expected a JSON object")
    names = document.get(key) or []
    if not isinstance(names, list):
        raise InvalidInput(f"{what}: {key}: expected a list")
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidInput(f"{what}: {str(name)[:100]!r} is not a valid name")
    return names
