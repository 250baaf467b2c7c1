# SPDX-License-Identifier: Apache-2.0
"""Blobs as streams: decompressing and compressing with digests in one pass."""
