"""Gaussian noise from a counter: the seed, population, step, row and neuron say the number, whoever asks, in any order.

    words  = Philox4x32-10((j, population, step, row), seed)          Salmon et al. 2011, doi:10.1145/2063384.2063405
    a, b   = sqrt(-2 ln u) (cos 2 pi t, sin 2 pi t)                   Box and Muller 1958, doi:10.1214/aoms/1177706645

Counter j serves the neurons j, j + Q, j + 2 Q and j + 3 Q, where Q = ceil(N / 4). This is the reference of
kernels/source/chance.hpp, equal to rounding.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
ROUNDS = 10

Words = NDArray[np.uint64]


def philox(counter: Words, seed: int) -> Words:
    """Four words of 32 bits, (4, ...), for the counters (4, ...)."""
    one, two, three, four = counter
    keys = [seed & _WORD, seed >> 32 & _WORD]
    for _ in range(ROUNDS):
        a, b = one * np.uint64(_MULTIPLIERS[0]), three * np.uint64(_MULTIPLIERS[1])
        high_a, high_b, word = a >> np.uint64(32), b >> np.uint64(32), np.uint64(_WORD)
        keyed = high_b ^ two ^ np.uint64(keys[0]), high_a ^ four ^ np.uint64(keys[1])
        one, two, three, four = keyed[0], b & word, keyed[1], a & word
        keys = [(key + weyl) & _WORD for key, weyl in zip(keys, _WEYL, strict=True)]
    return np.stack([one, two, three, four])


def gaussians(seed: int, stream: int, step: int, row: int, count: int) -> Float[Tensor, " N"]:
    """`count` standard Gaussian numbers in single precision."""
    quads = (count + 3) // 4
    counter = np.empty((4, quads), np.uint64)
    counter[0] = np.arange(quads)
    counter[1:] = np.array([[stream], [step & _WORD], [row]], np.uint64)
    words = philox(counter, seed)
    numbers = []
    for length_word, turn_word in ((words[0], words[1]), (words[2], words[3])):
        length = np.sqrt(-2 * np.log(((length_word >> np.uint64(8)) + np.uint64(1)).astype(np.float64) * 2.0**-24))
        turn = turn_word.astype(np.uint32).view(np.int32).astype(np.float64) * 2.0**-32
        numbers += [length * np.cos(2 * np.pi * turn), length * np.sin(2 * np.pi * turn)]
    return torch.from_numpy(np.concatenate(numbers)[:count].astype(np.float32))


def noise(seed: int, stream: int, step: int, shape: torch.Size) -> Float[Tensor, "B N"]:
    """One step's numbers for the rows and neurons of a population."""
    rows, count = shape
    return torch.stack([gaussians(seed, stream, step, row, count) for row in range(rows)])
