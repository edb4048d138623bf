"""Optimisers: which weights are updated how, driven as one.

    kind         which                                         adamw    muon     decay   rate
    matrices     hidden matrices and banks of units            AdamW    Muon     yes     1
    router       thalamus, keys (rows of units, not a map),    AdamW    AdamW    no      router_multiplier
                 and what makes tokens ask for slots
    embeddings   token table and output head                   AdamW    AdamW    no      1
    vectors      norms, biases, sinks                          AdamW    AdamW    no      1
    memory       the table of long-term memory                 RowAdam  RowAdam  no      memory_multiplier

Clipping writes no gradient: AdamW's fused kernel divides by `grad_scale` while it reads them anyway.
Loshchilov & Hutter 2019 (arXiv 1711.05101) for AdamW; Muon in muon.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.plasticity.origin import Change, Origin, followed
from pragnosia.training.eight_bit import AdamW8bit, carry_blocks
from pragnosia.training.muon import Muon
from pragnosia.training.newborns import Newborns
from pragnosia.training.row_wise import RowAdam

KINDS = ("matrices", "router", "embeddings", "vectors", "memory")
Named = tuple[str, nn.Parameter]
Name = Literal["adamw", "adamw8bit", "muon"]


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """How weights move."""

    name: Name = "adamw"
    """`adamw8bit` keeps AdamW's moments in 8 bits each (eight_bit.py)."""
    learning_rate: float = 2e-3
    router_multiplier: float = 1.0
    """Learning rate of the routers, as a multiple of `learning_rate`."""
    memory_multiplier: float = 10.0
    """Learning rate of the table of long-term memory, likewise."""
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    momentum: float = 0.95
    """Of Muon."""
    clip: float | None = 1.0
    """Largest norm of the whole gradient; None does not clip."""
    newborn_steps: int = 200
    """Over which the rate of what growth has made rises to that of the others (newborns.py)."""
    elders: float = 1.0
    """Once something has grown, the rate of what was there before, as a multiple; 0 freezes it."""

    def __post_init__(self) -> None:
        if self.name not in get_args(Name):
            raise ConfigError(unknown_name("optimiser.name", self.name, get_args(Name)))
        for key in ("learning_rate", "router_multiplier", "memory_multiplier", "epsilon"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"optimiser.{key} is {getattr(self, key)}; it must be greater than 0")
        for key in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"optimiser.{key} is {getattr(self, key)}; it must lie in [0, 1)")
        if self.weight_decay < 0:
            raise ConfigError(f"optimiser.weight_decay is {self.weight_decay}; it must not be negative")
        if self.newborn_steps < 0:
            raise ConfigError(f"optimiser.newborn_steps is {self.newborn_steps}; it must not be negative")
        if not 0 <= self.elders <= 1:
            raise ConfigError(f"optimiser.elders is {self.elders}; it must lie between 0 (frozen) and 1 (as newborns)")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"optimiser.clip is {self.clip}; it must be greater than 0, or null")


def kind_of(name: str, weight: Tensor, embedded: set[int]) -> str:
    """The row of the table above; `embedded` holds the ids of token tables and heads."""
    if id(weight) in embedded:
        return "embeddings"
    if name.endswith("hippocampus.rows"):
        return "memory"
    if ".thalamus." in f".{name}" or ".salience." in name or name.endswith(".keys"):
        return "router"
    return "vectors" if weight.ndim < 2 or "bias" in name.rsplit(".", 1)[-1] else "matrices"


