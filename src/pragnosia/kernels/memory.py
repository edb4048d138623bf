"""How memory is had from the system: in large pages, and kept rather than given back.

A page of 4 KiB costs a fault when first touched and an entry of the address cache for ever: for a hundred megabytes of
gradients the faults alone take longer than the arithmetic. Linux only; elsewhere these do nothing and return False.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

HUGE_PAGE = 2 << 20
_MADV_HUGEPAGE = 14  # linux/mman.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


@functools.cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def ask_huge_pages(tensor: Tensor) -> bool:
    """For a tensor just allocated and not yet written: let the whole large pages inside it be large ones."""
    libc = _libc()
    start = -(-tensor.data_ptr() // HUGE_PAGE) * HUGE_PAGE
    stop = (tensor.data_ptr() + tensor.nbytes) // HUGE_PAGE * HUGE_PAGE
    if libc is None or tensor.device.type != "cpu" or stop <= start:
        return False
    code: int = libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_HUGEPAGE)
    return code == 0


def keep_freed_memory() -> bool:
    """For a training process: let malloc keep what is freed for the next step instead of returning it to the system."""
    libc = _libc()
    if libc is None or not hasattr(libc, "mallopt"):
        return False
    # the mmap threshold is capped by glibc at half a heap (32 MiB); larger blocks come and go as large pages
    wishes = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, (1 << 31) - 1), (_M_TOP_PAD, 64 << 20))
    answers = [libc.mallopt(name, value) for name, value in wishes]
    return all(answers)
