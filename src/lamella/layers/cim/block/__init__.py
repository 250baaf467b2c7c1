# SPDX-License-Identifier: Apache-2.0
"""Composite images in one file or block device each (block CIM); only Windows can write and read them."""
