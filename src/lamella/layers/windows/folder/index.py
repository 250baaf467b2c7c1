# SPDX-License-Identifier: Apache-2.0
"""The index of a layer folder: all entries of the layer in their order, with everything but the content of files.

Each fact is one line of JSON; the first line identifies the file, the last one counts the facts. A security descriptor
has its own line, and is referenced by number afterwards, since a layer has few of them. Times are nanoseconds since
1970. The index is written and read as a stream.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Final, TypeAlias

from msgspec import Struct

from lamella.changes.model import NO_XATTRS, Entry, Kind, Windows
from lamella.errors import FormatError, UnsafePath, Unsupported
from lamella.layers.windows.layout import INDEX
from lamella.paths import LayerPath, parse_path

VERSION: Final = 1
BASE: Final = "base"
TRANSPORT: Final = "transport"

_KINDS: Final = {"file": Kind.FILE, "directory": Kind.DIRECTORY, "symlink": Kind.SYMLINK}
_LONGEST: Final = 4 << 20
"""Bytes of a line; a security descriptor, a reparse point and extended attributes have at most 64 KiB each."""
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


class PutFact(Struct):
    """A file. Its content starts ``at`` bytes into the file on disk; None if the file on disk is the content."""

    entry: Entry
    at: int | None
    extents: Sequence[tuple[int, int]] | None = None
    has_data: bool = False
    """Whether an empty file has a data stream."""


class LinkFact(Struct):
    """A hard link, with the attributes and times of its target at that point."""

    path: LayerPath
    target: LayerPath
    windows: Windows


class StreamFact(Struct):
    """An alternate data stream. Its content starts ``at`` bytes into the file that holds it."""

    path: LayerPath
    name: str
    size: int
    at: int


class WhiteoutFact(Struct):
    """A file of the layers below is hidden."""

    path: LayerPath


Fact: TypeAlias = PutFact | LinkFact | StreamFact | WhiteoutFact


class IndexWriter:
    """Writes an index to ``write``; `finish` ends it."""

    __slots__ = ("_count", "_descriptors", "_write")

    def __init__(self, write: Callable[[bytes], object], form: str) -> None:
        self._write = write
        self._descriptors: dict[bytes, int] = {}
        self._count = 0
        self._line({"lamella": "windows layer", "version": VERSION, "form": form})

    def put(self, fact: PutFact) -> None:
        """Write a file."""
        entry = fact.entry
        windows = entry.windows
        assert windows is not None  # noqa: S101  # the sink requires it
        line: dict[str, Any] = {"put": entry.path, "kind": entry.kind.value, **self._facts(windows)}
        if windows.security_descriptor is not None:
            line["security"] = self._descriptor(windows.security_descriptor)
        if windows.extended_attributes:
            line["extended"] = [[name, _base64(value)] for name, value in windows.extended_attributes.items()]
        if windows.reparse is not None:
            line["reparse"] = _base64(windows.reparse)
        if entry.kind is Kind.SYMLINK:
            line["target"] = entry.target
        elif entry.kind is Kind.FILE:
            line["size"] = entry.size
        if fact.at is not None:
            line["at"] = fact.at
        if fact.extents is not None:
            line["extents"] = fact.extents
        if fact.has_data:
            line["data"] = True
        self._fact(line)

    def link(self, fact: LinkFact) -> None:
        """Write a hard link."""
        self._fact({"link": fact.path, "target": fact.target, **self._facts(fact.windows)})

    def stream(self, fact: StreamFact) -> None:
        """Write an alternate data stream."""
        self._fact({"stream": fact.path, "name": fact.name, "size": fact.size, "at": fact.at})

    def whiteout(self, path: LayerPath) -> None:
        """Write a whiteout."""
        self._fact({"whiteout": path})

    def finish(self) -> None:
        """Write the last line."""
        self._line({"end": self._count})

    def _facts(self, windows: Windows) -> dict[str, Any]:
        times = windows.creation_time, windows.access_time, windows.write_time, windows.change_time
        return {"attributes": windows.attributes, "times": times}

    def _descriptor(self, descriptor: bytes) -> int:
        number = self._descriptors.get(descriptor)
        if number is None:
            number = self._descriptors[descriptor] = len(self._descriptors)
            self._line({"descriptor": _base64(descriptor)})
        return number

    def _fact(self, line: dict[str, Any]) -> None:
        self._count += 1
        self._line(line)

    def _line(self, line: dict[str, Any]) -> None:
        self._write(_encode(line).encode() + b"\n")


class IndexReader:
    """The facts of an index, in order. Raises FormatError; Unsupported for a later version.

    The index is untrusted input, and validated in full.
    """

    __slots__ = ("_at", "_descriptors", "_file", "form")

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._at = 0
        self._descriptors: list[bytes] = []
        head = self._line(file.readline(_LONGEST))
        if head.get("lamella") != "windows layer" or type(head.get("version")) is not int:
            raise self._error("not the index of a Windows layer")
        if head["version"] != VERSION:
            raise Unsupported(f"the index has version {head['version']}; only version {VERSION} is supported")
        self.form: str = head.get("form", "")
        if self.form not in (BASE, TRANSPORT):
            raise self._error(f"unknown form {self.form!r}")

    def __iter__(self) -> Iterator[Fact]:
        count = 0
        for raw in iter(lambda: self._file.readline(_LONGEST), b""):
            line = self._line(raw)
            try:
                fact = self._fact(line)
            except (LookupError, TypeError, ValueError, UnsafePath) as error:
                raise self._error(f"malformed line: {type(error).__name__} {error}") from None
            if type(fact) is int:
                if fact != count:
                    raise self._error(f"expected {fact} facts, found {count}")
                if self._file.read(1):
                    raise self._error("data after its last line")
                return
            if fact is not None:
                count += 1
                yield fact  # type: ignore[misc]  # an int was handled above
            self._at += len(raw)
        raise self._error("the last line is missing")

    def _line(self, raw: bytes) -> dict[str, Any]:
        if not raw.endswith(b"\n"):
            raise self._error("a line is truncated or too long")
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            raise self._error("a line is not JSON") from None
        if type(line) is not dict:
            raise self._error("a line is not an object")
        return line

    def _fact(self, line: dict[str, Any]) -> Fact | int | None:
        if "put" in line:
            return self._put(line)
        if "link" in line:
            return LinkFact(self._path(line["link"]), self._path(line["target"]), self._windows(line))
        if "stream" in line:
            return StreamFact(self._path(line["stream"]), _text(line["name"]), _count(line["size"]), _count(line["at"]))
        if "whiteout" in line:
            return WhiteoutFact(self._path(line["whiteout"]))
        if "descriptor" in line:
            self._descriptors.append(_bytes(line["descriptor"]))
            return None
        return _count(line["end"])

    def _put(self, line: dict[str, Any]) -> PutFact:
        windows = self._windows(line)
        if "security" in line:
            windows.security_descriptor = self._descriptors[_count(line["security"])]
        if "extended" in line:
            windows.extended_attributes = {_text(name): _bytes(value) for name, value in line["extended"]}
        if "reparse" in line:
            windows.reparse = _bytes(line["reparse"])
        kind = _KINDS[line["kind"]]
        size = _count(line["size"]) if kind is Kind.FILE else 0
        target = _text(line["target"]) if kind is Kind.SYMLINK else ""
        entry = Entry(self._path(line["put"]), kind, None, size, target, windows)
        extents = None
        if "extents" in line:
            extents = [(_count(offset), _count(length)) for offset, length in line["extents"]]
            ends = [0, *(offset + length for offset, length in extents)]
            if any(end > offset for end, (offset, _) in zip(ends, extents, strict=False)) or ends[-1] > size:
                raise ValueError("overlapping extents")
        at = _count(line["at"]) if "at" in line else None
        return PutFact(entry, at, extents, line.get("data") is True)

    def _windows(self, line: Mapping[str, Any]) -> Windows:
        creation, access, write, change = (None if time is None else _integer(time) for time in line["times"])
        return Windows(_count(line["attributes"]), creation, access, write, change, None, NO_XATTRS)

    def _path(self, path: Any) -> LayerPath:
        if type(path) is not str or not path or parse_path(path) != path:
            raise ValueError(f"not a layer path: {path!r}")
        return LayerPath(path)

    def _error(self, problem: str) -> FormatError:
        return FormatError(INDEX, self._at, problem)


def _base64(value: bytes) -> str:
    return b64encode(value).decode()


def _bytes(text: Any) -> bytes:
    return b64decode(_text(text), validate=True)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"expected a string, got {type(value).__name__}")
    return value


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"expected an integer, got {type(value).__name__}")
    return value


def _count(value: Any) -> int:
    if _integer(value) < 0:
        raise ValueError("negative number")
    return int(value)
