# SPDX-License-Identifier: Apache-2.0
"""Patterns in RE2's language, as far as Python's `re` can search for them.

What the two read differently is rewritten: ``$`` is the end of the text and never before a last newline, ``\\z`` is
that end too, ``\\d \\w \\s \\b`` know ASCII alone, and ``[[:alpha:]]`` are classes. What RE2 has not (references back,
looking around, possessive repeats) is no pattern here either. What Python has not (``\\p{Greek}``, ``(?U)``) is not
supported. RE2 searches in linear time and Python by trying, so that what would be tried without end is refused: the
repeat of a group that itself repeats or has alternatives, unless it is a few times.
"""

from __future__ import annotations

import re
from typing import Final

from lamella.errors import InvalidInput

MAX_PATTERN: Final = 512
"""Characters in a pattern."""

MAX_REPEATS: Final = 4
"""Repeats without an upper bound in one pattern; each multiplies the time of a search by the length of the text."""

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
"""In how many ways a part can be tried: one, some, or some for each of a few times."""


class _NoPatternError(Exception):
    """RE2 would not take it."""


def compile_pattern(pattern: str) -> re.Pattern[str] | None:
    """What searches for ``pattern``, or None where RE2 would not take it.

    Raises InvalidInput where a search could take without end.
    """
    if len(pattern) > MAX_PATTERN:
        raise InvalidInput(f"a pattern of {len(pattern)} characters; {MAX_PATTERN} is the most")
    try:
        return re.compile(_Rewriter(pattern).rewritten(), re.ASCII)
    except (_NoPatternError, re.error, OverflowError, RecursionError):
        return None


class _Rewriter:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._open = 0
        self._out: list[str] = []

    def rewritten(self) -> str:
        prefix = ""
        flags = _FLAGS.match(self._pattern)
        if flags is not None:
            self._at = flags.end()
            prefix = f"(?{flags[1]})"
            # With m, $ keeps its meaning of the end of a line, which both read alike.
        self._lines = flags is not None and "m" in flags[1]
        ways = [_FIXED]
        """Of each group that is open."""
        last: int | None = None
        """Of what the next repeat would apply to; None where there is nothing to repeat."""
        repeats = 0
        while self._at < len(self._pattern):
            character = self._pattern[self._at]
            repeat = _REPEAT.match(self._pattern, self._at)
            if repeat is not None:
                if last is None:
                    raise _NoPatternError
                times = self._repeat(repeat)
                repeats += times is None
                if repeats > MAX_REPEATS or (times != 1 and (last == _NESTED or (last and (times or 99) > _FEW))):
                    raise InvalidInput(
                        f"the pattern {self._pattern!r} could be searched for without end",
                        hint="write it with fewer repeats, and none of a group that holds a repeat or a |",
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
                    raise _NoPatternError
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
                self._take(1, r"\{")  # where no count follows it stands for itself
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
        """How often at most; None where there is no bound."""
        star, _, least, comma, most, _ = match.groups()
        if max(int(least or 0), int(most or 0)) > _MAX_COUNT:
            raise _NoPatternError
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
            raise _NoPatternError
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
                raise _NoPatternError
            self._take(end + 1 - self._at, re.escape(chr(int(digits, 16))))
        elif following and (following in "AbBdDsSwWafnrtvx" or not following.isalnum()):
            self._take(2)
        else:
            raise _NoPatternError  # \Z, \G, references back, and what Python has not

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
                raise _NoPatternError
            if character == "]" and not first:
                break
            if posix is not None:
                if posix[1] not in _CLASSES:
                    raise _NoPatternError
                out.append(_CLASSES[posix[1]])
                end = posix.end()
            elif character == "\\":
                out.append(self._pattern[end : end + 2])
                end += 2
            else:
                # Python warns of what may come to mean sets in sets one day.
                twice = character == "-" and (first or out[-1] == "-")
                out.append(f"\\{character}" if twice or character in "[]&|~^" else character)
                end += 1
            first = False
        self._take(end + 1 - self._at, "".join(out) + "]")
