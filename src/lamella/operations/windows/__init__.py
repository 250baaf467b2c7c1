# SPDX-License-Identifier: Apache-2.0
"""Operations on Windows images, their composite images and registry hives."""
