"""Memory that a CPU run frees is kept for its next step."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # parameters of mallopt(3)


def keep_freed_memory() -> None:
    """Tell glibc's malloc not to give large blocks back to the system; elsewhere do nothing.

    A step allocates the same hundreds of megabytes of logits and activations again and again. Given back each time,
    every page of them is faulted in and zeroed anew, which takes longer than some of the matrix products.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 2**28)
