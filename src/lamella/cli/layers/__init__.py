# SPDX-License-Identifier: Apache-2.0
"""Verbs on one layer: apply, diff, dump, recipe."""
