# SPDX-License-Identifier: Apache-2.0
"""Images in registries, by the distribution specification: client, credentials, hosts."""
