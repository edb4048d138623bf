"""Pruning: those go that are worth least, by a measure anyone can compute, and they are gone for real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from organs_at_work import DENSE, SPARSE, at_work, experts, words

from pragnosia.errors import ConfigError
from pragnosia.inference.loading import load_model
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.measure.accounting import account
from pragnosia.plasticity.growth import split_units
from pragnosia.plasticity.pruning import keep_units, merged, prune
from pragnosia.plasticity.worth import worth

TEXT = list(words(3, 24))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(words()).logits


def test_reap_is_what_it_is_defined_as() -> None:
    """Unit by unit and token by token: strength times the norm of what the unit says, over the tokens that woke it."""
    model = at_work(SPARSE["sigmoid"])
    heard: list[list[tuple[torch.Tensor, ...]]] = [[] for _ in range(3)]
    hooks = [
        layer.feed_forward.bank.register_forward_pre_hook(
            lambda module, given, number=number: heard[number].append(given)
        )
        for number, layer in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        for window in TEXT:
            model(window[None])
    for hook in hooks:
        hook.remove()
    for layer, calls, ours in zip(model.model.layers, heard, worth(model, "reap", TEXT), strict=True):
        bank = layer.feed_forward.bank
        said: dict[int, list[float]] = {unit: [] for unit in range(6)}
        for x, units, strengths in calls:
            for token, slot in torch.cartesian_prod(torch.arange(len(x)), torch.arange(units.shape[1])).tolist():
                unit = int(units[token, slot])
                hidden = ACTIVATIONS[bank.activation](bank.up[unit] @ x[token] + bank.up_bias[unit])
                word = bank.down[unit] @ hidden + bank.down_bias[unit]
                said[unit].append(float(strengths[token, slot] * word.detach().norm()))
        expected = [sum(values) / len(values) if values else 0.0 for values in said.values()]
        torch.testing.assert_close(ours, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_load_counts_wakings() -> None:
    model = at_work(SPARSE["sigmoid"])
    with torch.no_grad():
        routings = [model(window[None]).routings for window in TEXT]
    for layer, load in enumerate(worth(model, "load", TEXT)):
        woken = torch.cat([routing[layer].units.flatten() for routing in routings])
        assert load.tolist() == torch.bincount(woken, minlength=6).tolist()


@pytest.mark.parametrize("by", ["reap", "magnitude", "load", "merge"])
@pytest.mark.parametrize("organs", SPARSE)
def test_a_pruned_model_is_smaller_and_a_model_like_any_other(organs: str, by: str, tmp_path: Path) -> None:
    model = at_work(SPARSE[organs])
    units, before = model.config.units.num_units, account(model).total_parameters
    change = prune(model, 0.5, by=by, windows=TEXT)
    assert model.config.units.num_units == units // 2
    assert change.total_after == account(model).total_parameters < before
    after = logits(model)
    assert bool(after.isfinite().all())
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_model(tmp_path)), after)


@pytest.mark.parametrize("organs", ["sigmoid", "softmax", "columns", "threshold as it is"])
def test_who_never_wakes_is_not_missed(organs: str) -> None:
    """The kept units' rows are theirs, so that a model whose others are silenced says the same."""
    model = at_work(SPARSE[organs])
    units = model.config.units.num_units
    lobes = list(model.config.units.lobes.values())
    kept, first = [], 0
    for size in lobes:
        kept += range(first, first + size, 2)
        first += size
    gone = [unit for unit in range(units) if unit not in kept]
    for layer in model.experts():
        layer.thalamus.steering[gone] = float("-inf")
        if getattr(layer.thalamus, "balance", None) is not None:
            layer.thalamus.balance[gone] = -5.0
    silenced = logits(model)
    keep_units(model, [kept] * len(model.config.sparse_layers))
    torch.testing.assert_close(logits(model), silenced, rtol=1e-5, atol=1e-5)


def test_the_worthless_go() -> None:
    model = at_work(experts(kind="sigmoid"))
    quiet = [[1, 2, 5], [0, 4, 5], [1, 3, 4]]  # of lobes of 2 and 4: one of the first, two of the second
    with torch.no_grad():
        for layer, few in zip(model.experts(), quiet, strict=True):
            layer.bank.down[few] *= 1e-3
            layer.bank.down_bias[few] = 0.0
    downs = [layer.bank.down.detach().clone() for layer in model.experts()]
    for by in ("reap", "magnitude"):
        small = at_work(experts(kind="sigmoid"))
        small.load_state_dict(model.state_dict())
        prune(small, 0.5, by=by, windows=TEXT)
        assert small.config.experts.lobes == {"a": 1, "b": 2}
        for layer, few, down in zip(small.experts(), quiet, downs, strict=True):
            assert torch.equal(layer.bank.down, down[[unit for unit in range(6) if unit not in few]])


