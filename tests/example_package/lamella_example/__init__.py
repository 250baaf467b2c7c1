# SPDX-License-Identifier: Apache-2.0
"""A package that adds a kind of layer, a compression, a snapshotter and an image transport to Lamella."""
