# SPDX-License-Identifier: Apache-2.0
"""Content of a store: blob files, ingests, and the rows of each namespace."""
