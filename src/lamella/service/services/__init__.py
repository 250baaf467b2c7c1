# SPDX-License-Identifier: Apache-2.0
"""containerd's services over a store, one module each."""
