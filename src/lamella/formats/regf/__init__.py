# SPDX-License-Identifier: Apache-2.0
"""Registry hives: a reader of versions 1.3 to 1.6, a writer, and merging a layer's delta into its base hive."""

from lamella.formats.regf.keys import Key, Layering, MemoryKey, Value, merge_keys
from lamella.formats.regf.reader import Hive, HiveKey
from lamella.formats.regf.writer import encode_hive

__all__ = ["Hive", "HiveKey", "Key", "Layering", "MemoryKey", "Value", "encode_hive", "merge_keys"]
