"""Selection: which of many texts to learn from, when only so many tokens can be learned.

    loss          those the model predicts worst first                    uncertainty sampling, Lewis & Gale 1994
    disagreement  those a committee differs about most first              pool.py
    diversity     each time the text farthest from all that were taken    k-centre greedy, Sener & Savarese 2018,
                                                                          arXiv 1708.00489, algorithm 1
    coverage      each time the text that makes the pool's texts most     facility location, Lin & Bilmes 2011
                  alike to what was taken: max sum_i max_j s(i, j)        (aclanthology P11-1052), lazy greedy
    random        by chance: what all others are to be measured against

Diversity and coverage compare mean hidden states less the pool's own mean, by their angle; s is the cosine, 0 where it
is negative. A text that no longer fits the budget is passed over.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.measure.pool import Views

_COVERED = 4096
"""Texts that are to be covered, at most: of a larger pool so many drawn by the seed."""
_BLOCK = 1024

Score = tuple[int, float]
"""A text's number and what speaks for it, when it was taken."""
_Walk = Generator[Score, bool, None]
"""Texts, best first; it is told of each whether it was taken."""


@dataclass(frozen=True)
class Choice:
    """What was chosen, in order."""

    numbers: tuple[int, ...]
    scores: tuple[float, ...]
    tokens: int


def select(by: str, sizes: Sequence[int], budget: int, views: Views | None = None, seed: int = 0) -> Choice:
    """Texts by a way of WAYS until `budget` tokens are full; `views` is None only for `random`.

    Raises ConfigError for an unknown way, or a budget that holds no text.
    """
    if by not in WAYS:
        raise ConfigError(unknown_name("way to select", by, WAYS))
    if budget < min(sizes):
        raise ConfigError(f"the budget is {budget} tokens, and the shortest text has {min(sizes)}; raise --budget")
    left, taken = budget, list[Score]()
    walk = WAYS[by](views, len(sizes), seed)
    number, value = next(walk)
    while True:
        fits = sizes[number] <= left
        if fits:
            left -= sizes[number]
            taken.append((number, value))
        try:
            number, value = walk.send(fits)
        except StopIteration:
            break
    return Choice(tuple(number for number, _ in taken), tuple(score for _, score in taken), budget - left)


def _by_value(values: Float[Tensor, " N"]) -> _Walk:
    for number in values.argsort(descending=True, stable=True).tolist():
        yield number, float(values[number])


def _loss(views: Views | None, count: int, seed: int) -> _Walk:
    assert views is not None
    return _by_value(views.loss)


def _disagreement(views: Views | None, count: int, seed: int) -> _Walk:
    assert views is not None
    assert views.disagreement is not None
    return _by_value(views.disagreement)


def _random(views: Views | None, count: int, seed: int) -> _Walk:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    for number in order.tolist():
        yield number, 0.0


def _diversity(views: Views | None, count: int, seed: int) -> _Walk:
    """From the text nearest to the middle, then always the farthest; distance is 1 - cosine."""
    assert views is not None
    states = directions(views.states)
    middle = states.mean(0)
    apart = torch.full((count,), torch.inf)
    number = int((states @ middle).argmax())
    value = 0.0
    for _ in range(count):
        fits = yield number, value
        if fits:
            apart = torch.minimum(apart, 1 - states @ states[number])
        apart[number] = -torch.inf  # asked once
        number = int(apart.argmax())
        value = float(apart[number])


def _coverage(views: Views | None, count: int, seed: int) -> _Walk:
    """Lazy greedy: gains only shrink, so the first whose gain is fresh is the best (Minoux 1978)."""
    assert views is not None
    states = directions(views.states)
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:_COVERED]
    pool = states[chosen.sort().values]
    best = torch.zeros(len(pool))
    sums = torch.cat([(pool @ block.T).clamp_min(0).sum(0) for block in states.split(_BLOCK)])
    queue = [(-float(gain), number, 0) for number, gain in enumerate(sums)]
    heapq.heapify(queue)
    taken = 0
    while queue:
        gain, number, when = heapq.heappop(queue)
        likeness = (pool @ states[number]).clamp_min(0)
        if when < taken:
            fresh = float((likeness - best).clamp_min(0).sum())
            heapq.heappush(queue, (-fresh, number, taken))
            continue
        fits = yield number, -gain / len(pool)
        if fits:
            best, taken = torch.maximum(best, likeness), taken + 1


def directions(states: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Of length 1, seen from the middle of all: mean hidden states alone nearly all point one way."""
    return torch.nn.functional.normalize(states - states.mean(0), dim=-1)


WAYS: dict[str, Callable[[Views | None, int, int], _Walk]] = {
    "loss": _loss,
    "disagreement": _disagreement,
    "diversity": _diversity,
    "coverage": _coverage,
    "random": _random,
}