def test_the_dead_go_and_nothing_changes() -> None:
    model = at_work(experts(kind="sigmoid"))
    for layer, dead in zip(model.experts(), ([1, 3], [0, 2, 5], [1, 4]), strict=True):
        layer.thalamus.bias = torch.nn.Parameter(torch.zeros(6).index_fill(0, torch.tensor(dead), -100.0))
    model.config.experts = type(model.config.experts)(
        **{**model.config.experts.write(), "thalamus": {**model.config.experts.thalamus.__dict__, "bias": True}}
    )
    loads = worth(model, "load", TEXT)
    dead = min(int((load[2:] == 0).sum()) for load in loads)
    before = [model(window[None]).logits for window in TEXT]
    change = prune(model, by="dead", windows=TEXT)
    assert change.total_after < change.total_before
    assert model.config.experts.num_units == 6 - dead - min(int((load[:2] == 0).sum()) for load in loads)
    for window, said in zip(TEXT, before, strict=True):
        torch.testing.assert_close(model(window[None]).logits, said, rtol=1e-5, atol=1e-5)


def test_twins_melt_into_one_again() -> None:
    model = at_work(SPARSE["sigmoid"])
    units = [layer.bank.up.detach().clone() for layer in model.experts()]
    downs = [layer.bank.down.detach().clone() for layer in model.experts()]
    split_units(model, 2)
    prune(model, 0.5, by="merge")
    for layer, up, down in zip(model.experts(), units, downs, strict=True):
        torch.testing.assert_close(layer.bank.up, up)
        torch.testing.assert_close(layer.bank.down, down)


def test_merging_is_the_mean_of_all_it_took_in() -> None:
    """Against merging vectors themselves, one pair after the other."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        vectors, load = torch.randn(7, 5, generator=generator), torch.rand(7, generator=generator) + 0.1
        groups, means, weights = [[u] for u in range(7)], list(vectors.double()), load.double().tolist()
        while len(groups) > 3:
            pairs = [(i, j) for i in range(len(groups)) for j in range(i + 1, len(groups))]
            cosine = [float(torch.cosine_similarity(means[i], means[j], dim=0)) for i, j in pairs]
            i, j = pairs[cosine.index(max(cosine))]
            share = weights[i] / (weights[i] + weights[j])
            means[i] = share * means[i] + (1 - share) * means[j]
            weights[i] += weights[j]
            groups[i] += groups[j]
            del means[j], weights[j], groups[j]
        assert merged(vectors @ vectors.T, load, 3) == [sorted(group) for group in groups]


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "awake": (lambda m: prune(m, 1, by="magnitude"), "1 unit would be left, and 2 wake"),
    "all": (lambda m: prune(m, 1.0, by="magnitude"), "leaves all of them"),
    "more": (lambda m: prune(m, 7, by="magnitude"), "cannot keep 7 of 6 units"),
    "less": (lambda m: prune(m, -0.5, by="magnitude"), "cannot keep -0.5 of 6 units"),
    "way": (lambda m: prune(m, 0.5, by="reep"), "[Uu]nknown way to prune 'reep'"),
    "text": (lambda m: prune(m, 0.5), "reap looks on while units work; give it text"),
    "share": (lambda m: prune(m, by="magnitude"), "how many units stay"),
    "dead": (lambda m: prune(m, 0.5, by="dead", windows=TEXT), "leave the share out"),
    "uneven": (lambda m: keep_units(m, [[0, 1], [0, 1, 2], [0, 1]]), "as many units of each lobe"),
    "order": (lambda m: keep_units(m, [[1, 0]] * 3), "once, ascending"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_pruned_is_refused(case: str) -> None:
    verb, said = REFUSED[case]
    organ = {**experts(kind="sigmoid")["experts"], "lobes": {"cortex": 6}}
    model = at_work({"experts": organ})
    before = logits(model)
    with pytest.raises(ConfigError, match=said) as told:
        verb(model)
    assert "\n" not in str(told.value)
    assert torch.equal(logits(model), before)


def test_a_dense_model_has_nobody_to_prune() -> None:
    with pytest.raises(ConfigError, match="this model is dense"):
        prune(at_work(DENSE["dense"]), 0.5, by="magnitude")


def test_nothing_is_dead() -> None:
    model = at_work({"experts": {"num_units": 2, "unit_width": 8, "thalamus": {"num_awake": 2}}})
    with pytest.raises(ConfigError, match="no unit can go: in some layer all 2 woke on 72 tokens"):
        prune(model, by="dead", windows=TEXT)
