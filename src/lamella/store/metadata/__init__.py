# SPDX-License-Identifier: Apache-2.0
"""Images, leases, namespaces and labels in the store's database."""
