# SPDX-License-Identifier: Apache-2.0
"""Verbs that look at the files of an image, a layer or a directory."""
