# SPDX-License-Identifier: Apache-2.0
"""Operations on one layer: apply, diff, dump, read, write, recipes."""
