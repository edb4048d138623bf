"""Upcycling: a dense model becomes a mixture whose experts are copies of its feed-forwards, whole or in slices.

    dense      y = sum over neurons n of down_n act(up_n x)
    mixture    y = sum over awake units u of g_u sum over n of u down_n act(up_n x)         sum of g_u = scale

A unit is a copy of the parent (split 1), or one of `split` slices of its hidden neurons. The rows of a router are alike
for the slices of one copy, so that they wake together, and scale = split: then every neuron speaks with a strength of 1
in all, and the mixture says what its parent said, whatever the router chooses. So it is where `awake` is a multiple of
`split`. Where fewer slices wake than make up a copy, each speaks as loudly as it did and the others are missing.

Sparse upcycling: arXiv 2212.05055; slices, and routers that are alike for them: arXiv 2410.07524. Drop-upcycling, arXiv
2502.19261: in each copy a share of the hidden neurons is drawn anew, from a normal distribution with the mean and the
deviation of the weights they replace, so that copies differ from the start; the function is then not kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pragnosia.checkpoints.blueprint import Blueprint, blueprint
from pragnosia.checkpoints.matching import parameter_shapes
from pragnosia.checkpoints.travel import carry
from pragnosia.checkpoints.writer import SHARD_BYTES, Entry, new_directory, write_weights
from pragnosia.data.vocabulary import vocabulary_digest
from pragnosia.errors import ConfigError
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import Cortex

BALANCE_RATE = 1e-3
_MADE = re.compile(r"(model\.layers\.(\d+)\.feed_forward\.)(thalamus\.weight|thalamus\.balance|bank\.\w+)$")
Read = Callable[[str], Tensor]
"""One of the parent's tensors by name."""


