# SPDX-License-Identifier: Apache-2.0
"""Runtime bundles, and containers run from images of the store."""
