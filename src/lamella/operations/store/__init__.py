# SPDX-License-Identifier: Apache-2.0
"""Operations on a store: import, export, mount, usage, rediff."""
