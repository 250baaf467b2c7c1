# SPDX-License-Identifier: Apache-2.0
"""A Windows layer folder on a host without NTFS: layout, index, reading, writing."""
