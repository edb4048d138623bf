"""A linear layer of which small inputs sleep: what they would add is left out, and at decode their weights unread.

    y = W s(x) + b        s(x)_i = x_i where |x_i| > threshold, else 0

Thresholds that let a stated share of the inputs sleep need no training (TEAL: Liu et al. 2024, arXiv 2408.14690). All
tokens are treated alike, a prompt's as well as an answer's, so that a text means the same however it is cut; only a
single token's product leaves weights unread.
"""

from __future__ import annotations

from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from pragnosia import kernels
from pragnosia.kernels.awake import by_input


@final
class AwakeLinear(nn.Module):
    """Stands where a `Linear` stood and takes its weights, which now lie input by input; frozen."""

    bias: Tensor | None

    def __init__(self, weight: Float[Tensor, "O D"], bias: Tensor | None, threshold: float, asleep: float) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.threshold, self.asleep = threshold, asleep
        """How small an input may be to sleep, and the share of inputs that did on some text."""
        lying = weight if weight.is_meta else by_input(weight.detach())
        self.weight = nn.Parameter(lying, requires_grad=False)
        held = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.register_parameter("bias", held)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... O"]:
        """Shapes as `nn.Linear`."""
        return kernels.linear(x.masked_fill(x.abs() <= self.threshold, 0), self.weight, self.bias)
