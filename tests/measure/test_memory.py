from __future__ import annotations

import pytest
import torch

from pragnosia.errors import ConfigError
from pragnosia.measure.accounting import account
from pragnosia.measure.memory import memory_needs, memory_to_run, memory_to_train, memory_to_tune
from pragnosia.model.modeling import PragnosiaForCausalLM


def kept_bytes(model: PragnosiaForCausalLM, tokens: torch.Tensor) -> int:
    """What the backward pass holds on to, besides the parameters."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(tokens, labels=tokens, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("qk_norm", [None, "head"])
@pytest.mark.parametrize("kind", ["experts", "dense"])
def test_declared_activations_cover_the_measured_ones(make_config, kind, qk_norm):
    attention = {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "qk_norm": qk_norm}
    shape = make_config(feed_forwards=kind, layer_types=None, attention=attention)
    model = PragnosiaForCausalLM(shape).train()
    measured = kept_bytes(model, torch.zeros(2, 64, dtype=torch.long))
    declared = memory_to_train(account(shape), tokens=128).parts["activations"]
    assert measured <= declared <= 2 * measured


def test_training_is_sixteen_bytes_a_parameter_with_adamw(make_config):
    one = account(make_config())
    parts = memory_to_train(one, tokens=64).parts
    assert parts["weights"] + parts["gradients"] + parts["optimiser"] == 16 * one.total_parameters
    assert memory_to_train(one, tokens=64, moments=1).parts["optimiser"] == 4 * one.total_parameters


def test_checkpointing_saves(make_config):
    one = account(make_config())
    full, saved = (memory_to_train(one, tokens=512, checkpointing=on).total for on in (False, True))
    assert saved < full


def test_running_grows_with_context_and_batch(make_config):
    one = account(make_config())
    assert memory_to_run(one, context=60).total > memory_to_run(one, context=30).total
    assert memory_to_run(one, batch=4).parts["cache"] == 4 * memory_to_run(one).parts["cache"]


def test_tuning_holds_frozen_weights_and_small_adapters(make_config):
    one = account(make_config())
    parts = memory_to_tune(one, tokens=64, rank=2).parts
    assert parts["weights"] == 2 * one.total_parameters
    # q: 48 + 32, k and v: 48 + 16, o: 32 + 48; rank 2, three layers
    assert parts["adapters"] == 16 * 3 * 2 * (80 + 64 + 64 + 80)


def test_needs_are_ordered(make_config):
    needs = memory_needs(account(make_config()))
    assert needs["train"].total > needs["tune"].total > needs["run"].parts["interpreter"]


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"tokens": 8, "rank": -1}])
def test_bad_sizes(make_config, wrong):
    with pytest.raises(ConfigError, match="must be greater than 0"):
        memory_to_tune(account(make_config()), **wrong)
