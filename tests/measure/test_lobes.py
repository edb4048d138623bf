"""The matrix of what each domain loses when a lobe is silent: its diagonal, what stands beside it, their quotient."""

from __future__ import annotations

import pytest

from pragnosia.measure.lobes import Ablation


def matrix(lobes: tuple[str, ...], domains: tuple[str, ...], rise: tuple[tuple[float, ...], ...]) -> Ablation:
    even = tuple((1 / len(lobes),) * len(domains) for _ in lobes)
    return Ablation(lobes, domains, (9,) * len(domains), (1.0,) * len(domains), rise, even)


def test_the_contrast_is_of_sizes() -> None:
    found = matrix(("a", "b"), ("a", "b"), ((0.6, -0.1), (0.05, 0.3)))
    assert found.diagonal == pytest.approx(0.45)
    assert found.off_diagonal == pytest.approx(-0.025)
    assert found.contrast == pytest.approx(0.45 / 0.075)
    assert found.to_dict()["rise"] == {"a": {"a": 0.6, "b": -0.1}, "b": {"a": 0.05, "b": 0.3}}


def test_a_lobe_without_a_domain_is_left_out() -> None:
    found = matrix(("a", "spare"), ("other", "a"), ((0.1, 0.4), (9.0, 9.0)))
    assert found.diagonal == pytest.approx(0.4)
    assert found.contrast == pytest.approx(4.0)
    nothing = matrix(("a", "b"), ("c", "d"), ((1.0, 1.0), (1.0, 1.0)))
    assert nothing.diagonal is None
    assert nothing.contrast is None
