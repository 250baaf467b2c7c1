# SPDX-License-Identifier: Apache-2.0
"""Verbs on whole images and indexes."""
