# SPDX-License-Identifier: Apache-2.0
"""HTTP to registries: connections, TLS, proxies, redirects, retries."""
