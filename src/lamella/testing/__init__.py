# SPDX-License-Identifier: Apache-2.0
"""Contract suites, builders and strategies, for whoever writes a kind of layer.

`lamella.testing.contract` has a suite for each contract of the neck, `lamella.testing.builders` writes changes by hand,
and `lamella.testing.strategies`, which needs hypothesis, makes random ones.
"""
