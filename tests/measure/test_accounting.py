from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pragnosia import kernels
from pragnosia.errors import ConfigError
from pragnosia.inference.sparsity import sites_of
from pragnosia.kernels import compiled
from pragnosia.measure.accounting import account
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.model.presets import PRESETS, preset
from pragnosia.quantisation.layers import PackedLinear


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_counted_once(make_config, tied):
    shape = make_config(tie_word_embeddings=tied)
    assert account(shape).total_parameters == count(PragnosiaForCausalLM(shape))


def test_active_parameters_by_hand(make_config):
    one = account(make_config(tie_word_embeddings=False))
    width, attention, head = 48, 2 * 48 * 32 + 2 * 48 * 16, 97 * 48 + 48
    unit, dense = 3 * width * 12, 3 * width * 40
    sparse_layer = 2 * width + attention + 8 * width + (3 + 1) * unit
    assert one.active_parameters == 48 + head + 2 * sparse_layer + 2 * width + attention + dense


def test_columns_by_hand(make_config):
    columns = {"width": 96, "column_width": 8, "thalamus": {"num_awake": 2, "rank": 10}}
    one = account(make_config(tie_word_embeddings=False, experts=None, feed_forwards="columns", columns=columns))
    width, attention, head = 48, 2 * 48 * 32 + 2 * 48 * 16, 97 * 48 + 48
    layer = 2 * width + attention + 10 * (width + 12) + 2 * (2 * width * 8)
    assert one.active_parameters == 48 + head + 3 * layer
    assert one.total_parameters - one.active_parameters == 96 * 48 + 3 * 10 * (2 * width * 8)


def test_a_dense_model_is_all_awake(make_config):
    one = account(make_config(experts=None, feed_forwards="dense"))
    assert one.active_parameters == one.total_parameters
    assert all(layer.num_units == 0 for layer in one.layers)


@pytest.mark.parametrize("context", [4, 6, 20])
def test_operations_are_those_torch_counts_in_one_decode_step(sparse, context, monkeypatch):
    # Torch does not see what the compiled kernels do, so its own paths run here.
    monkeypatch.setattr(compiled, "_load", lambda: (None, "off"))
    # Torch does not count its fused attention on CPU; written out as two products it does.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as whole:
        state = sparse(torch.zeros(1, context - 1, dtype=torch.long)).past_key_values
        before = whole.get_total_flops()
        sparse(torch.ones(1, 1, dtype=torch.long), past_key_values=state)
    assert whole.get_total_flops() - before == account(sparse, context=context).operations_per_token


def test_bytes_are_weights_and_cache(make_config):
    shape = make_config()
    short, long = (account(shape, precision="float32", context=context) for context in (5, 9))
    keys = 2 * 16 * 4  # keys and values, 2 heads of 8, float32
    assert short.bytes_per_token == 4 * short.active_parameters + 3 * keys * (5 + 1)
    assert long.bytes_per_token - short.bytes_per_token == keys * (4 + 1 + 4)  # the windowed layer stops at 6


def test_packed_weights_leave_the_cache_in_bf16(make_config):
    shape = make_config()
    assert account(shape, precision="int4").cache_bytes(7) == account(shape).cache_bytes(7)
    packed, plain = account(shape, precision="int4"), account(shape)
    assert plain.bytes_per_token - packed.bytes_per_token == pytest.approx(1.5 * plain.active_parameters, abs=1)


def test_energy_puts_units_to_sleep(make_config):
    shape = make_config()
    full, low = account(shape), account(shape, awake=0.34)
    assert [layer.num_awake for layer in full.layers] == [3, 0, 3]
    assert [layer.num_awake for layer in low.layers] == [1, 0, 1]
    assert full.active_parameters - low.active_parameters == 2 * 2 * full.layers[0].unit_parameters


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_counted_without_memory(name):
    one = account(preset(name))
    assert one.active_parameters < one.total_parameters
    assert 1.5 * one.active_parameters < one.operations_per_token < 4 * one.active_parameters


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"precision": "bfloat61"}, "Did you mean 'bfloat16'"),
        ({"context": 65}, "holds 1 to 64"),
        ({"context": 0}, "holds 1 to 64"),
    ],
)
def test_bad_questions(make_config, wrong, said):
    with pytest.raises(ConfigError, match=said):
        account(make_config(), **wrong)


def test_a_packed_dense_model_is_counted_by_its_shapes(make_config):
    model = PragnosiaForCausalLM(make_config(feed_forwards="dense", experts=None))
    whole = account(model)
    for name, linear in sites_of(model).items():
        rows = kernels.pack(linear.weight.detach(), "int8")
        model.set_submodule(name, PackedLinear(rows, kernels.FORMATS["int8"], linear.in_features))
    assert account(model) == whole