@dataclass(frozen=True, kw_only=True)
class Upcycling:
    """What becomes of every dense feed-forward. Raises ConfigError for what cannot be."""

    experts: int = 8
    """Units of each bank."""
    awake: int = 2
    split: int = 1
    """Slices that each copy of the parent is cut into; the bank holds experts / split copies."""
    drop: float = 0.0
    """Share of each copy's hidden neurons that are drawn anew."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.experts < 2:
            raise ConfigError(f"experts is {self.experts}; a mixture needs at least 2")
        if not 1 <= self.awake <= self.experts:
            raise ConfigError(f"awake is {self.awake}; of {self.experts} experts 1 to {self.experts} can wake")
        if self.split < 1 or self.experts % self.split:
            raise ConfigError(
                f"split is {self.split}, which does not divide the {self.experts} experts; choose a divisor: every "
                "slice of a copy is one of them"
            )
        if not 0 <= self.drop < 1:
            raise ConfigError(f"drop is {self.drop}; it must lie in [0, 1): the share of neurons drawn anew")

    @property
    def copies(self) -> int:
        """Of the parent, in each bank."""
        return self.experts // self.split

    @property
    def keeps_function(self) -> bool:
        """Whether the mixture says what its parent said."""
        return self.awake % self.split == 0 and self.drop == 0

    def config(self, dense: PragnosiaConfig) -> PragnosiaConfig:
        """The mixture's shape. Raises ConfigError for a parent that is none."""
        kinds = list(dense.feed_forwards or ())
        if dense.units is not None:
            what = "experts" if dense.experts is not None else "columns"
            raise ConfigError(
                f"the model has {dense.units.num_units} {what} a layer already; only a dense one can be upcycled"
            )
        if "dense" not in kinds:
            raise ConfigError("the model has no dense feed-forward that could become a mixture")
        parent = dense.feed_forward
        if parent.width % self.split:
            raise ConfigError(
                f"split is {self.split}, which does not divide the {parent.width} hidden neurons of a feed-forward; "
                "choose a divisor"
            )
        values = dense.to_dict() | {
            "feed_forward": None,
            "feed_forwards": ["experts" if kind == "dense" else kind for kind in kinds],
            "experts": {
                "num_units": self.experts,
                "unit_width": parent.width // self.split,
                "activation": parent.activation,
                "bias": parent.bias,
                "thalamus": {
                    "kind": "softmax",
                    "num_awake": self.awake,
                    "scale": float(min(self.awake, self.split)),
                    "balance_rate": BALANCE_RATE,
                },
            },
        }
        return PragnosiaConfig.from_dict(values)

    def tensor(self, name: str, config: PragnosiaConfig, read: Read) -> Tensor:
        """One tensor of the mixture, from the parent's."""
        made = _MADE.fullmatch(name)
        if made is None:
            return read(name)
        place, layer, what = made[1], int(made[2]), made[3]
        if what == "thalamus.balance":
            return torch.zeros(self.experts)
        if what == "thalamus.weight":
            return self._router(layer, config).to(read(f"{place}up.weight").dtype)
        return self._bank(what.removeprefix("bank."), layer, config, lambda end: read(place + end))

    def _router(self, layer: int, config: PragnosiaConfig) -> Tensor:
        """(U, D), drawn small; alike for the slices of one copy where whole copies wake."""
        together = self.split if self.awake % self.split == 0 else 1
        rows = torch.randn(self.experts // together, config.hidden_size, generator=self._chance(layer, -1))
        return (rows * config.initializer_range).repeat_interleave(together, 0)

    def _bank(self, what: str, layer: int, config: PragnosiaConfig, read: Read) -> Tensor:
        """(U, ...): the slices of every copy, copy after copy."""
        parts = ACTIVATIONS[config.experts.activation].num_parts
        if what == "down_bias":
            return (read("down.bias") / self.split).expand(self.experts, -1)
        # Neurons first, in all of them: (parts, F, D), (F, D), (parts, F).
        if what == "down":
            neurons = read("down.weight").T[None]
        else:
            neurons = _by_part(read({"up": "up.weight", "up_bias": "up.bias"}[what]), parts)
        slices = []
        for copy in range(self.copies):
            fresh = self._redrawn(neurons, layer, copy, what)
            slices += [piece.flatten(0, 1) for piece in fresh.chunk(self.split, dim=1)]
        bank = torch.stack(slices)
        return bank.transpose(1, 2).contiguous() if what == "down" else bank

    def _redrawn(self, neurons: Tensor, layer: int, copy: int, what: str) -> Tensor:
        """One copy (parts, F, ...); the same neurons are drawn anew in all that make up the layer."""
        width = neurons.shape[1]
        chosen = torch.randperm(width, generator=self._chance(layer, copy))[: int(self.drop * width)]
        if not len(chosen):
            return neurons
        chance, fresh = self._chance(layer, copy, ("up", "down", "up_bias").index(what) + 1), neurons.clone()
        for part in fresh:
            old = part[chosen].float()
            drawn = torch.randn(old.shape, generator=chance) * old.std() + old.mean()
            part[chosen] = drawn.to(part.dtype)
        return fresh

    def _chance(self, layer: int, copy: int, what: int = 0) -> torch.Generator:
        """Of one thing to be drawn, whatever was drawn before it."""
        return torch.Generator().manual_seed(((self.seed * 4096 + layer) * 4096 + copy + 1) * 4 + what)


@torch.no_grad()
def upcycle(model: Cortex, plan: Upcycling) -> Any:
    """A mixture (PragnosiaForCausalLM) of a dense model in memory, which stays as it is. Raises ConfigError."""
    from pragnosia.model.modeling import PragnosiaForCausalLM  # slow to import

    config = plan.config(model.config)
    mixture: Any = PragnosiaForCausalLM(config)
    mixture.to(model.dtype)
    parent = model.state_dict()
    for name, tensor in mixture.state_dict().items():
        tensor.copy_(plan.tensor(name, config, parent.__getitem__))
    return mixture.to(model.device)


def upcycle_directory(source: Path | str, out: Path | str, plan: Upcycling) -> PragnosiaConfig:
    """Write the mixture of a dense model, ours or another family's as it lies, at `out`; no more than a layer is held.

    Raises CheckpointError or ConfigError; then nothing is left at `out`.
    """
    source = Path(source)
    dense = blueprint(source)
    config = plan.config(dense.config)
    shapes = parameter_shapes(config)
    entries = [
        Entry(name, _dtype(dense, name), shape, partial(_pieces, plan, name, config, dense))
        for name, shape in shapes.items()
    ]
    with new_directory(Path(out)) as folder:
        write_weights(folder, entries, SHARD_BYTES)
        carry(source, folder)
        config.architectures = ["PragnosiaForCausalLM"]
        config.dtype = config.dtype or dense.dtype("model.embed_tokens.weight")
        config.tokenizer_digest = vocabulary_digest(folder)
        config.save_pretrained(folder)
    return config


def _by_part(rows: Tensor, parts: int) -> Tensor:
    """(parts * F, ...) as (parts, F, ...)."""
    return rows.view(parts, -1, *rows.shape[1:])


def _dtype(dense: Blueprint, name: str) -> torch.dtype:
    made = _MADE.fullmatch(name)
    if made is None:
        return dense.dtype(name)
    return torch.float32 if made[3] == "thalamus.balance" else dense.dtype(f"{made[1]}up.weight")


def _pieces(plan: Upcycling, name: str, config: PragnosiaConfig, dense: Blueprint) -> Iterator[Tensor]:
    yield plan.tensor(name, config, dense.read)
