# SPDX-License-Identifier: Apache-2.0
"""Bindings to Windows: privileges, files with their metadata, layers, hives, virtual disks, composite images.

Each module takes a ``Loader``, so that the same bindings run on Windows and on a stub.
"""
