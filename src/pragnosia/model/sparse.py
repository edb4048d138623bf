"""Sparse feed-forward: a thalamus wakes a few units of a bank for each token. Experts and columns are two grains of it.

    y = bank(x, thalamus(x)) + shared(x)

Units stand in labelled lobes, after MiCRo, arXiv 2506.13331; steering the router is after SteerMoE, arXiv 2509.09660.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor, nn

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.model.bank import Bank
from pragnosia.model.configuration import FeedForwardConfig, PragnosiaConfig
from pragnosia.model.feed_forward import FeedForward
from pragnosia.model.organs import UnitsConfig
from pragnosia.model.parts import THALAMI, part
from pragnosia.model.thalamus import Routing, Thalamus

if TYPE_CHECKING:
    from pragnosia.model.attention import Moment


class SparseFeedForward(nn.Module, ABC):
    """What experts and columns share, which is all that a token sees of them."""

    def __init__(self, config: PragnosiaConfig, layer: int, organ: UnitsConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.thalamus: Thalamus = part(THALAMI, organ.thalamus.kind)(width, organ.num_units, organ.thalamus)
        self.bank = Bank(
            *(organ.num_units, width, organ.unit_width),
            activation=organ.activation,
            bias=organ.bias,
            num_speaking=organ.num_speaking,
        )
        self.shared: FeedForward | None = None
        if organ.num_shared:
            shared = FeedForwardConfig(
                width=organ.num_shared * organ.unit_width, activation=organ.activation, bias=organ.bias
            )
            self.shared = FeedForward(config, layer, shared)
        self.lobes: dict[str, range] = {}
        first = 0
        assert organ.lobes is not None
        for label, count in organ.lobes.items():
            self.lobes[label] = range(first, first + count)
            first += count

    def forward(self, x: Float[Tensor, "B T D"], moment: Moment) -> tuple[Float[Tensor, "B T D"], Routing]:
        """The woken units' sum plus the shared units', and who woke."""
        tokens = x.flatten(0, 1)
        routing = self.thalamus(tokens, moment.setting.awake)
        y = self.bank(tokens, routing.units, routing.strengths).view_as(x)
        if self.shared is not None:
            y = y + self.shared(x, moment)[0]
        return y, routing

    @contextmanager
    def steered(self, lobe: str, amount: float) -> Iterator[None]:
        """Add `amount` to the router's logits of one lobe; minus infinity silences it."""
        units = self.lobe(lobe)
        if math.isnan(amount) or amount == math.inf:
            raise ConfigError(f"the steering amount is {amount}; it must be finite, or minus infinity to silence")
        steering = self.thalamus.steering
        before = steering.clone()
        steering[units.start : units.stop] += amount
        try:
            if self.shared is None and bool(steering.isneginf().all()):
                raise ConfigError(
                    f"lobe {lobe!r} holds the last units awake; silenced, it would leave nobody to answer"
                )
            yield
        finally:
            steering.copy_(before)

    def lobe(self, label: str) -> range:
        """The units of a lobe. Raises ConfigError that lists the lobes."""
        if label not in self.lobes:
            raise ConfigError(unknown_name("lobe", label, self.lobes))
        return self.lobes[label]
