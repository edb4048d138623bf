"""Shares out a level over a layer's matrices: more inputs sleep where the layer's output misses them less.

Greedy, layer by layer (Liu et al. 2024, arXiv 2408.14690, algorithm 1): again and again the matrix whose next few
inputs cost least lets them sleep, each step saving as many weights as any other, until `level` of the layer's is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pragnosia.inference.sparsity import sites_of
from pragnosia.model.awake_linear import AwakeLinear
from pragnosia.model.cortex import Cortex

STEP = 0.05
"""Of a layer's weights, saved by one step."""
MOST = 0.95
"""Level of one matrix, unless more is asked for of all."""
TOKENS = 512
"""On which a step is tried."""
Quantile = Callable[[str, float], float]


@dataclass
class _Group:
    """Matrices that are given the same input."""

    sites: dict[str, AwakeLinear]
    level: float = 0.0

    @property
    def size(self) -> int:
        return sum(site.weight.numel() for site in self.sites.values())

    def sleep(self, level: float, quantile: Quantile) -> None:
        for name, site in self.sites.items():
            site.threshold = quantile(name, level)


@torch.inference_mode()
def shared_out(model: Cortex, quantile: Quantile, windows: Sequence[Tensor], level: float) -> dict[str, float]:
    """The level of each site, all of them `AwakeLinear`; `quantile` says where a share of a site's inputs ends."""
    levels: dict[str, float] = {}
    sites: Mapping[str, Any] = sites_of(model)
    for site in sites.values():
        site.threshold = 0.0
    given: list[Any] = []
    hooks = [layer.register_forward_pre_hook(lambda _, args: given.append(args)) for layer in model.model.layers]
    try:
        model.model(max(windows, key=len)[None, :TOKENS], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    for number, (layer, args) in enumerate(zip(model.model.layers, given, strict=True)):
        within = {name: site for name, site in sites.items() if name.startswith(f"model.layers.{number}.")}
        for group in _layer(layer, args, within, quantile, level):
            levels |= dict.fromkeys(group.sites, group.level)
    return levels


def _layer(
    layer: Any, args: tuple[Any, ...], sites: Mapping[str, AwakeLinear], quantile: Quantile, level: float
) -> list[_Group]:
    groups, wanted = _groups(layer, args, sites)
    total, most = sum(group.size for group in groups), max(MOST, level)
    while (left := level * total - sum(group.level * group.size for group in groups)) > 1e-6 * total:
        best: tuple[float, _Group, float] | None = None
        for group in groups:
            if group.level >= most:
                continue
            raised = min(most, group.level + min(STEP * total, left) / group.size)
            group.sleep(raised, quantile)
            error = float((layer(*args)[0].float() - wanted).norm())
            group.sleep(group.level, quantile)
            if best is None or error < best[0]:
                best = error, group, raised
        assert best is not None  # what is left fits into the groups below `most`
        best[1].level = best[2]
        best[1].sleep(best[2], quantile)
    return groups


def _groups(layer: Any, args: tuple[Any, ...], sites: Mapping[str, AwakeLinear]) -> tuple[list[_Group], Tensor]:
    """Sites by the very tensor they are given, and what the layer says wide awake."""
    inputs: list[tuple[Tensor, str]] = []
    hooks = [
        site.register_forward_pre_hook(lambda _, x, name=name: inputs.append((x[0], name)))
        for name, site in sites.items()
    ]
    try:
        wanted = layer(*args)[0].float()
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[int, _Group] = {}
    for x, name in inputs:
        found.setdefault(id(x), _Group({})).sites[name] = sites[name]
    return list(found.values()), wanted
