# SPDX-License-Identifier: Apache-2.0
"""Output of verbs: results on standard output, everything else on standard error."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from lamella.changes.job import Job
    from lamella.changes.losses import Losses

_PATIENCE: Final = 0.4
"""Seconds before a bar appears: most operations end earlier, and loading it would slow them."""


class Bar:
    """A progress bar that appears only for long steps, and disappears at their end."""

    def __init__(self) -> None:
        self._what = ""
        self._total = 0
        self._done = 0
        self._due = 0.0
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def start(self, what: str, total: int | None) -> None:
        self.finish()
        self._what, self._total, self._done = what, total or 0, 0
        self._due = time.monotonic() + _PATIENCE

    def advance(self, amount: int) -> None:
        """Count ``amount`` bytes. Not atomic: two threads may lose a count, which is only displayed."""
        self._done += amount
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done)
        elif time.monotonic() >= self._due > 0:
            self._show()

    def finish(self) -> None:
        self._due = 0.0
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()

    def _show(self) -> None:
        from rich import progress
        from rich.console import Console

        self._due = 0.0
        bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(binary_units=True),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = bar.add_task(self._what, total=self._total or None, completed=self._done)
        bar.start()
        self._bar = bar


_LOSSES_SHOWN: Final = 5


class Console:
    """The output of one run. The three switches may be set until a verb starts."""

    __slots__ = ("debug", "json", "quiet")

    def __init__(self) -> None:
        self.json = False
        """Standard output is one JSON document."""
        self.quiet = False
        """Show neither progress nor summaries."""
        self.debug = False
        """Show tracebacks of errors."""

    def line(self, text: str = "") -> None:
        """Print a line of the result; on a terminal with escapes, since an image chooses its names and labels."""
        if not text.isprintable() and is_terminal(sys.stdout):
            text = printable(text)
        sys.stdout.write(text + "\n")

    def summary(self, text: str) -> None:
        """Print a line of the summary, unless --quiet or --json is given."""
        if not self.quiet and not self.json:
            self.line(text)

    def document(self, value: Any) -> None:
        """Print the JSON document."""
        import json

        sys.stdout.write(json.dumps(value, indent=2) + "\n")

    def warn(self, text: str) -> None:
        """Print a warning."""
        _print_error(f"lamella: warning: {printable(text)}")

    def error(self, text: str, hint: str | None = None, notes: Iterable[str] = ()) -> None:
        """Print an error with its notes and its hint."""
        message = [f"lamella: {printable(text)}", *(f"note: {printable(note)}" for note in notes)]
        if hint:
            message.append(f"hint: {printable(hint)}")
        _print_error("\n".join(message))

    def losses(self, losses: Losses) -> None:
        """Warn of losses: the first few, and their number."""
        count = len(losses)
        if not count:
            return
        if not self.quiet:
            for loss in losses.kept[:_LOSSES_SHOWN]:
                self.warn(str(loss))
        if self.quiet or count > _LOSSES_SHOWN:
            self.warn(f"{count} {'thing was' if count == 1 else 'things were'} not kept in all; --json lists them")

    def binary(self) -> BinaryIO:
        """Standard output for bytes."""
        sys.stdout.flush()
        return sys.stdout.buffer

    @staticmethod
    def binary_input() -> BinaryIO:
        """Standard input for bytes. Raises InvalidInput if it is closed."""
        if sys.stdin is None:
            from lamella.errors import InvalidInput

            raise InvalidInput("standard input is closed")
        return sys.stdin.buffer

    def blob_output(self) -> BinaryIO:
        """Standard output for a blob. Raises InvalidInput if it is a terminal."""
        if is_terminal(sys.stdout):
            from lamella.errors import InvalidInput

            raise InvalidInput(
                "a blob cannot be written to a terminal", hint="redirect standard output, or name a file"
            )
        return self.binary()

    def job(self, *, strict: bool = False) -> Job:
        """The job of a verb: a progress bar on a terminal, stopped by Ctrl-C; ``strict`` refuses losses.

        From this call on, a signal stops the operation between two steps, so that it cleans up.
        """
        from lamella.changes.job import Job
        from lamella.changes.losses import Losses
        from lamella.cli.signals import cancellation

        shown = is_terminal(sys.stderr) and not self.quiet and not self.json
        return Job(progress=Bar() if shown else None, cancel=cancellation(), losses=Losses(refuse=strict))

    @staticmethod
    def prepare_streams() -> None:
        """Pass any bytes in file names through standard output, whatever the locale."""
        for name, errors in (("stdout", "surrogateescape"), ("stderr", "backslashreplace")):
            stream = getattr(sys, name)
            if stream is None:  # closed by the parent process
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors=errors))  # noqa: SIM115
            elif hasattr(stream, "reconfigure"):
                stream.reconfigure(encoding="utf-8", errors=errors)

    @staticmethod
    def abandon_output() -> None:
        """Discard buffered output after standard output failed, so that it does not fail again at exit."""
        try:
            sys.stdout.flush()
        except (OSError, ValueError):
            _silence(sys.stdout)


def _print_error(text: str) -> None:
    """Print to standard error; ignore failures such as a full disk."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _silence(sys.stderr)


def _silence(stream: TextIO) -> None:
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass


def is_terminal(stream: object) -> bool:
    """Whether the stream is a terminal; False if it is closed or None."""
    try:
        return bool(getattr(stream, "isatty", bool)())
    except ValueError:
        return False


def printable(text: str) -> str:
    """``text`` with escapes for characters that move the cursor or hide or reorder text."""
    if text.isprintable():
        return text
    return "".join(_printable(letter) for letter in text)


def _printable(letter: str) -> str:
    if letter.isprintable():
        return letter
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(letter) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )


def counted(number: int, one: str, many: str) -> str:
    """``number`` with the noun in singular or plural."""
    return f"{number} {one if number == 1 else many}"


def human_size(size: int) -> str:
    """``size`` bytes with about three digits, in powers of 1024."""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 999.5:
            return f"{value:.{1 if value < 99.95 else 0}f} {unit}"
    return f"{value / 1024:.1f} PiB"


def columns(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> Iterator[str]:
    """``rows`` as aligned lines without trailing spaces; the columns numbered in ``right`` are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "  ".join(f"{{:{'>' if at in right else '<'}{width}}}" for at, width in enumerate(widths)).format
    for row in rows:
        yield line(*row).rstrip()
