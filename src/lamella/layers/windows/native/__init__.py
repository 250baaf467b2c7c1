# SPDX-License-Identifier: Apache-2.0
"""A Windows layer on NTFS, read and written through Windows' own calls."""
