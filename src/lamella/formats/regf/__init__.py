# SPDX-License-Identifier: Apache-2.0
"""Registry hives: a reader of the versions 1.3 to 1.6, a writer, and the merge of a layer's delta into its base."""

from lamella.formats.regf.keys import Key, Layering, MemoryKey, Value
from lamella.formats.regf.merge import merged
from lamella.formats.regf.reader import Hive, HiveKey
from lamella.formats.regf.writer import encode_hive

__all__ = ["Hive", "HiveKey", "Key", "Layering", "MemoryKey", "Value", "encode_hive", "merged"]
