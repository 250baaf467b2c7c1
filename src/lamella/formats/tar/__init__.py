# SPDX-License-Identifier: Apache-2.0
"""Tar archives: a reader of all dialects found in layers, and a writer whose output equals that of Go."""

from lamella.formats.tar.reader import TarLimits, TarMember, TarReader
from lamella.formats.tar.writer import TarWriter, header

__all__ = ["TarLimits", "TarMember", "TarReader", "TarWriter", "header"]
