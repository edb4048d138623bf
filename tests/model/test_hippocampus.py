"""Long-term memory as a feed-forward: what it computes, one table for all layers, sparse slopes, its account."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM
from pragnosia.errors import ConfigError
from pragnosia.measure.accounting import account
from pragnosia.model.bank import Table

SHAPE: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "attention": {"num_heads": 2, "num_key_value_heads": 1},
    "feed_forward": {"width": 40},
    "feed_forwards": ["memory", "dense", "memory"],
    "hippocampus": {"num_rows": 81, "num_heads": 2, "num_awake": 3, "key_width": 8},
}


@pytest.fixture
def model() -> PragnosiaForCausalLM:
    torch.manual_seed(0)
    return PragnosiaForCausalLM(PragnosiaConfig(**SHAPE)).eval()


def test_it_is_the_softmax_of_the_best_rows(model: PragnosiaForCausalLM) -> None:
    layer, table = model.model.layers[2].feed_forward, model.model.hippocampus
    x = torch.randn(1, 5, 24)
    layer.center.normal_(), layer.spread.uniform_(0.5, 2)
    y, routing = layer(x, model.model.moment(x, seen=0, setting=None))
    query = ((layer.query(x[0]) - layer.center) / layer.spread).view(5, 2, 2, 4)
    keys = layer.keys.view(2, 2, 9, 4)
    expected = torch.zeros(5, 24)
    for head in range(2):
        scores = (query[:, head, 0] @ keys[head, 0].T)[:, :, None] + (query[:, head, 1] @ keys[head, 1].T)[:, None, :]
        best, rows = scores.flatten(1).topk(3, -1)
        expected += (best.softmax(-1)[..., None] * table.rows[rows]).sum(1)
    torch.testing.assert_close(y[0], expected)
    assert routing is None


def test_only_recalled_rows_have_a_slope(model: PragnosiaForCausalLM) -> None:
    ids = torch.randint(0, 48, (1, 2))
    model.train()(input_ids=ids, labels=ids).loss.backward()
    slope = model.model.hippocampus.rows.grad
    assert slope.is_sparse
    named = slope.coalesce().indices()[0]
    assert 0 < len(named) <= 2 * 2 * 6 < 81  # two layers, two tokens, six rows each


def test_queries_are_centred_between_steps(model: PragnosiaForCausalLM) -> None:
    layer, ids = model.model.layers[0].feed_forward, torch.randint(0, 48, (2, 30))
    output = model.train()(ids, labels=ids)
    assert (layer.center == 0).all()  # forward never learns
    model.rebalance(output.routings)
    query = layer.query(model.model.layers[0].feed_forward_norm(_stream_before_thinking(model, ids))).flatten(0, 1)
    torch.testing.assert_close(layer.center, query.mean(0))
    torch.testing.assert_close(layer.spread, query.std(0, correction=0))
    model.eval()
    by_late_steps = model(ids).logits
    layer.center.zero_()
    assert not torch.equal(model(ids).logits, by_late_steps)
    model.train()
    layer.center.copy_(query.mean(0))
    before = layer.center.clone()
    model.rebalance(model(ids, labels=ids).routings)
    torch.testing.assert_close(layer.center, 0.9 * before + 0.1 * query.mean(0))


def _stream_before_thinking(model: PragnosiaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    layer, x = model.model.layers[0], model.model.embed_tokens(ids)
    moment = model.model.moment(x, seen=0, setting=None)
    mixed: torch.Tensor = x + layer.mixer(layer.mixer_norm(x), None, moment)[0]
    return mixed


def test_one_table_is_saved_once(model: PragnosiaForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = PragnosiaForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 48, (2, 7))
    assert torch.equal(again(ids).logits, model(ids).logits)
    tables = [name for name in model.state_dict() if name.endswith(".rows")]
    assert tables == ["model.hippocampus.rows"]


def test_token_by_token_is_all_at_once(model: PragnosiaForCausalLM) -> None:
    ids = torch.randint(0, 48, (1, 9))
    whole, state = model(ids).logits, model.fresh_state()
    for at in range(9):
        step = model(ids[:, at : at + 1], past_key_values=state)
        state = step.past_key_values
        torch.testing.assert_close(step.logits[:, 0], whole[:, at])


def test_account(model: PragnosiaForCausalLM) -> None:
    counted = account(model)
    assert counted.total_parameters == sum(weight.numel() for weight in model.parameters())
    assert counted.total_parameters - counted.active_parameters == (81 - 2 * 6) * 24
    more = account(PragnosiaConfig(**SHAPE | {"hippocampus": {**SHAPE["hippocampus"], "num_awake": 4}}))
    assert more.operations_per_token - counted.operations_per_token == 2 * 2 * (2 * 24)


def test_a_table_grows_and_shrinks_as_any_units() -> None:
    table = Table(4, 3)
    torch.nn.init.normal_(table.rows)
    before = table.rows.detach().clone()
    table.add_units(2, lambda name, rows: rows.zero_())
    assert table.num_units == 6
    table.remove_units([1])
    assert torch.equal(table.rows, torch.cat([before[[0, 2, 3]], torch.zeros(2, 3)]))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_rows": 80}, "must be a square: 64 or 81"),
        ({"num_rows": 4, "num_awake": 3}, "a head recalls at most 2"),
        ({"key_width": 7}, "it must be even"),
        ({"num_heads": 0}, "num_heads is 0"),
    ],
)
def test_impossible_tables(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        PragnosiaConfig(**SHAPE | {"hippocampus": {**SHAPE["hippocampus"], **changes}})


@pytest.mark.parametrize("left_out", [{"hippocampus": None}, {"feed_forwards": "dense"}])
def test_table_and_layers_need_each_other(left_out: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give both or none"):
        PragnosiaConfig(**SHAPE | left_out)
