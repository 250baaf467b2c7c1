# SPDX-License-Identifier: Apache-2.0
"""Labels and names of the store: limits, changes by field mask, and their form in the database."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from lamella.errors import Integrity, InvalidInput
from lamella.store.contract import Labels

MAX_LABEL: Final = 4096
"""Bytes of a key and its value together."""

MAX_NAMESPACE: Final = 76
MAX_KEY: Final = 32768
"""Bytes of an ingest reference, a snapshot key, or another free-text name."""

_PREFIX: Final = "labels."
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")

_DECODER: Final = msgspec.json.Decoder(dict[str, str])
_ENCODER: Final = msgspec.json.Encoder(order="deterministic")


def check_labels(labels: Labels) -> None:
    """Raise InvalidInput for a label with an empty key, one that is too long, or one that UTF-8 cannot encode."""
    for key, value in labels.items():
        if not key:
            raise InvalidInput("the key of a label is empty")
        if _length(key, "label") + _length(value, "label") > MAX_LABEL:
            raise InvalidInput(f"the label {key[:64]!r} has more than {MAX_LABEL} bytes, key and value together")


def normalize_labels(labels: Labels) -> dict[str, str]:
    """Return ``labels`` without those whose value is empty, which count as not set. Raises InvalidInput."""
    check_labels(labels)
    return {key: value for key, value in labels.items() if value}


def merge_labels(old: Labels, new: Labels, fields: Sequence[str] = ()) -> dict[str, str]:
    """Return ``old``, changed by the fields of ``new`` that a mask names.

    ``labels`` and the empty mask replace all labels. ``labels.KEY``, where the key is everything after the first dot,
    sets one label, or removes it if ``new`` has none or an empty value. Raises InvalidInput.
    """
    changed = normalize_labels(new)
    if not fields or "labels" in fields:
        unknown = [field for field in fields if field != "labels" and not is_label(field)]
        if unknown:
            raise _no_field(unknown[0])
        return changed
    merged = dict(old)
    for field in fields:
        if not is_label(field):
            raise _no_field(field)
        key = field[len(_PREFIX) :]
        if key in changed:
            merged[key] = changed[key]
        else:
            merged.pop(key, None)
    return merged


def is_label(field: str) -> bool:
    """Return whether a path of a field mask names one label."""
    return field.startswith(_PREFIX) and len(field) > len(_PREFIX)


def encode_labels(labels: Labels) -> str:
    """Encode ``labels`` for the database; equal labels give equal text."""
    return _ENCODER.encode(dict(labels)).decode() if labels else "{}"


def decode_labels(text: str) -> dict[str, str]:
    """Decode the text of `encode_labels`. Raises Integrity."""
    if text == "{}":
        return {}
    try:
        return _DECODER.decode(text)
    except msgspec.MsgspecError as problem:
        raise Integrity(f"the store's database holds malformed labels: {problem}") from problem


def check_namespace(name: str) -> str:
    """Return ``name`` if it is a valid name of a namespace. Raises InvalidInput."""
    if len(name) > MAX_NAMESPACE or not _NAMESPACE.fullmatch(name):
        raise InvalidInput(
            f"malformed namespace {name[: MAX_NAMESPACE + 1]!r}",
            hint=f"letters and digits, with single dots, dashes and underscores between, {MAX_NAMESPACE} at most",
        )
    return name


def check_key(key: str, what: str) -> str:
    """Return ``key`` if it is non-empty text within `MAX_KEY`; ``what`` names it in messages. Raises InvalidInput."""
    if not key:
        raise InvalidInput(f"{what} is empty")
    if _length(key, what) > MAX_KEY:
        raise InvalidInput(f"{what} {key[:64]!r} has more than {MAX_KEY} bytes")
    return key


def _length(text: str, what: str) -> int:
    try:
        return len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as problem:
        raise InvalidInput(f"{what} {text[:64]!r} cannot be encoded in UTF-8") from problem


def _no_field(field: str) -> InvalidInput:
    return InvalidInput(f"unknown field {field[:200]!r}", hint="use labels, or labels.KEY for one label")
