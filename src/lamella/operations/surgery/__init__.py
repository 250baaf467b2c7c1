# SPDX-License-Identifier: Apache-2.0
"""Operations that make an image or an index out of others."""
