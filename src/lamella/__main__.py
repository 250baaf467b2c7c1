# SPDX-License-Identifier: Apache-2.0
"""``python -m lamella`` is the command line."""

from __future__ import annotations

import sys

from lamella.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
