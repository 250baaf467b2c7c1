# SPDX-License-Identifier: Apache-2.0
"""Filters over the fields of objects, in containerd's filter language.

An expression is a comma-separated list of selectors, all of which must match::

    name==docker.io/library/alpine:3.20,labels."containerd.io/gc.root"
    target.mediatype~=/manifest/,labels.tier!=cache

A selector is a path alone (the field is present), or a path, an operator and a value. ``==`` requires a present field;
``!=`` and ``~=`` treat an absent field as empty. A path is a list of names separated by dots; a name with characters
other than letters, digits and the underscore is in double quotes. A value ends at a comma or a space, or is quoted;
after ``~=`` also by ``/`` or ``|``. Quoted text has Go's escapes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn, TypeAlias

from msgspec import Struct

from lamella.errors import InvalidInput
from lamella.store.metadata.re2 import compile_pattern

Path: TypeAlias = tuple[str, ...]
Lookup: TypeAlias = Callable[[Path], str | None]
"""Returns the value of the field at a path; None if it is absent."""

MAX_EXPRESSION: Final = 16 << 10
"""Characters of one expression."""

_FIELD: Final = re.compile(r"[A-Za-z0-9_]+")
_OPERATOR: Final = re.compile(r"[=!~]+")
_QUOTED: Final = re.compile(r'(["/|])((?:(?!\1)[^\\\n]|\\(?:.|\n))*)\1')
_ESCAPE: Final = re.compile(r"\\([0-7]{3}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)?", re.DOTALL)
_CONTROLS: Final = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92}


class _Selector(Struct, frozen=True):
    path: Path
    operator: str
    """Empty for presence."""
    value: str
    pattern: re.Pattern[str] | None
    """None for an invalid pattern too, which matches nothing."""

    def matches(self, lookup: Lookup) -> bool:
        value = lookup(self.path)
        match self.operator:
            case "":
                return value is not None
            case "==":
                return value == self.value
            case "!=":
                return (value or "") != self.value
            case _:
                return self.pattern is not None and self.pattern.search(value or "") is not None


class Filter:
    """Matches objects that pass any of some expressions. Build it with `parse_filters`."""

    __slots__ = ("_any", "everything")

    def __init__(self, expressions: Sequence[tuple[_Selector, ...]]) -> None:
        self._any = tuple(expressions)
        self.everything = not all(self._any)
        """Whether every object passes."""

    def matches(self, lookup: Lookup) -> bool:
        """Return whether the object whose fields ``lookup`` returns passes."""
        if self.everything:
            return True
        for selectors in self._any:
            for selector in selectors:
                if not selector.matches(lookup):
                    break
            else:
                return True
        return False


def parse_filters(expressions: Sequence[str]) -> Filter:
    """Return the filter that passes what any of ``expressions`` passes; none, or an empty one, passes all.

    Raises InvalidInput.
    """
    return Filter([_Parser(text).selectors() if text else () for text in expressions] or [()])


def label_at(labels: Mapping[str, str], path: Path) -> str | None:
    """Return the label whose key is the parts of ``path``, joined by dots; None if there is none."""
    return labels.get(".".join(path))


class _Parser:
    """Parses one expression, from left to right."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_EXPRESSION:
            raise InvalidInput(f"a filter of {len(text)} characters, more than the limit of {MAX_EXPRESSION}")
        self._text = text
        self._at = 0

    def selectors(self) -> tuple[_Selector, ...]:
        found = [self._selector()]
        while self._next() == ",":
            self._at += 1
            found.append(self._selector())
        if self._next():
            self._fail("expected a comma or the end")
        return tuple(found)

    def _selector(self) -> _Selector:
        path = [self._field()]
        while self._next() == ".":
            self._at += 1
            path.append(self._field())
        if self._next() in ("", ","):
            return _Selector(tuple(path), "", "", None)
        operator = self._operator()
        value = self._value(alternatives=operator == "~=")
        return _Selector(tuple(path), operator, value, compile_pattern(value) if operator == "~=" else None)

    def _field(self) -> str:
        self._skip_spaces()
        if self._next() in ('"', "/", "|"):
            return self._quoted(alternatives=False)
        match = _FIELD.match(self._text, self._at)
        if match is None:
            self._fail("expected a field")
        self._at = match.end()
        return match[0]

    def _operator(self) -> str:
        self._skip_spaces()
        match = _OPERATOR.match(self._text, self._at)
        if match is None or match[0] not in ("==", "!=", "~="):
            self._fail("expected ==, != or ~=")
        self._at = match.end()
        return match[0]

    def _value(self, *, alternatives: bool) -> str:
        self._skip_spaces()
        first = self._next()
        if first in ('"', "/", "|") and first:
            return self._quoted(alternatives=alternatives)
        if first in ("", ",", ".", "=", "!", "~"):
            self._fail("expected a value")
        start = self._at
        self._at += 1
        while _is_value(self._next()):
            self._at += 1
        return self._text[start : self._at]

    def _quoted(self, *, alternatives: bool) -> str:
        match = _QUOTED.match(self._text, self._at)
        if match is None:
            self._fail("unterminated quote")
        if match[1] != '"' and not alternatives:
            self._fail(f"{match[1]} quotes a value after ~= only", hint="use double quotes")
        text = match[2]
        if "\\" in text:
            text = self._unescaped(text, match[1])
        self._at = match.end()
        return text

    def _unescaped(self, text: str, quote: str) -> str:
        """Resolve Go's escapes. Works on bytes, since ``\\x`` and octal escapes denote bytes."""
        parts: list[bytes] = []
        done = 0
        for match in _ESCAPE.finditer(text):
            parts.append(_bytes(text[done : match.start()]))
            done = match.end()
            code = match[1] or ""
            kind = code[:1]
            if len(code) == 1:
                if code == quote:
                    parts.append(_bytes(code))
                elif code in _CONTROLS:
                    parts.append(bytes([_CONTROLS[code]]))
                else:
                    self._fail(f"unknown escape \\{code}", hint="write \\\\ for a backslash in a pattern")
                continue
            number = int(code, 8) if kind.isdigit() else int(code[1:], 16)
            if kind in "uU":
                if number > 0x10FFFF or 0xD800 <= number < 0xE000:
                    self._fail(f"\\{code} is not a character")
                parts.append(_bytes(chr(number)))
            elif number > 0xFF:
                self._fail(f"\\{code} is not a byte")
            else:
                parts.append(bytes([number]))
        parts.append(_bytes(text[done:]))
        return b"".join(parts).decode("utf-8", "surrogateescape")

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip_spaces(self) -> None:
        while _is_space(self._next()):
            self._at += 1

    def _fail(self, problem: str, *, hint: str | None = None) -> NoReturn:
        raise InvalidInput(f"filter {self._text[:200]!r} at character {self._at + 1}: {problem}", hint=hint)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _is_space(character: str) -> bool:
    return character.isspace() and not "\x1c" <= character <= "\x1f"


def _is_value(character: str) -> bool:
    """Return whether Go considers the character graphic, spaces and commas excluded."""
    return character not in ("", ",") and unicodedata.category(character)[0] in "LMNPS"
