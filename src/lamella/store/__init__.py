# SPDX-License-Identifier: Apache-2.0
"""The embedded store: content, snapshots, images and leases that survive a kill at any moment."""
