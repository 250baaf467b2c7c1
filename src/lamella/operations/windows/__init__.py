# SPDX-License-Identifier: Apache-2.0
"""Operations on hives, composite images and Windows images."""
