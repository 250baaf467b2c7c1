# SPDX-License-Identifier: Apache-2.0
"""Composite images (CIM) as places of layers: one image a layer, forked from its parent's in the same directory."""
