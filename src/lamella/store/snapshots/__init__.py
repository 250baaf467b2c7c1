# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a store: the graph in the database, and one driver for each way to keep files."""
