# SPDX-License-Identifier: Apache-2.0
"""Blobs of a store: files by digest, ingests, and the rows of each namespace."""
