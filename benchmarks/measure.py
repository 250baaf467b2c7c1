# SPDX-License-Identifier: Apache-2.0
"""Times whole commands, start to end, in turns.

A child's peak memory is never reported below this process's own at the moment of the fork, so what is imported here
stays small.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


class CommandFailed(Exception):
    """A measured command ended with an error."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: wall seconds, processor seconds, peak resident KiB (of the largest process, where there are several)."""

    wall: float
    cpu: float
    peak_kib: int


@dataclass(slots=True)
class Contender:
    """One way to do a workload: `work` is timed, `before` and `after` are not."""

    name: str
    work: Callable[[], Sample]
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None
    size: Callable[[], int | None] = lambda: None
    """The size of what the work wrote, if that is part of the comparison; asked before `after`."""
    samples: list[Sample] = field(default_factory=list)
    written: int | None = None
    failure: str | None = None

    @property
    def wall(self) -> float:
        """The median of the wall seconds."""
        return statistics.median(sample.wall for sample in self.samples)

    @property
    def peak_mb(self) -> float:
        """The highest peak, in millions of bytes."""
        return max(sample.peak_kib for sample in self.samples) * 1024 / 1e6


def timed(commands: Sequence[Sequence[str]], log: Path, cwd: Path | None = None) -> Sample:
    """Run commands one after the other and return what they took together; raise when one of them fails."""
    cpu = 0.0
    peak = 0
    start = time.perf_counter()
    for command in commands:
        pid = os.fork()
        if pid == 0:
            try:
                output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(output, 1)
                os.dup2(output, 2)
                if cwd is not None:
                    os.chdir(cwd)
                os.execvp(command[0], list(command))
            finally:
                os._exit(127)
        _, status, usage = os.wait4(pid, 0)
        if status:
            last = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise CommandFailed(f"{' '.join(command)}: exit {os.waitstatus_to_exitcode(status)}: {' / '.join(last)}")
        cpu += usage.ru_utime + usage.ru_stime
        peak = max(peak, usage.ru_maxrss)
    return Sample(time.perf_counter() - start, cpu, peak)


def take_turns(contenders: Sequence[Contender], rounds: int, say: Callable[[str], None]) -> None:
    """Let each contender work once a round, so that whatever slows the machine slows all of them.

    One that fails is left out of the further rounds, and its failure is kept.
    """
    for number in range(rounds):
        for contender in contenders:
            if contender.failure is not None:
                continue
            say(f"round {number + 1}/{rounds}: {contender.name}")
            contender.before()
            try:
                contender.samples.append(contender.work())
                contender.written = contender.size()
            except CommandFailed as failure:
                contender.failure = str(failure)
                contender.samples.clear()
            finally:
                contender.after()
