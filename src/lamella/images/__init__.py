# SPDX-License-Identifier: Apache-2.0
"""Where an image can live on disk: layouts and archives."""
