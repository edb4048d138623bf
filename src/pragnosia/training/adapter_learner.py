"""Adapters learn: all of them at every step, on a model that stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pragnosia.kernels.pool import UnitPool
from pragnosia.model.cortex import Cortex
from pragnosia.training.checkpoint import Checkpoints
from pragnosia.training.optimisers import OptimiserConfig, Optimisers
from pragnosia.training.snapshot import MOMENTS
from pragnosia.tuning.block_files import write_tensors
from pragnosia.tuning.configuration import LoraConfig
from pragnosia.tuning.lora import attach, load_adapters
from pragnosia.tuning.peft_format import write_adapter
from pragnosia.tuning.recompute import recompute

ADAPTERS = "adapters.safetensors"


@final
class AdapterLearner:
    """A frozen model with adapters on `device`; `source` is its directory."""

    def __init__(
        self,
        model: Cortex,
        pool: UnitPool | None,
        config: LoraConfig,
        optimiser: OptimiserConfig,
        out: Path,
        source: str,
        device: torch.device | None = None,
    ) -> None:
        self.model, self.pool, self.config, self.out, self.source = model, pool, config, out, source
        self.attached: dict[str, nn.Parameter] = attach(model, config, device)
        recompute(model)
        model.model.layers[0].register_forward_pre_hook(_with_slopes)
        self.optimisers = Optimisers(self.attached.items(), set(), optimiser)

    def begin(self, step: int) -> None:
        """Every step is like the others."""
        self.optimisers.zero()

    def move(self, factor: float) -> Tensor:
        """All adapters."""
        return self.optimisers.step(factor)

    def write(self, folder: Path) -> Mapping[str, Any]:
        """Adapters and moments."""
        write_tensors(folder / ADAPTERS, self.attached)
        write_tensors(folder / MOMENTS, self.optimisers.state())
        return {}

    def read(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Both of them."""
        load_adapters(self.model, load_file(folder / ADAPTERS))
        self.optimisers.load_state(load_file(folder / MOMENTS))

    def saved(self, checkpoints: Checkpoints) -> None:
        """A checkpoint is all there is."""

    def end(self, step: int) -> None:
        """Adapters are in their places."""

    def result(self) -> Mapping[str, Any]:
        """The adapter, where PEFT and `merge` find it."""
        tensors = {name: weight.detach().cpu() for name, weight in self.attached.items()}
        write_adapter(self.out, tensors, self.config, self.source)
        return {"parameters": sum(tensor.numel() for tensor in tensors.values())}

    def clean(self) -> None:
        """Checkpoints stay, so that the run can go on."""


def _with_slopes(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Slopes must reach the first layer, though the embeddings have none."""
    x = given[0].detach()
    return (x.requires_grad_() if torch.is_grad_enabled() else x, *given[1:])
