# SPDX-License-Identifier: Apache-2.0
"""Compressors that reproduce a blob byte for byte; loaded only by the verbs for recipes."""
