"""What a gated layer costs: those that pass pay for it, the others for being heard."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pragnosia.errors import ConfigError
from pragnosia.kernels import compiled
from pragnosia.measure.accounting import account
from pragnosia.measure.activity import ActivityMeter
from pragnosia.measure.decoded import decoded
from pragnosia.measure.evaluation import evaluate
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.model.setting import Setting

WIDTH, UNIT = 48, 3 * 48 * 12
HEARD = WIDTH + WIDTH + 2 * 48 * 16  # norm, gate, keys and values
REST = WIDTH + 2 * 48 * 32 + 8 * WIDTH + (3 + 1) * UNIT


@pytest.fixture(scope="module")
def gated(make_config):
    torch.manual_seed(0)
    model = PragnosiaForCausalLM(make_config(gates={"layers": [0, 1], "share": 0.25}, initializer_range=0.2)).eval()
    with torch.no_grad():
        for _ in range(30):
            model.rebalance(model(torch.randint(0, 97, (4, 60))).routings)
    return model


@pytest.mark.parametrize("gates", [1.0, 0.4])
def test_by_hand(make_config, gates):
    plain = account(make_config())
    one = account(make_config(gates={"layers": [0], "share": 0.25}), gates=gates, context=20)
    assert one.total_parameters == plain.total_parameters + WIDTH
    assert plain.layers[0].active_parameters == HEARD - WIDTH + REST
    assert one.layers[0].active_parameters == HEARD + round(0.25 * gates * REST)
    assert [layer.passing for layer in one.layers] == [0.25 * gates, 1.0, 1.0]
    passed = 2 * (REST - WIDTH) + 4 * 32 * 20
    assert one.layers[0].mean_operations(20) == pytest.approx(2 * 2 * 48 * 16 + 0.25 * gates * passed)


def test_dendrites_that_are_heard(make_config):
    plain, one = (
        account(make_config(dendrites={"num_dendrites": 4}, **more)) for more in ({}, {"gates": {"layers": [0]}})
    )
    keys, gate, awake = 48 * 16, 2 * 4 * 48, 2 * 8 * 48
    heard = 2 * WIDTH + keys + gate + awake
    assert one.layers[0].heard_parameters == heard
    assert one.layers[0].heard_matrix_parameters == heard - 2 * WIDTH
    assert one.layers[0].active_parameters == heard + round((plain.layers[0].active_parameters + WIDTH - heard) / 2)


@torch.no_grad()
def test_the_meter_counts_what_torch_counts(gated, monkeypatch):
    monkeypatch.setattr(compiled, "_load", lambda: (None, "off"))  # torch does not see what compiled kernels do
    meter = ActivityMeter(account(gated))
    state = gated(torch.tensor([[5, 6, 7]])).past_key_values
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        for past in range(3, 18):
            output = gated(torch.tensor([[past]]), past_key_values=state)
            meter.add(output.routings, tokens=1, past=past)
            state = output.past_key_values
    done = meter.activity()
    assert done.operations == counted.get_total_flops()
    assert done.passed[2] == 1
    assert all(0 < share < 1 for share in done.passed[:2])


@torch.no_grad()
@pytest.mark.parametrize("sequences", [1, 3])
def test_a_prompt_counts_who_passed(gated, sequences):
    counted = account(gated)
    tokens = torch.randint(0, 97, (sequences, 30), generator=torch.Generator().manual_seed(3))
    meter, by_hand = ActivityMeter(counted), 0.0
    output = gated(tokens)
    meter.add(output.routings, tokens=30, sequences=sequences, logits=1)
    for routing, layer in zip(output.routings, counted.layers, strict=True):
        gate = routing.gate if routing is not None else None
        for number in range(30 * sequences):
            seen = min(number % 30 + 1, layer.window or 10**6)
            if gate is not None and int(gate.units[number]) < 0:
                by_hand += 2 * layer.heard_matrix_parameters
            else:
                by_hand += layer.operations(layer.num_awake, seen)
    assert meter.activity().operations == by_hand + 2 * counted.head_matrix_parameters * sequences


def test_a_layer_that_everybody_passes_by_is_not_read(gated):
    counted = account(gated, precision="float32")
    with torch.no_grad():
        routings = gated(torch.tensor([[1]])).routings
    costs = []
    for units in (0, -1):
        meter = ActivityMeter(counted)
        told = tuple(
            r and r._replace(units=r.units * 0 - 1, gate=r.gate and r.gate._replace(units=r.gate.units * 0 + units))
            for r in routings
        )
        meter.add(told, tokens=1, past=9)
        costs.append(meter.activity().num_bytes)
    some = counted.layers[:2]
    saved = sum(x.parameters - x.heard_parameters + 2 * x.key_width * min(10, x.window or 10) for x in some)
    assert costs[0] - costs[1] == 4 * saved


def test_a_text_costs_less_the_fewer_pass(make_config, make_byte_tokenizer):
    torch.manual_seed(0)
    model = PragnosiaForCausalLM(make_config(gates={"layers": [0, 2]}, initializer_range=0.2, vocab_size=300)).eval()
    with torch.no_grad():
        for _ in range(20):
            model.rebalance(model(torch.randint(0, 256, (4, 60))).routings)
    counted, costs = account(model), []
    for gates in (1.0, 0.5, 0.2):
        setting = Setting(gates=gates)
        read = evaluate(model, make_byte_tokenizer(), ["Many words, of which some matter. " * 6], setting=setting)
        assert read.gates[1] == 1
        assert read.layers_per_token == pytest.approx(sum(read.gates))
        cost = decoded(counted, read, setting, 10)
        assert cost.layers_used == pytest.approx(sum(read.gates))
        costs.append((cost.operations, cost.num_bytes, sum(read.gates)))
    assert all(more > fewer for one, other in pairwise(costs) for more, fewer in zip(one, other, strict=True))


def test_an_account_of_another_model(gated, make_config):
    with torch.no_grad():
        routings = gated(torch.tensor([[1]])).routings
    plain = tuple(routing and routing._replace(gate=None) for routing in routings)
    with pytest.raises(ConfigError, match="0 layers had gates, the account has 2 that do"):
        ActivityMeter(account(gated)).add((plain[0], None, plain[2]), tokens=1)
