# SPDX-License-Identifier: Apache-2.0
"""Canonical text of changes, one line each: writer and parser.

::

    put directory 0755 0:0 1700000000.5 usr/bin
    put file 4755 0:0 1700000000 usr/bin/su size=12 sha256=9f86… xattr.security.capability=\\x01\\x00…
    put file 0644 0:0 1700000000 etc/motd size=6 text=hello\\n
    put symlink 0777 0:0 0 lib target=usr/lib
    put character 0666 0:0 0 dev/null device=1:3
    link usr/bin/sg target=usr/bin/newgrp
    stream a/b name=Zone.Identifier size=26 sha256=…
    whiteout etc/passwd
    opaque var/cache

A put gives kind, mode, ``uid:gid``, time of last change and path, then ``key=value`` fields in a fixed order; mode,
owner and time are ``-`` where there is no POSIX facet. The root's path is ``.``. The Windows facet is ``attributes``
(always, where there is one), ``created``, ``accessed``, ``written``, ``changed``, ``sd`` and ``reparse`` (base64), and
``ea.NAME`` for each extended attribute.

Content is ``size`` and the SHA-256 of its bytes; of a file with holes, ``data`` lists where data lies, as
``offset+length``, and the SHA-256 is that of the data alone, so a hole costs nothing. Small content can be part of
the line, as ``text`` or ``base64``.

All is visible ASCII: other bytes are written as ``\\xNN``, and ``\\n \\t \\r \\s`` (a space) ``\\\\``. Lines that are
empty or start with ``#`` mean nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, Self, assert_never

from msgspec import Struct

from lamella.changes.contracts import Source
from lamella.changes.model import (
    EMPTY,
    NO_XATTRS,
    Buffer,
    Change,
    Content,
    Entry,
    Inline,
    Kind,
    Link,
    Opaque,
    Posix,
    Put,
    Sparse,
    Stream,
    Whiteout,
    Windows,
    dense,
)
from lamella.errors import InvalidInput, NotFound, SizeMismatch
from lamella.paths import LayerPath
from lamella.times import format_pax_time, parse_pax_time


class Withheld(Struct):
    """Content that a dump describes but does not contain; reading it raises NotFound."""

    size: int
    extents: Sequence[tuple[int, int]] | None
    sha256: str
    """Of the data of the extents, lower-case hexadecimal."""

    @property
    def stored(self) -> Literal[True]:
        return True

    def chunks(self) -> Iterable[Buffer]:
        raise NotFound(f"a dump does not contain the content with sha256 {self.sha256}")


def dump(changes: Source, *, inline: int = 0, extents: bool = True) -> Iterator[str]:
    """Yield ``changes`` as lines without line ends; equal lists of changes give equal lines.

    Content of up to ``inline`` bytes is written into the line; longer content is read and digested while its change is
    current. Without ``extents`` holes are read as zeros, since file systems round holes differently.

    Raises SizeMismatch if content is shorter or longer than its size, and what reading it raises.
    """
    for change in changes:
        match change:
            case Put(entry, content):
                fields = [*_metadata(entry), *_content(entry, content, inline, extents=extents)]
            case Link(path, target):
                fields = ["link", _path(path), f"target={_path(target)}"]
            case Stream(path, name, content):
                fields = ["stream", _path(path), f"name={escape(name)}"]
                fields += _bytes_of(f"{path}:{name}", content, inline, extents=extents)
            case Whiteout(path):
                fields = ["whiteout", _path(path)]
            case Opaque(path):
                fields = ["opaque", _path(path)]
            case _:
                assert_never(change)
        yield " ".join(fields)


def parse_dump(lines: Iterable[str]) -> Iterator[Change]:
    """Parse ``lines``, with or without line ends. Content that the dump does not contain becomes `Withheld`.

    Paths are not checked: a dump may describe a hostile layer. Raises InvalidInput with the line number.
    """
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if not text or text.startswith("#"):
            continue
        try:
            yield _change(text.split(" "))
        except (InvalidInput, ValueError, KeyError, binascii.Error) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else error
            raise InvalidInput(f"line {number} of the dump: {what}") from error


# Writing


def _metadata(entry: Entry) -> Iterator[str]:
    posix, windows, kind = entry.posix, entry.windows, entry.kind
    yield "put"
    yield kind.value
    if posix is None:
        yield from "---"
    else:
        yield f"{posix.mode:04o}"
        yield f"{posix.uid}:{posix.gid}"
        yield format_pax_time(posix.mtime)
    yield _path(entry.path)
    if entry.target or kind is Kind.SYMLINK:
        yield f"target={escape(entry.target)}"
    if posix is not None:
        if kind in (Kind.CHARACTER, Kind.BLOCK) or posix.device != (0, 0):
            yield f"device={posix.device[0]}:{posix.device[1]}"
        yield from _named("xattr", posix.xattrs)
    if windows is not None:
        yield f"attributes={windows.attributes:#x}"
        for key, time in zip(_TIMES, _times(windows), strict=True):
            if time is not None:
                yield f"{key}={format_pax_time(time)}"
        if windows.security_descriptor is not None:
            yield f"sd={_base64(windows.security_descriptor)}"
        if windows.reparse is not None:
            yield f"reparse={_base64(windows.reparse)}"
        yield from _named("ea", windows.extended_attributes)


_TIMES: Final = ("created", "accessed", "written", "changed")


def _times(windows: Windows) -> tuple[int | None, ...]:
    return windows.creation_time, windows.access_time, windows.write_time, windows.change_time


def _named(prefix: str, values: Mapping[str, bytes]) -> Iterator[str]:
    for name in sorted(values, key=lambda name: name.encode("utf-8", "surrogateescape")):
        value = values[name].decode("utf-8", "surrogateescape")
        yield f"{prefix}.{escape(name).replace('=', EQUALS)}={escape(value)}"


EQUALS: Final = "\\x3d"


def _path(path: str) -> str:
    if path == ".":
        return "\\x2e"
    return escape(path) or "."


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _content(entry: Entry, content: Content | None, inline: int, *, extents: bool) -> list[str]:
    if content is None:
        if entry.kind is not Kind.FILE:
            return []
        content = EMPTY
    if content.size != entry.size:
        raise SizeMismatch(f"content of {entry.path!r}", expected=entry.size, actual=content.size)
    return _bytes_of(entry.path, content, inline, extents=extents)


def _bytes_of(what: str, content: Content, inline: int, *, extents: bool) -> list[str]:
    size = content.size
    fields = [f"size={size}"]
    pieces = _merged(content.extents, size) if extents else None
    expected = size
    if pieces is not None:
        fields.append("data=" + ",".join(f"{offset}+{length}" for offset, length in pieces))
        expected = sum(length for _, length in pieces)
    if isinstance(content, Withheld):
        fields.append(f"sha256={content.sha256}")
        return fields
    if not expected:
        return fields
    state = hashlib.sha256()
    held = bytearray()
    count = 0
    for chunk in content.chunks() if extents else dense(content):
        count += len(chunk)
        if expected <= inline:
            held += chunk
        else:
            state.update(chunk)
    if count != expected:
        raise SizeMismatch(f"content of {what!r}", expected=expected, actual=count)
    if expected > inline:
        fields.append(f"sha256={state.hexdigest()}")
    elif _TEXT.fullmatch(held):
        fields.append(f"text={escape(held.decode('ascii'))}")
    else:
        fields.append(f"base64={_base64(bytes(held))}")
    return fields


_TEXT: Final = re.compile(rb"[ -~\n\t\r]*")


def _merged(extents: Sequence[tuple[int, int]] | None, size: int) -> list[tuple[int, int]] | None:
    """Canonical extents: none empty, none adjacent to the next, None if there are no holes."""
    if extents is None:
        return None
    merged: list[tuple[int, int]] = []
    for offset, length in extents:
        if merged and sum(merged[-1]) == offset:
            merged[-1] = (merged[-1][0], merged[-1][1] + length)
        elif length:
            merged.append((offset, length))
    return None if merged == [(0, size)] or not size else merged


# Reading


def _change(words: list[str]) -> Change:
    match words:
        case ["put", kind, mode, owner, time, path, *fields]:
            return _put(Kind(kind), mode, owner, time, _read_path(path), _Fields(fields))
        case ["link", path, *fields]:
            with _Fields(fields) as rest:
                return Link(_read_path(path), _read_path(rest.take("target")))
        case ["stream", path, *fields]:
            with _Fields(fields) as rest:
                name = unescape(rest.take("name"))
                content = _read_content(rest)
                return Stream(_read_path(path), name, EMPTY if content is None else content)
        case ["whiteout", path]:
            return Whiteout(_read_path(path))
        case ["opaque", path]:
            return Opaque(_read_path(path))
        case _:
            raise InvalidInput(f"unknown change {' '.join(words)[:60]!r}")


class _Fields:
    """The ``key=value`` fields of a line; each is taken once, and a remaining field is an error."""

    def __init__(self, fields: list[str]) -> None:
        self._values: dict[str, str] = {}
        for field in fields:
            key, equals, value = field.partition("=")
            if not equals or key in self._values:
                raise InvalidInput(f"the field {field[:60]!r} has no value or is repeated")
            self._values[key] = value

    def take(self, key: str) -> str:
        return self._values.pop(key)

    def get(self, key: str) -> str | None:
        return self._values.pop(key, None)

    def named(self, prefix: str) -> Mapping[str, bytes]:
        keys = [key for key in self._values if key.startswith(prefix + ".")]
        if not keys:
            return NO_XATTRS
        return {unescape(key[len(prefix) + 1 :]): _read_bytes(self._values.pop(key)) for key in keys}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None and self._values:
            raise InvalidInput(f"unknown field {next(iter(self._values))[:60]!r}")


def _put(kind: Kind, mode: str, owner: str, time: str, path: LayerPath, fields: _Fields) -> Put:
    with fields:
        target = fields.get("target")
        posix: Posix | None = None
        if (mode, owner, time) != ("-", "-", "-"):
            posix = Posix(
                int(_matched(r"[0-7]{4,5}", mode), 8),
                *_pair(owner),
                parse_pax_time(time),
                fields.named("xattr"),
                _pair(fields.get("device") or "0:0"),
            )
        windows = _windows(fields)
        content: Content | None = None
        if kind is Kind.FILE:
            content = _read_content(fields) or EMPTY
        size = 0 if content is None else content.size
        return Put(Entry(path, kind, posix, size, unescape(target or ""), windows), content)


def _windows(fields: _Fields) -> Windows | None:
    attributes = fields.get("attributes")
    if attributes is None:
        return None
    created, accessed, written, changed = (_time(fields.get(key)) for key in _TIMES)
    return Windows(
        int(_matched("0x[0-9a-f]+", attributes), 16),
        created,
        accessed,
        written,
        changed,
        _unbase64(fields.get("sd")),
        fields.named("ea"),
        _unbase64(fields.get("reparse")),
    )


def _time(text: str | None) -> int | None:
    return None if text is None else parse_pax_time(text)


def _unbase64(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)


def _read_content(fields: _Fields) -> Content | None:
    size_text, map_text = fields.get("size"), fields.get("data")
    text, encoded, sha256 = fields.get("text"), fields.get("base64"), fields.get("sha256")
    held = _unbase64(encoded) if text is None else _read_bytes(text)
    if size_text is None:
        if held is None:
            return None
        size = len(held)
    else:
        size = int(_matched("[0-9]+", size_text))
    extents = None if map_text is None else _extents(map_text, size)
    expected = size if extents is None else sum(length for _, length in extents)
    if held is None:
        if sha256 is not None:
            return Withheld(size, extents, _matched("[0-9a-f]{64}", sha256))
        if expected:
            raise InvalidInput("content without sha256, text or base64")
        held = b""
    if len(held) != expected:
        raise InvalidInput(f"content of {len(held)} bytes where {expected} are stated")
    return Inline(held) if extents is None else Sparse(size, extents, held)


def _extents(text: str, size: int) -> tuple[tuple[int, int], ...]:
    extents: list[tuple[int, int]] = []
    end = 0
    for part in text.split(",") if text else []:
        offset, length = map(int, _matched(r"[0-9]+\+[0-9]+", part).split("+"))
        if offset < end:
            raise InvalidInput(f"extent {part!r} overlaps the previous one")
        end = offset + length
        extents.append((offset, length))
    if end > size:
        raise InvalidInput(f"extents end at {end}, past the size {size}")
    return tuple(extents)


def _pair(text: str) -> tuple[int, int]:
    first, second = _matched("-?[0-9]+:-?[0-9]+", text).split(":")
    return int(first), int(second)


def _matched(pattern: str, text: str) -> str:
    if not re.fullmatch(pattern, text, re.ASCII):
        raise InvalidInput(f"malformed value {text[:60]!r}")
    return text


def _read_path(text: str) -> LayerPath:
    return LayerPath("" if text == "." else unescape(text))


def _read_bytes(text: str) -> bytes:
    return unescape(text).encode("utf-8", "surrogateescape")


# Escapes

_ODD: Final = re.compile(r"[^!-\[\]-~]")
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|([ntrs\\]))|\\|[^\\]+")
_SHORT: Final = {"\n": "\\n", "\t": "\\t", "\r": "\\r", " ": "\\s", "\\": "\\\\"}
_LONG: Final = {short[1]: char for char, short in _SHORT.items()}


def escape(text: str) -> str:
    """``text`` in visible ASCII without spaces; bytes that are not UTF-8 are given as surrogate escapes (PEP 383)."""
    return _ODD.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    char = match[0]
    short = _SHORT.get(char)
    if short is not None:
        return short
    try:
        return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # a lone UTF-16 surrogate, which only Windows names have
        return f"\\u{ord(char):04x}"


def unescape(text: str) -> str:
    """The inverse of `escape`. Raises InvalidInput."""
    if "\\" not in text:
        return text
    parts: list[str] = []
    run = bytearray()
    for match in _ESCAPE.finditer(text):
        byte, half, short = match.groups()
        if byte:
            run.append(int(byte, 16))
        elif half:
            parts += (run.decode("utf-8", "surrogateescape"), chr(int(half, 16)))
            run.clear()
        elif short:
            run += _LONG[short].encode()
        elif match[0] == "\\":
            raise InvalidInput(f"unknown escape in {text[:60]!r}")
        else:
            run += match[0].encode("utf-8", "surrogateescape")
    parts.append(run.decode("utf-8", "surrogateescape"))
    return "".join(parts)
