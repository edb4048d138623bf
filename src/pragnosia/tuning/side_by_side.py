"""Several small pieces of work at once, each on a core of its own.

torch shares every operation out among all cores; for one of a hundred microseconds the sharing costs more than it
brings. Here a piece of many such operations runs on one core, and the pieces beside each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

K = TypeVar("K")
T = TypeVar("T")


def side_by_side(pieces: Iterable[tuple[K, Callable[[], T]]]) -> Iterator[tuple[K, T]]:
    """Each piece's key and result, in order; at most as many are under way as torch has threads."""
    cores = torch.get_num_threads()
    if cores == 1:
        yield from ((key, piece()) for key, piece in pieces)
        return
    running = deque[tuple[K, Future[T]]]()
    torch.set_num_threads(1)  # the workers' first operation takes this over, once and for all
    try:
        for key, piece in pieces:
            running.append((key, _workers(cores).submit(piece)))
            if len(running) > cores:
                first, future = running.popleft()
                yield first, future.result()
        while running:
            first, future = running.popleft()
            yield first, future.result()
    finally:
        for _, future in running:
            future.cancel()
        for _, future in running:
            if not future.cancelled():
                future.exception()
        torch.set_num_threads(cores)


@lru_cache(maxsize=1)
def _workers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="units")
