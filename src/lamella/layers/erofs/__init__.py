# SPDX-License-Identifier: Apache-2.0
"""EROFS images as places of layers: the kernel mounts one as it is, or several over each other by an overlay.

A layer with parents is an image in the form of an overlay's lower directory: a device 0/0 where something below is
gone. Opaque directories are understood (``trusted.overlay.opaque``) and not made, since whiteouts say as much.
"""
