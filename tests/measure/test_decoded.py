"""A text read at once costs and says what it would token by token: as the account has it, and the ladder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM, kernels
from pragnosia.inference.early import Leaving, Tally
from pragnosia.inference.ladder import Climb, Ladder
from pragnosia.measure.accounting import account
from pragnosia.measure.activity import ActivityMeter
from pragnosia.measure.decoded import decoded
from pragnosia.measure.evaluation import EvaluationOptions, _Reader
from pragnosia.measure.leaving import answers, read_leaving
from pragnosia.model.setting import WHOLE, Setting

LENGTH = 40
COMMON: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "attention": {"num_heads": 4, "num_key_value_heads": 2},
}
UNITS = {"experts": {"num_units": 12, "unit_width": 16, "thalamus": {"kind": "sigmoid", "num_awake": 4}}}


def small(**dress: Any) -> Any:
    torch.manual_seed(0)
    return PragnosiaForCausalLM(PragnosiaConfig(**(COMMON | dress))).eval()  # type: ignore[no-untyped-call]


def figures(model: Any, rows: Any, setting: Setting) -> Any:
    """As an evaluation has them, of whole rows."""
    reader = _Reader(model, EvaluationOptions(setting=setting))
    with torch.inference_mode():
        reader.scores(rows, rows.shape[1] - 1)

    class Read:
        passed = reader.passed()
        heads_per_token = reader.heads / (rows.shape[0] * (rows.shape[1] - 1))
        awake_per_token = reader.meter.activity().awake_per_token
        gates = reader.meter.activity().passed
        layers_per_token = sum(passed)

    return Read


@pytest.mark.parametrize("dress", [UNITS, {"feed_forward": {"width": 40}}, UNITS | {"tie_word_embeddings": True}])
def test_the_whole_costs_its_account(dress: dict[str, Any]) -> None:
    model = small(**dress)
    rows = torch.randint(90, (2, LENGTH + 1))
    counted = account(model, precision="float32", context=20)
    found = decoded(counted, figures(model, rows, WHOLE), WHOLE, 20)
    assert found.operations == pytest.approx(counted.operations_per_token)
    assert found.num_bytes == pytest.approx(counted.bytes_per_token)
    assert found.layers_used == 4


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
@pytest.mark.parametrize("dress", [UNITS, {"feed_forward": {"width": 40}}], ids=["units", "dense"])
@torch.inference_mode()
def test_it_is_what_speaking_does(dress: dict[str, Any]) -> None:
    """Who leaves where, what is said there, what it costs: against the compiled program, token by token."""
    model = small(**dress)
    rows = torch.randint(90, (1, LENGTH))
    units, leave = Setting(awake=0.5), list[tuple[int, float]]()
    streams = model.model(rows, output_hidden_states=True, setting=units).hidden_states
    for layer in (1, 3):
        sure = answers(model.model.norm(streams[layer][0]), model.lm_head)[1]
        leave.append((layer, float(sure.quantile(0.6))))
    setting = replace(units, leave=tuple(leave), memory="propagated")
    left = read_leaving(model, rows, LENGTH, setting)
    climbs: list[Climb] = []
    tally = Tally()
    program = Leaving(Ladder(model, model.fresh_state(1, 64), setting, climbs.append), setting, tally)
    words = []
    for token in rows[0].tolist():
        words.append(program(token))
        program.length += 1
    depths = left.depths.tolist()
    assert tally.left == {layer: depths.count(layer) for layer in set(depths)}
    assert len(tally.left) == 3, "a test of one way out proves little"
    assert (left.hidden @ model.lm_head.weight.T).argmax(-1).tolist() == words
    meter = ActivityMeter(account(model, precision="float32"))
    for climb in climbs:
        meter.climbed(climb)
    meter.said(LENGTH)
    done = meter.activity()
    seen = (LENGTH + 1) / 2
    read = figures(model, torch.cat([rows, rows[:, :1]], 1), setting)
    found = decoded(account(model, precision="float32"), read, setting, seen)
    assert found.layers_used == pytest.approx(tally.layers_per_token)
    assert found.operations == pytest.approx(done.operations_per_token, rel=0.03), "who leaves late sees other keys"
    assert found.num_bytes == pytest.approx(done.bytes_per_token, rel=0.03)


def test_exact_memory_saves_no_arithmetic() -> None:
    model = small(**UNITS)
    rows = torch.randint(90, (1, LENGTH + 1))
    counted = account(model, precision="float32", context=20)
    exact = Setting(leave=((1, 0.0),))
    found = decoded(counted, figures(model, rows, exact), exact, 20)
    assert found.layers_used == 1
    assert found.operations == pytest.approx(counted.operations_per_token)
