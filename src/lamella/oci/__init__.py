# SPDX-License-Identifier: Apache-2.0
"""The documents of an image, as checked values; no I/O."""
