# SPDX-License-Identifier: Apache-2.0
"""The neck: what a layer is, and the few operations through which every kind of layer passes."""
