# SPDX-License-Identifier: Apache-2.0
"""Layers as composite images (CIM): one image for each layer, forked from that of its parent."""
