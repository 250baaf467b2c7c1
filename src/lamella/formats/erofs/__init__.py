# SPDX-License-Identifier: Apache-2.0
"""EROFS images, the read-only file system of Linux (Documentation/filesystems/erofs.rst, fs/erofs/erofs_fs.h).

Uncompressed images are read and written. Names and contents are bytes, numbers are as stored.
"""
