# SPDX-License-Identifier: Apache-2.0
"""Layers in EROFS images: the kernel mounts a single image directly, and several as the lower layers of an overlay.

The image of a layer with parents holds overlay whiteouts (devices 0/0). Opaque directories
(``trusted.overlay.opaque``) are read, but `ErofsSink` writes a whiteout for each hidden entry instead.
"""
