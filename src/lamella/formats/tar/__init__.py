# SPDX-License-Identifier: Apache-2.0
"""Tar archives: a reader of every dialect seen in layers, a writer of the one that Go writes."""
