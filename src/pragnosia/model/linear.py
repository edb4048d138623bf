"""Linear: torch's linear layer over our kernels, which are faster where a single token passes."""

from __future__ import annotations

from torch import Tensor, nn

from pragnosia import kernels


class Linear(nn.Linear):
    """y = W x + b. An `nn.Linear` in every other respect, so adapters and quantisers recognise it.

    `writes_to_stream` marks the last layer of an organ, whose weights start smaller in deep models; with
    `starts_silent` they start at zero.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool, writes_to_stream: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.writes_to_stream = writes_to_stream
        self.starts_silent = False

    def forward(self, input: Tensor) -> Tensor:
        """Shapes as `nn.Linear`: (…, in) -> (…, out)."""
        return kernels.linear(input, self.weight, self.bias)
