# SPDX-License-Identifier: Apache-2.0
"""Images for the benchmarks, built from packages that anybody can download."""
