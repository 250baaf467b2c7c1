# SPDX-License-Identifier: Apache-2.0
"""Consistency checks of a store, and repair."""
