"""AdamW with moments of 8 bits: a quarter of the memory.

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
    w -= lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w)

Between steps m and sqrt(v) are float8 (e4m3: 3 bits of fraction, 18 octaves), each block of 256 numbers scaled to its
largest. The root halves the range v spans, and it is never kept as zero: a weight whose v were lost would leap.
Block-wise 8-bit moments: Dettmers et al. 2022, arXiv 2110.02861; float8 ones: Peng et al. 2023, arXiv 2310.18313.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from pragnosia.training.weight_by_weight import WeightByWeight

BLOCK = 256
CHUNK = 1 << 16  # numbers worked on at once: what is fp32 meanwhile stays in the caches
_CODES = torch.float8_e4m3fn
_LARGEST, _LEAST = 448.0, 2.0**-9


@final
class AdamW8bit(WeightByWeight):
    """As torch's AdamW."""

    def __init__(self, groups: Any, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    def _move(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            count = -(-weight.numel() // BLOCK)
            for name in ("m", "root"):
                state[f"{name}_codes"] = torch.zeros(count, BLOCK, device=weight.device).to(_CODES)
                state[f"{name}_scales"] = torch.zeros(count, 1, device=weight.device)
            state["step"] = torch.zeros(())
        state["step"] += 1
        flat, grad = weight.view(-1), weight.grad.reshape(-1)  # type: ignore[union-attr]
        for start in range(0, flat.numel(), CHUNK):
            part = slice(start, start + CHUNK)
            blocks = slice(start // BLOCK, (start + CHUNK) // BLOCK)
            moments = [(state[f"{name}_codes"][blocks], state[f"{name}_scales"][blocks]) for name in ("m", "root")]
            self._move_part(flat[part], grad[part], moments, group, int(state["step"]))

    def _move_part(
        self, weight: Tensor, grad: Tensor, moments: list[tuple[Tensor, Tensor]], group: dict[str, Any], step: int
    ) -> None:
        (first, second), count = group["betas"], weight.numel()
        g = grad.float() if self.grad_scale is None else grad.float() / self.grad_scale
        m, root = ((codes.float() * scales).view(-1)[:count] for codes, scales in moments)
        m.lerp_(g, 1 - first)
        v = root.square_().lerp_(g.square(), 1 - second)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        size = (v / (1 - second**step)).sqrt_().add_(group["eps"])
        weight.addcdiv_(m.to(weight.dtype), size.to(weight.dtype), value=-group["lr"] / (1 - first**step))
        for (codes, scales), values in zip(moments, (m, v.sqrt_()), strict=True):
            _encode(values, codes, scales, least=_LEAST if values is v else 0.0)


def carry_blocks(state: dict[str, Any], shape: torch.Size, follow: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """One weight's state after its numbers, of `shape`, went elsewhere; what is zero then is a newborn's."""
    carried: dict[str, Any] = {"step": state["step"]}
    for name in ("m", "root"):
        flat = (state[f"{name}_codes"].float() * state[f"{name}_scales"]).view(-1)[: shape.numel()]
        values = follow(flat.view(shape)).reshape(-1)
        count = -(-values.numel() // BLOCK)
        codes = torch.zeros(count, BLOCK, device=values.device).to(_CODES)
        scales = torch.zeros(count, 1, device=values.device)
        _encode(values, codes, scales, least=_LEAST if name == "root" else 0.0)
        carried |= {f"{name}_codes": codes, f"{name}_scales": scales}
    return carried


def _encode(values: Float[Tensor, " N"], codes: Tensor, scales: Tensor, least: float) -> None:
    """Write blocks of values as codes and scales."""
    blocks = torch.nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    scales.copy_(blocks.abs().amax(-1, keepdim=True).div_(_LARGEST))
    scaled = blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)
    codes.copy_((scaled.clamp_min(least) if least else scaled).to(_CODES))
