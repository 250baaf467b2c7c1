# SPDX-License-Identifier: Apache-2.0
"""The Transfer service: archives and registries to and from a namespace."""
