# SPDX-License-Identifier: Apache-2.0
"""Changes: the common model of layers, and the operations that every kind of layer goes through."""
