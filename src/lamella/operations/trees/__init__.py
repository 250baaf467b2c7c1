# SPDX-License-Identifier: Apache-2.0
"""Operations on file trees: open, find, compare, and a pathlib-like file system."""
