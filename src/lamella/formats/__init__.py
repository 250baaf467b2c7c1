# SPDX-License-Identifier: Apache-2.0
"""Bytes to records and back: pure, bounded, fuzzable."""
