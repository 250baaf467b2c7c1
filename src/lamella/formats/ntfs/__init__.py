# SPDX-License-Identifier: Apache-2.0
"""What NTFS keeps beside a file's content, as bytes and as values; nothing here calls Windows."""
