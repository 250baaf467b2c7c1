# SPDX-License-Identifier: Apache-2.0
"""The only home of system calls and ctypes bindings beyond the os module."""
