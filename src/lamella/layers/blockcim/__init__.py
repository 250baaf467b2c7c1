# SPDX-License-Identifier: Apache-2.0
"""Composite images in one file or device each, which Windows alone can write, merge, seal and mount."""
