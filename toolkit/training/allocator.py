"""Keep freed memory for the next step instead of returning it to the system, while a net is trained on the CPU.

A training step allocates every activation anew, tens of megabytes each. The C library serves requests of that size with fresh
pages from the kernel and gives them back when they are freed, so each step pays for a page fault per 4 KiB it touches.
With `mallopt(3)` the freed memory stays in the process and is used again.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 64 << 20}
USUAL = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 64 << 20, M_TOP_PAD: 0, M_MMAP_THRESHOLD: 32 << 20}
"""Where glibc ends up by itself, once large blocks have been freed."""

_depth = 0


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Keep what is freed within the block, and give it back at its end.

    Without effect where the C library is not glibc, or where the user has chosen an allocator or its settings (`LD_PRELOAD`,
    `GLIBC_TUNABLES`, `MALLOC_*`).
    """
    global _depth
    libc = _glibc()
    if libc is None:
        yield
        return
    _depth += 1
    _set(libc, KEEP)
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            _set(libc, USUAL)
            libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    chosen = any(name in os.environ for name in ("LD_PRELOAD", "GLIBC_TUNABLES"))
    if not sys.platform.startswith("linux") or chosen or any(name.startswith("MALLOC_") for name in os.environ):
        return None
    libc = ctypes.CDLL(None)
    return libc if all(hasattr(libc, name) for name in ("gnu_get_libc_version", "mallopt", "malloc_trim")) else None


def _set(libc: ctypes.CDLL, values: dict[int, int]) -> None:
    for parameter, value in values.items():
        libc.mallopt(parameter, value)
