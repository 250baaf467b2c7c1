# SPDX-License-Identifier: Apache-2.0
"""Tar archives: a reader of every dialect seen in layers, a writer of the one that Go writes."""

from lamella.formats.tar.reader import TarLimits, TarMember, TarReader
from lamella.formats.tar.writer import TarWriter, header

__all__ = ["TarLimits", "TarMember", "TarReader", "TarWriter", "header"]
