"""Experts: fine-grained units in labelled lobes over a bank, and shared units that never sleep.

    y = bank(x, thalamus(x)) + shared(x)

Fine grain and shared units: DeepSeekMoE, arXiv 2401.06066. Lobes after MiCRo, arXiv 2506.13331; steering the router
after SteerMoE, arXiv 2509.09660.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor, nn

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.model.bank import Bank
from pragnosia.model.configuration import FeedForwardConfig, PragnosiaConfig
from pragnosia.model.feed_forward import FeedForward
from pragnosia.model.parts import THALAMI, part
from pragnosia.model.thalamus import Routing, Thalamus


class Experts(nn.Module):
    """Feed-forward: the thalamus wakes a few units of the bank for each token."""

    def __init__(self, config: PragnosiaConfig, layer: int) -> None:
        super().__init__()
        organ, width = config.experts, config.hidden_size
        assert organ is not None
        self.thalamus: Thalamus = part(THALAMI, organ.thalamus.kind)(width, organ.num_units, organ.thalamus)
        self.bank = Bank(organ.num_units, width, organ.unit_width, activation=organ.activation, bias=organ.bias)
        self.shared: FeedForward | None = None
        if organ.num_shared:
            shared = FeedForwardConfig(
                width=organ.num_shared * organ.unit_width, activation=organ.activation, bias=organ.bias
            )
            self.shared = FeedForward(config, layer, shared)
        self.lobes: dict[str, range] = {}
        first = 0
        for label, count in organ.lobes.items():
            self.lobes[label] = range(first, first + count)
            first += count

    def forward(self, x: Float[Tensor, "B T D"], energy: float) -> tuple[Float[Tensor, "B T D"], Routing]:
        """The woken units' sum plus the shared units', and who woke."""
        tokens = x.flatten(0, 1)
        routing = self.thalamus(tokens, energy)
        y = self.bank(tokens, routing.units, routing.strengths).view_as(x)
        if self.shared is not None:
            y = y + self.shared(x, energy)[0]
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
