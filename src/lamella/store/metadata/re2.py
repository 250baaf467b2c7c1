# SPDX-License-Identifier: Apache-2.0
"""RE2 patterns, translated for Python's `re`.

The translation covers what both read differently: ``$`` is the end of the text only, never before a final newline;
``\\z`` is the end of the text; ``\\d \\w \\s \\b`` are ASCII; ``[[:alpha:]]`` is a class. Syntax that RE2 lacks (back
references, lookaround, possessive repeats) is invalid here too. Syntax that Python lacks (``\\p{Greek}``, ``(?U)``) is
not supported. RE2 searches in linear time, Python backtracks. So patterns that could backtrack without bound are
refused: the repeat of a group that itself repeats or has alternatives, unless it repeats a few times only.
"""

from __future__ import annotations

import re
from typing import Final

from lamella.errors import InvalidInput

MAX_PATTERN: Final = 512
"""Characters of a pattern."""

MAX_REPEATS: Final = 4
"""Unbounded repeats in one pattern; each multiplies the search time by the length of the text."""

_CLASSES: Final = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": r"!-\~",
    "lower": "a-z",
    "print": r" -\~",
    "punct": r"!-/:-@\[-`{-\~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
}
_POSIX: Final = re.compile(r"\[:([a-z]+):\]")
_GROUP: Final = re.compile(r"\(\?(?:P?<[A-Za-z_][A-Za-z0-9_]*>|[ims]*(?:-[ims]+)?:)")
_FLAGS: Final = re.compile(r"\(\?([ims]+)\)")
_REPEAT: Final = re.compile(r"(?:([*+])|(\?)|\{([0-9]{1,4})(,?)([0-9]{0,4})\})(\??)")
_MAX_COUNT: Final = 1000
_FEW: Final = 4
_FIXED, _VARIES, _NESTED = range(3)
"""In how many ways a part can match: in one, in several, or in several at each repeat."""


class _InvalidPatternError(Exception):
    """The pattern is invalid in RE2."""


def compile_pattern(pattern: str) -> re.Pattern[str] | None:
    """Compile a pattern; None if it is invalid in RE2. Raises InvalidInput if it could backtrack without bound."""
    if len(pattern) > MAX_PATTERN:
        raise InvalidInput(f"a pattern of {len(pattern)} characters, more than the limit of {MAX_PATTERN}")
    try:
        return re.compile(_Rewriter(pattern).rewrite(), re.ASCII)
    except (_InvalidPatternError, re.error, OverflowError, RecursionError):
        return None


class _Rewriter:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._open = 0
        self._out: list[str] = []

    def rewrite(self) -> str:
        prefix = ""
        flags = _FLAGS.match(self._pattern)
        if flags is not None:
            self._at = flags.end()
            prefix = f"(?{flags[1]})"
            # With m, $ is the end of a line in both.
        self._lines = flags is not None and "m" in flags[1]
        ways = [_FIXED]
        """One for each open group."""
        last: int | None = None
        """That of the part before, to which a repeat applies; None if there is none."""
        repeats = 0
        while self._at < len(self._pattern):
            character = self._pattern[self._at]
            repeat = _REPEAT.match(self._pattern, self._at)
            if repeat is not None:
                if last is None:
                    raise _InvalidPatternError
                times = self._repeat(repeat)
                repeats += times is None
                if repeats > MAX_REPEATS or (times != 1 and (last == _NESTED or (last and (times or 99) > _FEW))):
                    raise InvalidInput(
                        f"a search for the pattern {self._pattern!r} could take too long",
                        hint="use fewer repeats, and do not repeat a group that contains a repeat or a |",
                    )
                ways[-1] = max(ways[-1], last + 1 if times != 1 else last or _VARIES)
                last = None
                continue
            if character == "(":
                self._group()
                ways.append(_FIXED)
                last = None
            elif character == ")":
                if len(ways) == 1:
                    raise _InvalidPatternError
                last = ways.pop()
                ways[-1] = max(ways[-1], last)
                self._take(1)
            elif character == "|":
                ways[-1] = max(ways[-1], _VARIES)
                last = None
                self._take(1)
            elif character == "[":
                self._class()
                last = _FIXED
            elif character == "\\":
                self._escape()
                last = _FIXED
            elif character == "{":
                self._take(1, r"\{")  # a literal brace, as no count follows
                last = _FIXED
            elif character == "$" and not self._lines:
                self._take(1, r"\Z")
                last = _FIXED
            else:
                self._take(1)
                last = _FIXED
        return prefix + "".join(self._out)

    def _take(self, count: int, text: str | None = None) -> None:
        self._out.append(self._pattern[self._at : self._at + count] if text is None else text)
        self._at += count

    def _repeat(self, match: re.Match[str]) -> int | None:
        """Return the largest number of repeats; None if it is unbounded."""
        star, _, least, comma, most, _ = match.groups()
        if max(int(least or 0), int(most or 0)) > _MAX_COUNT:
            raise _InvalidPatternError
        self._take(len(match[0]))
        if star is not None or (comma and not most):
            return None
        return 1 if least is None else int(most or least)

    def _group(self) -> None:
        match = _GROUP.match(self._pattern, self._at)
        if match is not None:
            text = match[0]
            self._take(len(text), text.replace("(?<", "(?P<"))
        elif self._pattern.startswith("(?", self._at):
            raise _InvalidPatternError
        else:
            self._take(1)

    def _escape(self) -> None:
        following = self._pattern[self._at + 1 : self._at + 2]
        if following == "z":
            self._take(2, r"\Z")
        elif following == "Q":
            end = self._pattern.find(r"\E", self._at)
            literal = self._pattern[self._at + 2 : end if end >= 0 else None]
            self._take(len(literal) + (4 if end >= 0 else 2), re.escape(literal))
        elif following == "x" and self._pattern.startswith("{", self._at + 2):
            end = self._pattern.find("}", self._at)
            digits = self._pattern[self._at + 3 : end]
            if end < 0 or not re.fullmatch("[0-9A-Fa-f]{1,6}", digits) or int(digits, 16) > 0x10FFFF:
                raise _InvalidPatternError
            self._take(end + 1 - self._at, re.escape(chr(int(digits, 16))))
        elif following and (following in "AbBdDsSwWafnrtvx" or not following.isalnum()):
            self._take(2)
        else:
            raise _InvalidPatternError  # \Z, \G, back references, and escapes that Python lacks

    def _class(self) -> None:
        end = self._at + 1
        out = ["["]
        if self._pattern.startswith("^", end):
            out.append("^")
            end += 1
        first = True
        while True:
            character = self._pattern[end : end + 1]
            posix = _POSIX.match(self._pattern, end)
            if character == "":
                raise _InvalidPatternError
            if character == "]" and not first:
                break
            if posix is not None:
                if posix[1] not in _CLASSES:
                    raise _InvalidPatternError
                out.append(_CLASSES[posix[1]])
                end = posix.end()
            elif character == "\\":
                out.append(self._pattern[end : end + 2])
                end += 2
            else:
                # Python warns of syntax reserved for nested sets.
                twice = character == "-" and (first or out[-1] == "-")
                out.append(f"\\{character}" if twice or character in "[]&|~^" else character)
                end += 1
            first = False
        self._take(end + 1 - self._at, "".join(out) + "]")
