# SPDX-License-Identifier: Apache-2.0
"""NTFS metadata as bytes and values, on any host: attributes, times, names, reparse points, security descriptors."""
