# SPDX-License-Identifier: Apache-2.0
"""OCI and Docker documents as validated values; no I/O."""
