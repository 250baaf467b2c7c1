# SPDX-License-Identifier: Apache-2.0
"""What is said to a registry and what it answers, to be shown to somebody: heads alone, and no secrets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from lamella.registry.addresses import shown

_ASKED: Final = frozenset(
    {"accept", "accept-encoding", "content-length", "content-range", "content-type", "range", "user-agent"}
)
"""Headers of requests that are shown with their values; others prove who we are, or are from somebody's settings."""

_SECRET: Final = frozenset({"set-cookie", "set-cookie2", "authorization", "proxy-authorization"})
_ADDRESSES: Final = frozenset({"location", "content-location"})
_HIDDEN: Final = "(not shown)"


def request_text(method: str, url: str, headers: Mapping[str, str]) -> str:
    """The head of a request, with a blank line at its end; the address is without its query, as all are."""
    lines = (f"{name}: {value if name.lower() in _ASKED else _HIDDEN}" for name, value in headers.items())
    return "\n".join((f"{method} {shown(url)} HTTP/1.1", *lines, "", ""))


def answer_text(method: str, url: str, status: int, headers: Mapping[str, str]) -> str:
    """The head of the answer to a request, with a blank line at its end."""
    return "\n".join((f"HTTP {status} for {method} {shown(url)}", *_answered(headers), "", ""))


def _answered(headers: Mapping[str, str]) -> Iterator[str]:
    for name, value in headers.items():
        if name.lower() in _SECRET:
            yield f"{name}: {_HIDDEN}"
        elif name.lower() in _ADDRESSES:
            yield f"{name}: {shown(value)}"
        else:
            yield f"{name}: {value}"
