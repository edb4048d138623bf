"""Experts: fine-grained units in labelled lobes over a bank, and shared units that never sleep.

Fine grain and shared units: DeepSeekMoE, arXiv 2401.06066.
"""

from __future__ import annotations

from typing import final

from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.sparse import SparseFeedForward


@final
class Experts(SparseFeedForward):
    """Feed-forward: a few units of some hundred neurons wake for each token."""

    def __init__(self, config: PragnosiaConfig, layer: int) -> None:
        assert config.experts is not None
        super().__init__(config, layer, config.experts)
