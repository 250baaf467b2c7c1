# SPDX-License-Identifier: Apache-2.0
"""The folder of a Windows layer on a host without NTFS."""
