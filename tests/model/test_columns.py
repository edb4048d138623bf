"""Columns: their arithmetic written out plainly, competition inside them, their configuration, and where they stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.model.attention import Moment
from pragnosia.model.columns import Columns
from pragnosia.model.configuration import ColumnsConfig, PragnosiaConfig, ThalamusConfig
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.model.setting import Setting

NOW = Moment((torch.ones(1), torch.ones(1)), {})

Make = Callable[..., PragnosiaForCausalLM]
COLUMNS: dict[str, Any] = {"width": 48, "column_width": 8, "thalamus": {"num_awake": 2}}


@pytest.fixture
def make(tiny_model: Make) -> Make:
    """A tiny model of columns; `make(num_speaking=3)` changes the columns."""

    def made(**changes: Any) -> PragnosiaForCausalLM:
        return tiny_model(experts=None, columns=COLUMNS | changes)

    return made


def one_by_one(columns: Columns, x: Tensor, num_speaking: int | None) -> Tensor:
    """Every token by itself, every neuron of every awake column spelled out."""
    gates = torch.sigmoid(x @ columns.thalamus.weight.T)
    claims = gates + (0 if columns.thalamus.balance is None else columns.thalamus.balance)
    loudness = round(2 * (columns.bank.num_units / 2) ** 0.5, 2)
    rows = []
    for token, gate, claim in zip(x, gates, claims, strict=True):
        y = torch.zeros_like(token)
        for unit in claim.topk(2).indices.tolist():
            hidden = torch.relu(columns.bank.up[unit] @ token) ** 2
            if num_speaking is not None:
                quiet = hidden.argsort(descending=True, stable=True)[num_speaking:]
                hidden = hidden.index_fill(0, quiet, 0.0)
            y = y + loudness * gate[unit] * (columns.bank.down[unit] @ hidden)
        rows.append(y)
    return torch.stack(rows)


@pytest.mark.parametrize("num_speaking", [None, 3])
@pytest.mark.parametrize("tokens", [1, 3, 90])
def test_as_written_out(num_speaking: int | None, tokens: int, make: Make) -> None:
    columns: Any = make(num_speaking=num_speaking).model.layers[0].feed_forward
    x = torch.randn(1, tokens, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(columns(x, NOW)[0][0], one_by_one(columns, x[0], num_speaking))


@pytest.mark.parametrize("num_speaking", [None, 3])
def test_slopes_are_those_of_the_sum_written_out(num_speaking: int | None, make: Make) -> None:
    columns: Any = make(num_speaking=num_speaking).model.layers[0].feed_forward
    x = torch.randn(1, 30, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
    learners = [x, columns.bank.up, columns.bank.down, columns.thalamus.weight]
    pull = torch.linspace(-1, 1, 24)
    found = torch.autograd.grad((columns(x, NOW)[0] @ pull).sum(), learners)
    expected = torch.autograd.grad((one_by_one(columns, x[0], num_speaking) @ pull).sum(), learners)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_who_sleeps_is_not_asked(make: Make, tokens: Tensor) -> None:
    model = make()
    before = model(tokens)
    awake = {unit for routing in before.routings for unit in routing.units.unique().tolist()}
    with torch.no_grad():
        for layer, routing in zip(model.experts(), before.routings, strict=True):
            for unit in set(range(6)) - set(routing.units.unique().tolist()):
                layer.bank.up[unit] = layer.bank.down[unit] = float("nan")
    assert awake
    assert torch.equal(model(tokens[:1, :1]).logits, make()(tokens[:1, :1]).logits)
    assert torch.equal(model(tokens).logits, before.logits)


def test_balance_wakes_who_slept(make: Make, tokens: Tensor) -> None:
    model = make(thalamus={"num_awake": 2, "balance_rate": 0.05})
    with torch.no_grad():
        for columns in model.experts():
            columns.thalamus.weight[0] = 0.0
            columns.thalamus.balance[0] = -1.0  # type: ignore[index]
        slept = model(tokens).routings
        assert not any((routing.units == 0).any() for routing in slept)
        for _ in range(60):
            model.rebalance(model(tokens).routings)
        assert all((routing.units == 0).any() for routing in model(tokens).routings)


def test_energy_wakes_fewer_columns(make: Make, tokens: Tensor) -> None:
    assert all(routing.units.shape[1] == 1 for routing in make()(tokens, setting=Setting(awake=0.5)).routings)


def test_a_lobe_of_columns_can_be_silenced(make: Make, tokens: Tensor) -> None:
    model = make(lobes={"left": 3, "right": 3})
    with model.lesion("left"):
        assert all((routing.units >= 3).all() for routing in model(tokens).routings)


def test_saved_and_read_again(make: Make, tokens: Tensor, tmp_path: Path) -> None:
    model = make(num_speaking=4, thalamus={"num_awake": 2, "rank": 5})
    model.save_pretrained(tmp_path)
    again = PragnosiaForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.columns == model.config.columns
    assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_what_is_left_out() -> None:
    organ = ColumnsConfig(width=2048, column_width=64)
    assert (organ.num_units, organ.unit_width, organ.num_shared) == (32, 64, 0), "the seed's 32 x 64"
    assert organ.thalamus == ThalamusConfig(
        kind="sigmoid", num_awake=2, renormalise=False, scale=8.0, balance_rate=1e-3
    ), "2 sqrt(32 / 2)"
    for router in ({"scale": 2.0}, {"renormalise": True}, {"kind": "softmax"}):
        assert ColumnsConfig(width=2048, thalamus=router).thalamus.scale == 2.0
    assert ColumnsConfig(width=1024, thalamus={"kind": "threshold", "num_awake": 32}).thalamus.scale == 4.0
    assert organ.active_width == 128
    config = PragnosiaConfig(columns={"width": 64})
    assert config.feed_forwards == ["columns"] * 4
    assert config.experts is None
    assert PragnosiaConfig.from_dict(config.to_dict()).columns == config.columns


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"columns": {"width": 100, "column_width": 16}},
        "columns.width is 100, which is no whole number of columns of 16",
    ),
    ({"columns": {"column_width": 2.5}}, "columns.column_width is 2.5; it must be a whole number"),
    ({"columns": {"width": 64, "thalamus": {"num_awake": 9}}}, "num_awake is 9, more than the 8 columns there are"),
    ({"columns": {"num_speaking": 9}}, "columns.num_speaking is 9 in columns of 8"),
    ({"columns": {"num_speaking": 0}}, "columns.num_speaking is 0; it must be greater than 0"),
    ({"columns": {"width": 64, "lobes": {"left": 3, "right": 4}}}, "columns.lobes hold 7 units, columns there are 8"),
    ({"columns": {"thalamus": {"rank": 0}}}, "thalamus.rank is 0; it must be greater than 0"),
    ({"columns": {"thalamus": 3}}, "columns.thalamus must be a mapping, got 3"),
    ({"columns": {"colum_width": 3}}, "Did you mean 'column_width'"),
    ({"columns": {}, "experts": {}}, "experts and columns are both configured"),
    ({"feed_forwards": "columns"}, "feed_forwards name columns, columns are not configured"),
    ({"columns": {"activation": "relu"}}, "unknown columns.activation 'relu'"),
    ({"column_width": 8}, "Did you mean 'columns.column_width'"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_a_wrong_configuration_is_one_clear_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        PragnosiaConfig(**values)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
