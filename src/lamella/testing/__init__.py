# SPDX-License-Identifier: Apache-2.0
"""Contract suites, builders and fakes, for whoever writes a layer kind."""
