# SPDX-License-Identifier: Apache-2.0
"""What was measured, as a table for people and as JSON for machines."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any

from benchmarks.measure import Contender
from benchmarks.workloads import LAMELLA, Bar, Workload

BASES = ("containerd", "bsdtar")


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return rows as columns, the first ones flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _by_name(workload: Workload) -> dict[str, Contender]:
    return {contender.name: contender for contender in workload.contenders if contender.samples}


def ratio(workload: Workload, who: str, peer: str, of: str = "time") -> float | None:
    """Return how much of a peer's median time, or of its size, another contender took; None where one is missing.

    Times are compared round by round, and the median of the ratios is taken: what slows one round slows both. Seconds
    are its own median, without a peer.
    """
    measured = _by_name(workload)
    if of == "seconds":
        return measured[who].wall if who in measured else None
    if who not in measured or peer not in measured:
        return None
    one, other = measured[who], measured[peer]
    if of == "size":
        return one.written / other.written if one.written and other.written else None
    pairs = sorted(mine.wall / its.wall for mine, its in zip(one.samples, other.samples, strict=False))
    middle = len(pairs) // 2
    return pairs[middle] if len(pairs) % 2 else (pairs[middle - 1] + pairs[middle]) / 2


def rows_of(workload: Workload) -> list[list[str]]:
    """Return a workload's rows: who, median, least, processor seconds, peak, size, ratios."""
    rows = []
    for contender in workload.contenders:
        if not contender.samples:
            rows.append([workload.name, contender.name, *["-"] * (5 + len(BASES))])
            continue
        cells = [
            workload.name,
            contender.name,
            f"{contender.wall:.3f}",
            f"{min(sample.wall for sample in contender.samples):.3f}",
            f"{sorted(sample.cpu for sample in contender.samples)[len(contender.samples) // 2]:.2f}",
            f"{contender.peak_mb:.0f}",
            f"{contender.written / 1e6:.1f}" if contender.written is not None else "",
        ]
        for base in BASES:
            found = ratio(workload, contender.name, base)
            cells.append("" if found is None else f"{found:.2f}")
        rows.append(cells)
    return rows


HEAD = ["work", "who", "median s", "least s", "cpu s", "peak MB", "size MB", *(f"to {base}" for base in BASES)]


def results(workloads: Sequence[Workload]) -> str:
    """Return the table of all that was measured."""
    return table([HEAD, *(row for workload in workloads for row in rows_of(workload))], left=2)


def bars(workloads: Sequence[Workload]) -> list[dict[str, Any]]:
    """Return each bar with what was reached."""
    found = []
    for workload in workloads:
        for bar in workload.bars:
            reached = ratio(workload, bar.who, bar.peer, bar.of)
            found.append(_bar(workload, bar, reached))
    return found


def _bar(workload: Workload, bar: Bar, reached: float | None) -> dict[str, Any]:
    return {
        "work": workload.name,
        "who": bar.who,
        "of": bar.of,
        "peer": bar.peer,
        "most": bar.most,
        "reached": None if reached is None else round(reached, 3),
        "met": None if reached is None else reached <= bar.most,
    }


def bars_table(workloads: Sequence[Workload]) -> str:
    """Return the bars as a table."""
    words = {True: "met", False: "MISSED", None: "not measured"}
    rows = [["bar", "", "at most", "reached", ""]]
    for bar in bars(workloads):
        reached = "-" if bar["reached"] is None else f"{bar['reached']:.3f}"
        rows.append(
            [
                bar["work"],
                f"{bar['who']}'s {bar['of']}" + (f" to {bar['peer']}'s" if bar["peer"] else ""),
                str(bar["most"]),
                reached,
                words[bar["met"]],
            ]
        )
    return table(rows, left=2)


def growth_table(measured: Sequence[tuple[Workload, int]]) -> str:
    """Return what an entry costs in time and in memory as images grow."""
    rows = [["growth", "entries", "median s", "µs an entry", "peak MB", "bytes an entry"]]
    smallest: tuple[float, int] | None = None
    for workload, entries in measured:
        contender = _by_name(workload).get(LAMELLA)
        if contender is None:
            continue
        smallest = smallest or (contender.peak_mb, entries)
        more = entries - smallest[1]
        grown = f"{(contender.peak_mb - smallest[0]) * 1e6 / more:.0f}" if more else ""
        rows.append(
            [
                workload.name.removeprefix("growth "),
                f"{entries:,}",
                f"{contender.wall:.2f}",
                f"{contender.wall / entries * 1e6:.1f}",
                f"{contender.peak_mb:.0f}",
                grown,
            ]
        )
    return table(rows)


def failures(workloads: Sequence[Workload]) -> list[str]:
    """Return one line for each contender that failed."""
    return [
        f"{workload.name}: {contender.name} failed: {contender.failure}"
        for workload in workloads
        for contender in workload.contenders
        if contender.failure
    ]


def machine() -> dict[str, Any]:
    """Return what the figures depend on, and nothing that names the machine."""
    return {
        "cpus": os.cpu_count(),
        "arch": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def as_json(workloads: Sequence[Workload], rounds: int, versions: dict[str, str]) -> dict[str, Any]:
    """Return all samples, so that other statistics can be taken of them."""
    return {
        "machine": machine(),
        "versions": versions,
        "rounds": rounds,
        "bars": bars(workloads),
        "workloads": [
            {
                "name": workload.name,
                "contenders": [
                    {
                        "name": contender.name,
                        "failure": contender.failure,
                        "size": contender.written,
                        "median_s": round(contender.wall, 4) if contender.samples else None,
                        "peak_kib": max((sample.peak_kib for sample in contender.samples), default=None),
                        "wall_s": [round(sample.wall, 4) for sample in contender.samples],
                        "cpu_s": [round(sample.cpu, 3) for sample in contender.samples],
                    }
                    for contender in workload.contenders
                ],
            }
            for workload in workloads
        ],
    }
