# SPDX-License-Identifier: Apache-2.0
"""Windows layers on NTFS, by the calls of Windows."""
