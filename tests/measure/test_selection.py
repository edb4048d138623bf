"""What is picked from a pool, against the definitions written out."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from pragnosia.errors import ConfigError
from pragnosia.measure.pool import Views
from pragnosia.measure.selection import WAYS, directions, select


@pytest.fixture
def views() -> Views:
    chance = torch.Generator().manual_seed(0)
    return Views(
        loss=torch.rand(12, generator=chance),
        disagreement=torch.rand(12, generator=chance),
        states=torch.randn(12, 5, generator=chance) + 3,
    )


def test_by_value_takes_the_largest_that_fit(views: Views) -> None:
    sizes = [3] * 12
    for by, values in (("loss", views.loss), ("disagreement", views.disagreement)):
        assert values is not None
        found = select(by, sizes, 10, views)
        assert list(found.numbers) == values.argsort(descending=True)[:3].tolist()
        assert found.tokens == 9
        assert list(found.scores) == pytest.approx(sorted(values.tolist(), reverse=True)[:3])
    worst = int(views.loss.argmax())
    sizes[worst] = 11
    assert worst not in select("loss", sizes, 10, views).numbers, "what does not fit is passed over"


def test_diversity_goes_to_the_farthest(views: Views) -> None:
    states = directions(views.states)
    taken = list(select("diversity", [1] * 12, 5, views).numbers)
    for count in range(1, 5):
        apart = [min(float(1 - states[i] @ states[j]) for j in taken[:count]) for i in range(12)]
        assert apart[taken[count]] == pytest.approx(max(apart), abs=1e-6)
    assert len(set(taken)) == 5


def test_coverage_is_the_plain_greedy_and_near_the_best(views: Views) -> None:
    likeness = (directions(views.states) @ directions(views.states).T).clamp_min(0)

    def covered(chosen: list[int]) -> float:
        return float(likeness[:, chosen].amax(1).sum())

    plain: list[int] = []
    for _ in range(3):
        plain.append(max((i for i in range(12) if i not in plain), key=lambda i: covered([*plain, i])))
    found = select("coverage", [1] * 12, 3, views)
    assert list(found.numbers) == plain
    best = max(covered(list(some)) for some in combinations(range(12), 3))
    assert covered(plain) >= (1 - 1 / torch.e) * best, "Nemhauser et al. 1978"
    assert sum(found.scores) == pytest.approx(covered(plain) / 12, rel=1e-5), "the gains add up"


def test_every_way_fills_the_budget_and_picks_once(views: Views) -> None:
    sizes = [4, 1, 3, 2, 5, 2, 1, 4, 3, 2, 1, 6]
    for by in WAYS:
        found = select(by, sizes, 17, views)
        assert len(set(found.numbers)) == len(found.numbers)
        assert found.tokens == sum(sizes[number] for number in found.numbers) <= 17
        left = 17 - found.tokens
        assert all(size > left for number, size in enumerate(sizes) if number not in found.numbers)
        assert len(select(by, sizes, 1000, views).numbers) == 12, "all, where all fit"


def test_chance_is_its_seed() -> None:
    assert select("random", [1] * 30, 5, seed=1) == select("random", [1] * 30, 5, seed=1)
    assert select("random", [1] * 30, 5, seed=1) != select("random", [1] * 30, 5, seed=2)


def test_impossible_wishes() -> None:
    with pytest.raises(ConfigError, match="shortest text has 3"):
        select("random", [3, 4], 2)
    with pytest.raises(ConfigError, match="loss"):
        select("los", [1], 2)
