"""Arms of a comparison: models that see the same tokens in the same order, one of them dense.

The dense arm does as much arithmetic per token as the first sparse arm, router included, or a little more:

    width = A F + S F + U / P      A awake and S shared units of width F, U rows of the router, P matrices in a unit

rounded up to a multiple of 8, which matrix products like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from pragnosia.errors import ConfigError
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.measure.accounting import Account, account
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.training.assembly import merged, model_config
from pragnosia.training.configuration import TrainConfig, read_config

# What all arms must share for their losses to be comparable.
_SHARED = ("tokenizer", "data", "batch", "num_steps")
# Operations per token may differ by this much and still count as equal.
_TOLERANCE = 0.05


@dataclass(frozen=True)
class Arm:
    """One model to train."""

    name: str
    config: TrainConfig
    account: Account
    dense: bool


def read_arms(configs: Sequence[Path | str | Mapping[str, Any]], overrides: Sequence[str]) -> dict[str, TrainConfig]:
    """The configurations by name. Raises ConfigError where two could not be compared."""
    if not configs:
        raise ConfigError("nothing to compare; give at least one configuration")
    arms: dict[str, TrainConfig] = {}
    for number, source in enumerate(configs):
        name = Path(source).stem if isinstance(source, Path | str) else f"arm{number + 1}"
        arms[name if name not in arms else f"{name}-{number + 1}"] = read_config(source, overrides)
    for name, config in arms.items():
        if config.start is not None:
            raise ConfigError(f"{name} has a start; what is compared begins from nothing: leave start out")
    first_name, first = next(iter(arms.items()))
    for name, config in arms.items():
        for key in _SHARED:
            if getattr(config, key) != getattr(first, key):
                key = "steps" if key == "num_steps" else key
                raise ConfigError(f"{key} differs between {first_name} and {name}; arms must see the same tokens")
    return arms


def with_dense(configs: Mapping[str, TrainConfig], tokenizer: PreTrainedTokenizerFast) -> list[Arm]:
    """The arms, counted; and a dense one of equal compute, derived from the first sparse one if none was given."""
    shapes = {name: model_config(config, tokenizer) for name, config in configs.items()}
    arms = [_arm(name, config, shapes[name]) for name, config in configs.items()]
    sparse = next((arm for arm in arms if not arm.dense), None)
    if sparse is None or any(arm.dense and _equal_compute(arm, sparse) for arm in arms):
        return arms
    name = "dense" if "dense" not in configs else "dense-twin"
    twin = dense_twin(sparse.config, shapes[sparse.name])
    return [*arms, _arm(name, twin, model_config(twin, tokenizer))]


def reference(arms: Sequence[Arm]) -> Arm:
    """The dense arm closest in operations to the first sparse one: what the others are measured against."""
    dense = [arm for arm in arms if arm.dense]
    target = next((arm for arm in arms if not arm.dense), dense[0]).account.operations_per_token
    return min(dense, key=lambda arm: abs(arm.account.operations_per_token - target))


def dense_twin(config: TrainConfig, shape: PragnosiaConfig) -> TrainConfig:
    """The same run with a dense feed-forward that costs as much per token as the awake units and their router."""
    units = shape.units
    assert units is not None
    router = units.num_units / (ACTIVATIONS[units.activation].num_parts + 1)
    width = 8 * -int(-(units.active_width + router) // 8)
    dense = {"width": width, "activation": units.activation, "bias": units.bias}
    changes = {"experts": None, "columns": None, "feed_forward": dense, "feed_forwards": "dense"}
    return replace(config, model=merged(config.model, changes))


def _arm(name: str, config: TrainConfig, shape: PragnosiaConfig) -> Arm:
    counted = account(shape, precision="float32", context=config.batch.sequence_length)
    return Arm(name, config, counted, dense=all(layer.num_units == 0 for layer in counted.layers))


def _equal_compute(one: Arm, other: Arm) -> bool:
    ratio = one.account.operations_per_token / other.account.operations_per_token
    return abs(ratio - 1) <= _TOLERANCE
