# SPDX-License-Identifier: Apache-2.0
"""These tests run on Windows' CPython alone; elsewhere they are not collected."""

from __future__ import annotations

import sys

collect_ignore_glob = [] if sys.platform == "win32" else ["test_*.py"]
