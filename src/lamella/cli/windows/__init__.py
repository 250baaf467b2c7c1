# SPDX-License-Identifier: Apache-2.0
"""Verbs on registry hives and composite images."""
