"""Dense feed-forward: every hidden neuron awake for every token.

y = down act(up x)        gated where the activation is (SwiGLU: Shazeer 2020, arXiv 2002.05202)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor, nn

from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.model.configuration import FeedForwardConfig, PragnosiaConfig
from pragnosia.model.linear import Linear
from pragnosia.model.thalamus import Routing

if TYPE_CHECKING:
    from pragnosia.model.attention import Moment


class FeedForward(nn.Module):
    """Up, activate, down. It routes nothing."""

    def __init__(self, config: PragnosiaConfig, layer: int, organ: FeedForwardConfig | None = None) -> None:
        super().__init__()
        organ = organ or config.feed_forward
        assert organ is not None
        self.activation = ACTIVATIONS[organ.activation]
        self.up = Linear(config.hidden_size, self.activation.num_parts * organ.width, bias=organ.bias)
        self.down = Linear(organ.width, config.hidden_size, bias=organ.bias, writes_to_stream=True)

    def forward(self, x: Float[Tensor, "*B D"], moment: Moment) -> tuple[Float[Tensor, "*B D"], Routing | None]:
        """Each token by itself, whatever the moment; no routing."""
        return self.down(self.activation(self.up(x))), None
