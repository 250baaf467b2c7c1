# SPDX-License-Identifier: Apache-2.0
"""The verbs, as functions over the parts below."""
