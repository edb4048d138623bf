"""A dense layer for benchmarks/sleep.py that speaks louder: is it loudness that makes louder columns learn more?

    y = 3 down act(up x)

Six of 128 columns are, at first, a twentieth of a dense layer's neurons and about a fifth as loud; a larger
`thalamus.scale` makes up for it. So the dense layer that they are held against is given the same means.
"""

from __future__ import annotations

from torch import Tensor, nn

from pragnosia.model.attention import Moment
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.feed_forward import FeedForward

NAME = "louder:Louder"
LOUDNESS = 3.0


class Louder(nn.Module):
    """The dense layer, times LOUDNESS."""

    def __init__(self, config: PragnosiaConfig, layer: int) -> None:
        super().__init__()
        self.inner = FeedForward(config, layer)

    def forward(self, x: Tensor, moment: Moment) -> tuple[Tensor, None]:
        """It routes nothing."""
        return LOUDNESS * self.inner(x, moment)[0], None
