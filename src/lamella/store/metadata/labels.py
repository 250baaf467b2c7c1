# SPDX-License-Identifier: Apache-2.0
"""Labels and names of the store: what may be written, how a field mask changes it, and how the database holds it."""

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
"""Bytes of a reference, a snapshot's key, or another name that is free text."""

_PREFIX: Final = "labels."
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")

_DECODER: Final = msgspec.json.Decoder(dict[str, str])
_ENCODER: Final = msgspec.json.Encoder(order="deterministic")


def check_labels(labels: Labels) -> None:
    """Raise InvalidInput where a label has no key, is too long, or is not text that UTF-8 can hold."""
    for key, value in labels.items():
        if not key:
            raise InvalidInput("a label without a key")
        if _length(key, "label") + _length(value, "label") > MAX_LABEL:
            raise InvalidInput(f"the label {key[:64]!r} has more than {MAX_LABEL} bytes, key and value together")


def settled(labels: Labels) -> dict[str, str]:
    """``labels`` checked, without those that have no value, which is as good as not being set. Raises InvalidInput."""
    check_labels(labels)
    return {key: value for key, value in labels.items() if value}


def merge(old: Labels, new: Labels, fields: Sequence[str] = ()) -> dict[str, str]:
    """What becomes of ``old`` when the fields of ``new`` that a mask names are put over it.

    ``labels`` and the empty mask put all of ``new`` in place of ``old``; ``labels.KEY``, whose key is everything
    after the first dot, puts one and removes it where ``new`` has none or an empty one. Raises InvalidInput.
    """
    changed = settled(new)
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
    """Whether a path of a mask names one label."""
    return field.startswith(_PREFIX) and len(field) > len(_PREFIX)


def encode(labels: Labels) -> str:
    """How the database holds ``labels``; equal ones are held alike."""
    return _ENCODER.encode(dict(labels)).decode() if labels else "{}"


def decode(text: str) -> dict[str, str]:
    """What `encode` has written. Raises Integrity."""
    if text == "{}":
        return {}
    try:
        return _DECODER.decode(text)
    except msgspec.MsgspecError as problem:
        raise Integrity(f"the store's database holds malformed labels: {problem}") from problem


def check_namespace(name: str) -> str:
    """``name``, which is a namespace's. Raises InvalidInput."""
    if len(name) > MAX_NAMESPACE or not _NAMESPACE.fullmatch(name):
        raise InvalidInput(
            f"malformed namespace {name[: MAX_NAMESPACE + 1]!r}",
            hint=f"letters and digits, with single dots, dashes and underscores between, {MAX_NAMESPACE} at most",
        )
    return name


def check_key(key: str, what: str) -> str:
    """``key``, which is free text that is not empty; ``what`` says of what. Raises InvalidInput."""
    if not key:
        raise InvalidInput(f"{what} is empty")
    if _length(key, what) > MAX_KEY:
        raise InvalidInput(f"{what} {key[:64]!r} has more than {MAX_KEY} bytes")
    return key


def _length(text: str, what: str) -> int:
    try:
        return len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as problem:
        raise InvalidInput(f"{what} {text[:64]!r} is not text that UTF-8 can hold") from problem


def _no_field(field: str) -> InvalidInput:
    return InvalidInput(f"there is no field {field[:200]!r} to change", hint="labels, or labels.KEY for one of them")
