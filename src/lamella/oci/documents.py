# SPDX-License-Identifier: Apache-2.0
"""Decode and encode JSON documents: known fields are typed, unknown fields are kept.

Decoding refuses what two readers could interpret differently: a repeated key, a key that differs from a known one
only in case (Go matches those), bytes that are not UTF-8, unpaired surrogates, NaN and infinite numbers. ``null``
for a known field means that the field is absent, as in Go. Encoding is compact and deterministic: fields in the order
of the specification's Go types, sorted maps, Go's escapes. A document from a Go tool is usually reproduced byte for
byte.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache
from typing import Any, Final, NoReturn, TypeVar

import msgspec
from msgspec import Struct

from lamella.digests import Digest, parse_digest
from lamella.errors import Exhausted, InvalidInput, LamellaError

MAX_DOCUMENT: Final = 4 << 20
"""Maximum size of a document in bytes: what registries must accept for a manifest, and what skopeo reads."""

MAX_DEPTH: Final = 64
"""Maximum nesting depth of a document."""

MAX_CONTAINERS: Final = 250_000
"""Maximum number of objects and lists in a document: bounds the memory that a small document can take."""

D = TypeVar("D", bound="Document")

_EXTRA: Final = "(extra)"
"""Internal key that holds the unknown fields during validation; a document's own key of this name is unknown too."""


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object with known fields; unknown ones are in ``extra`` and survive a round trip."""

    extra: dict[str, Any] = msgspec.field(name=_EXTRA, default_factory=dict)


def decode(kind: type[D], raw: bytes | bytearray | memoryview, what: str) -> D:
    """Decode ``raw`` as a document of type ``kind``; ``what`` names it in errors.

    Raises InvalidInput, Unsupported (digest algorithm), Exhausted (size, depth).
    """
    return convert(kind, load(raw, what), what)


def convert(kind: type[D], value: Any, what: str) -> D:
    """Convert parsed JSON into a document of type ``kind``. Raises as `decode` does."""
    if type(value) is not dict:
        raise InvalidInput(f"{what}: expected a JSON object, got {_json_type(value)}")
    try:
        return msgspec.convert(_fold(kind, value, what, ""), kind, dec_hook=_from_json)
    except msgspec.ValidationError as problem:
        text, field = _plain_words(str(problem))
        cause = problem.__cause__
        category = type(cause.__cause__) if cause is not None and isinstance(cause.__cause__, LamellaError) else None
        raise (category or InvalidInput)(f"{what}: {field}{text}") from None


def encode(document: Document) -> bytes:
    """Encode a document as compact JSON; equal documents give equal bytes."""
    return encode_json(_unfold(document))


def encode_json(value: Any) -> bytes:
    """Encode plain values as Go's encoding/json does: compact, with ``<``, ``>``, ``&`` and line separators escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if _GO_ESCAPES.search(text):
        text = _GO_ESCAPES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return text.encode()


def load(raw: bytes | bytearray | memoryview, what: str) -> Any:
    """Parse JSON within the limits of this module; repeated keys are refused.

    Raises InvalidInput, Exhausted.
    """
    if len(raw) > MAX_DOCUMENT:
        raise Exhausted(f"{what}: {len(raw)} bytes exceed the limit of {MAX_DOCUMENT} for a document")
    raw = bytes(raw)
    if raw.count(b"{") + raw.count(b"[") > MAX_CONTAINERS:
        raise Exhausted(f"{what}: more than {MAX_CONTAINERS} objects and lists")
    try:
        text = raw.decode()
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_bounded,
        )
        if _SURROGATE_ESCAPE.search(raw):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise Exhausted(f"{what}: nested deeper than {MAX_DEPTH} levels") from None
    except UnicodeDecodeError as problem:
        raise InvalidInput(f"{what}: not UTF-8 at byte {problem.start}") from None
    except UnicodeEncodeError:
        raise InvalidInput(f"{what}: a string has an unpaired surrogate") from None
    except json.JSONDecodeError as problem:
        raise InvalidInput(f"{what}: not JSON: {_lower(problem.msg)} at character {problem.pos}") from None
    except ValueError as problem:
        raise InvalidInput(f"{what}: {problem}") from None
    if _depth(value) > MAX_DEPTH:
        raise Exhausted(f"{what}: nested deeper than {MAX_DEPTH} levels")
    return value


