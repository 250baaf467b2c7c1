# SPDX-License-Identifier: Apache-2.0
"""Unpacking of a store's images into snapshots, layers side by side."""
