# SPDX-License-Identifier: Apache-2.0
"""Layers of Windows images: tar dialect, layer folders, and the calls of Windows that write them."""
