from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pragnosia.errors import ConfigError
from pragnosia.measure.accounting import account
from pragnosia.measure.activity import ActivityMeter, activity, pairs
from pragnosia.measure.energy import Energy, energy_model
from pragnosia.model.thalamus import Routing


def routing(units: list[list[int]]) -> Routing:
    woken = torch.tensor(units)
    return Routing(woken, torch.ones(woken.shape), torch.zeros(len(units), 8))


@given(
    st.integers(1, 40), st.integers(0, 40), st.one_of(st.none(), st.integers(1, 30))
)  # fmt: skip
def test_pairs_are_counted_one_by_one(tokens, past, window):
    reach = window or 10**6
    assert pairs(tokens, past, window) == sum(min(past + p, reach) for p in range(1, tokens + 1))


def test_decoding_costs_what_the_account_says(sparse):
    one = account(sparse, context=10)
    with torch.no_grad():
        output = sparse(torch.zeros(1, 9, dtype=torch.long))
        step = sparse(torch.ones(1, 1, dtype=torch.long), past_key_values=output.past_key_values)
    meter = ActivityMeter(one)
    meter.add(step.routings, tokens=1, past=9)
    done = meter.activity()
    assert done.operations_per_token == one.operations_per_token
    assert done.bytes_per_token == one.bytes_per_token
    assert done.awake_per_token == (3, 0, 3)


def test_sleeping_slots_cost_nothing(make_config):
    one = account(make_config(), context=1)
    awake, asleep = (ActivityMeter(one) for _ in range(2))
    awake.add((routing([[0, 1, 2]]), None, routing([[0, 1, 2]])), tokens=1)
    asleep.add((routing([[0, -1, -1]]), None, routing([[-1, -1, -1]])), tokens=1)
    saved = awake.activity().operations - asleep.activity().operations
    assert saved == 2 * 5 * one.layers[0].unit_matrix_parameters
    moved = awake.activity().num_bytes - asleep.activity().num_bytes
    assert moved == 2 * 5 * one.layers[0].unit_parameters
    assert asleep.activity().awake_per_token == (1, 0, 0)


def test_a_prompt_reads_a_unit_once_and_uses_it_often(make_config):
    one = account(make_config(), context=3)
    same, other = [[0, 1, 2]] * 3, [[0, 1, 2], [3, 4, 5], [6, 7, 0]]
    together = activity((routing(same), None, routing(same)), one)
    apart = activity((routing(other), None, routing(other)), one)
    assert together.operations == apart.operations
    assert apart.num_bytes - together.num_bytes == 2 * 2 * (8 - 3) * one.layers[0].unit_parameters


def test_many_passes_are_the_sum_of_each(make_config):
    one = account(make_config())
    both, single = ActivityMeter(one), 0.0
    for past in range(300):  # more than are kept before counting
        rows = (routing([[past % 8, -1, 3]]), None, routing([[1, 2, 3]]))
        both.add(rows, tokens=1, past=past)
        alone = ActivityMeter(one)
        alone.add(rows, tokens=1, past=past)
        single += alone.activity().num_bytes
    done = both.activity()
    assert done.tokens == 300
    assert done.num_bytes == pytest.approx(single)
    assert both.activity() == done


def test_a_reused_buffer_is_not_counted_twice(make_config):
    one = account(make_config())
    buffer = torch.tensor([[0, 1, 2]])
    rows = Routing(buffer, torch.ones(1, 3), torch.zeros(1, 8))
    meter = ActivityMeter(one)
    meter.add((rows, None, rows), tokens=1)
    buffer.fill_(-1)
    assert meter.activity().awake_per_token == (3, 0, 3)


def test_only_asked_logits_count(make_config):
    one = account(make_config())
    rows = (routing([[0, 1, 2]] * 4), None, routing([[0, 1, 2]] * 4))
    every, last = (ActivityMeter(one) for _ in range(2))
    every.add(rows, tokens=4)
    last.add(rows, tokens=4, logits=1)
    saved = every.activity().operations - last.activity().operations
    assert saved == 3 * 2 * one.head_matrix_parameters


def test_a_dense_model_is_metered_too(make_config):
    one = account(make_config(experts=None, feed_forwards="dense"), context=5)
    meter = ActivityMeter(one)
    meter.add((None, None, None), tokens=1, past=4)
    assert meter.activity().operations_per_token == one.operations_per_token


def test_measured_joules_go_before_modelled_ones(make_config):
    done = activity((routing([[0, 1, 2]]), None, routing([[0, 1, 2]])), account(make_config()))
    model = energy_model()
    assert done.energy(model).source == "model"
    assert done.energy(model).joules == model.estimate(done.operations, done.num_bytes, "bfloat16").joules
    counted = Energy(joules=3.0, source="rapl")
    assert done.energy(model, counted) is counted


def test_routings_of_another_model(make_config):
    one = account(make_config())
    with pytest.raises(ConfigError, match="1 layers routed, the account has 2"):
        ActivityMeter(one).add((routing([[0]]),), tokens=1)
    with pytest.raises(ConfigError, match="no layer routed"):
        activity((None, None), one)