@final
class Optimisers:
    """AdamW, and Muon beside it where asked, over one model's parameters."""

    def __init__(self, parameters: Iterable[Named], embedded: set[int], config: OptimiserConfig) -> None:
        self.clip = config.clip
        self.config = config
        self.newborns = Newborns(config.newborn_steps, config.elders)
        self._take(parameters, embedded)

    def _take(self, parameters: Iterable[Named], embedded: set[int]) -> None:
        """Parameters in their groups, without a past."""
        config = self.config
        self.weights: dict[str, nn.Parameter] = dict(parameters)
        if not self.weights:
            raise ConfigError("the learning rule changes no parameter; nothing can be trained")
        of_kind: dict[str, list[nn.Parameter]] = {kind: [] for kind in KINDS}
        for name, weight in self.weights.items():
            of_kind[kind_of(name, weight, embedded)].append(weight)
        groups = [_group(kind, weights, config) for kind, weights in of_kind.items() if weights]
        others = {"memory": "rows", "matrices": "muon" if config.name == "muon" else "adamw"}
        by_muon, by_rows, by_adamw = (
            [group for group in groups if others.get(group["kind"], "adamw") == name]
            for name in ("muon", "rows", "adamw")
        )
        self.parts: list[torch.optim.Optimizer] = []
        if by_adamw:
            betas = (config.beta1, config.beta2)
            kept: dict[str, Any] = {"lr": 1.0, "betas": betas, "eps": config.epsilon}
            narrow = config.name == "adamw8bit"
            self.parts.append(
                AdamW8bit(by_adamw, **kept) if narrow else torch.optim.AdamW(by_adamw, **kept, fused=True)
            )
        if by_muon:
            self.parts.append(Muon(by_muon, lr=1.0, momentum=config.momentum))
        if by_rows:
            self.parts.append(RowAdam(by_rows, lr=1.0, betas=(config.beta1, config.beta2), eps=config.epsilon))

    @property
    def groups(self) -> Iterator[dict[str, Any]]:
        """Every parameter group of every part."""
        return (group for part in self.parts for group in part.param_groups)

    def zero(self) -> None:
        """Forget the gradients, so that the next backward pass writes instead of adding."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self, factor: float) -> Tensor:
        """Move every weight at `factor` times its peak rate; the gradient's norm before clipping, a table's aside."""
        gradients = [w.grad for w in self.weights.values() if w.grad is not None and not w.grad.is_sparse]
        norm = _norm(gradients)
        scale = (norm / self.clip).clamp(min=1.0) if self.clip is not None else None
        if scale is not None and scale.is_cpu and float(scale) == 1.0:
            scale = None  # dividing by one would write every gradient once more
        for group in self.groups:
            group["lr"] = group["peak"] * factor
        held = self.newborns.hold(self.weights)
        for part in self.parts:
            part.grad_scale = scale  # type: ignore[attr-defined]
            part.step()
        self.newborns.release(held)
        return norm

    def follow(self, change: Change, parameters: Iterable[Named], embedded: set[int]) -> None:
        """Take over the parameters of a model that changed its structure: moments go along, newborns have none."""
        old = self.weights
        moments = {name: part.state[w] for part in self.parts for name, w in old.items() if w in part.state}
        self._take(parameters, embedded)
        names = {id(weight): name for name, weight in self.weights.items()}
        for part, weight in ((p, weight) for p in self.parts for group in p.param_groups for weight in group["params"]):
            name = names[id(weight)]
            origin = change.origins.get(name, Origin(name))
            if origin.name in moments and not origin.newborn:
                part.state[weight] = _followed(moments[origin.name], old[origin.name].shape, origin)
        self.newborns.follow(change.origins, self.weights, set(old))
        self.newborns.freeze(self.weights)

    def state(self) -> dict[str, Tensor]:
        """Moments of every parameter, as `<parameter>/<moment>`."""
        names = {id(weight): name for name, weight in self.weights.items()}
        return {
            f"{names[id(weight)]}/{moment}": value
            for part in self.parts
            for weight, moments in part.state.items()
            for moment, value in moments.items()
        } | self.newborns.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up moments written by `state`."""
        self.newborns.ages = {}
        owner = {id(w): part for part in self.parts for group in part.param_groups for w in group["params"]}
        for key, value in state.items():
            if self.newborns.load(key, value):
                continue
            name, moment = key.rsplit("/", 1)
            weight = self.weights[name]
            device = value.device if moment == "step" and weight.device.type == "cpu" else weight.device
            owner[id(weight)].state[weight][moment] = value.to(device)
        self.newborns.freeze(self.weights)


def embedded_in(model: Any) -> set[int]:
    """Ids of a model's token tables and heads."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return {id(end.weight) for end in ends if end is not None}


def _followed(moments: dict[str, Any], shape: torch.Size, origin: Origin) -> dict[str, Any]:
    """The state of one weight, where its numbers went."""
    if "m_codes" in moments:
        return carry_blocks(moments, shape, lambda moment: followed(moment, origin.axes))
    return {key: followed(value, origin.axes) if torch.is_tensor(value) else value for key, value in moments.items()}


def _norm(gradients: list[Tensor]) -> Tensor:
    """Of all gradients together. On the CPU a dot product runs at the speed of memory, torch's norm at a third."""
    if all(gradient.is_cpu and gradient.dtype is torch.float32 for gradient in gradients):
        return torch.stack([torch.dot(g, g) for g in (gradient.flatten() for gradient in gradients)]).sum().sqrt()
    return torch.nn.utils.get_total_norm(gradients)


def _group(kind: str, weights: list[nn.Parameter], config: OptimiserConfig) -> dict[str, Any]:
    """One parameter group; `peak` is its learning rate at the top of the schedule."""
    multiplier = {"router": config.router_multiplier, "memory": config.memory_multiplier}.get(kind, 1.0)
    decay = config.weight_decay if kind == "matrices" else 0.0
    return {"params": weights, "kind": kind, "peak": config.learning_rate * multiplier, "weight_decay": decay}