_GO_ESCAPES: Final = re.compile("[<>&\u2028\u2029]")
_SURROGATE_ESCAPE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:100]!r} is repeated in one object")
            seen.add(key)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is out of range")
    return number


def _bounded(text: str) -> int:
    if len(text) > 40:
        raise ValueError(f"the number {text[:40]}... is out of range")
    return int(text)


def _depth(value: Any) -> int:
    depth = 0
    level = [value]
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        if depth > MAX_DEPTH:
            break
        level = [
            item for container in level for item in (container.values() if isinstance(container, dict) else container)
        ]
    return depth


# Known and unknown fields ----------------------------------------------------------------------------------------


class _Field(Struct, frozen=True):
    attribute: str
    name: str
    inner: type[Document] | None
    """Document type of the field, or of the items of a list; None for plain values."""
    listed: bool
    required: bool


class _Plan(Struct, frozen=True):
    by_name: dict[str, _Field]
    folded: dict[str, str]
    """Case-folded name to name."""


@cache
def _plan(kind: type[Document]) -> _Plan:
    fields: dict[str, _Field] = {}
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)  # noqa: S101 for the type checker
    for field in info.fields:
        if field.name == "extra":
            continue
        inner = field.type
        if isinstance(inner, msgspec.inspect.UnionType):
            inner = next(one for one in inner.types if not isinstance(one, msgspec.inspect.NoneType))
        listed = isinstance(inner, msgspec.inspect.ListType)
        if isinstance(inner, msgspec.inspect.ListType):
            inner = inner.item_type
        document: type[Document] | None = None
        if isinstance(inner, msgspec.inspect.StructType) and issubclass(inner.cls, Document):
            document = inner.cls
        fields[field.encode_name] = _Field(field.name, field.encode_name, document, listed, field.required)
    return _Plan(fields, {name.casefold(): name for name in fields})


def _fold(kind: type[Document], value: dict[str, Any], what: str, where: str) -> dict[str, Any]:
    """Move unknown keys of ``value`` below the key of the ``extra`` field, at each typed level."""
    plan = _plan(kind)
    known: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, item in value.items():
        field = plan.by_name.get(key)
        if field is None:
            twin = plan.folded.get(key.casefold())
            if twin is not None:
                raise InvalidInput(f"{what}: {where}{key[:100]!r} differs from the field {twin!r} only in case")
            extra[key] = item
        elif item is None:
            if field.required and field.listed:
                known[key] = []
        elif field.inner is None:
            known[key] = item
        elif type(item) is dict and not field.listed:
            known[key] = _fold(field.inner, item, what, f"{where}{key}.")
        elif type(item) is list and field.listed:
            inner = field.inner
            known[key] = [
                _fold(inner, one, what, f"{where}{key}[{at}].") if type(one) is dict else one
                for at, one in enumerate(item)
            ]
        else:
            known[key] = item
    if extra:
        known[_EXTRA] = extra
    return known


def _unfold(document: Document) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    plan = _plan(type(document))
    for field in plan.by_name.values():
        value = getattr(document, field.attribute)
        if isinstance(value, Document):
            plain[field.name] = _unfold(value)
        elif field.required or value:
            if isinstance(value, dict):
                value = dict(sorted(value.items()))
            elif field.inner is not None:
                value = [_unfold(one) for one in value]
            plain[field.name] = value
    for key, value in document.extra.items():
        if key in plan.by_name:
            raise InvalidInput(f"{type(document).__name__}.extra has the known field {key!r}")
        plain[key] = value
    return plain


def _from_json(kind: type, value: Any) -> Any:
    if kind is Digest:
        if type(value) is not str:
            raise ValueError(f"expected str, got {_json_type(value)}")
        try:
            return parse_digest(value)
        except LamellaError as problem:
            raise ValueError(str(problem)) from problem
    raise NotImplementedError(f"cannot decode {kind.__name__} from JSON")


# Wording ---------------------------------------------------------------------------------------------------------

_LOCATED: Final = re.compile(r"(.*?)(?: - at `(?:key in )?\$\.?(.*)`)?", re.DOTALL)


def _plain_words(text: str) -> tuple[str, str]:
    """Rewrite a msgspec error: the message, and the path of the field followed by a colon, or an empty string."""
    found = _LOCATED.fullmatch(text)
    problem, field = found.groups() if found else (text, None)
    return _lower(problem.replace("`", "")), f"{field}: " if field else ""


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    names: dict[type, str] = {dict: "object", list: "array", str: "string", bool: "boolean"}
    return names.get(type(value), "number")
