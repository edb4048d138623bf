"""Columns: hidden neurons stand in cortical columns of equal size, and the columns compete for each token.

    y = sum over awake columns c of s_c down_c act(up_c x)      s_c = scale * sigmoid(gate_c . x)

The A columns with the largest gate plus balance wake (lateral inhibition between columns); the others cost nothing,
neither work nor memory traffic. Inside a column at most `num_speaking` neurons speak, those that answer loudest
(inhibition between neurons: the k-winner rule, as in arXiv 1903.11257); no slope reaches the silent ones, so that what
is trained is what runs. Columns are a bank at fine grain: everything that serves experts serves them.
"""

from __future__ import annotations

from typing import final

from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.sparse import SparseFeedForward


@final
class Columns(SparseFeedForward):
    """Feed-forward: many units of a few neurons each, one in twenty awake."""

    def __init__(self, config: PragnosiaConfig, layer: int) -> None:
        assert config.columns is not None
        super().__init__(config, layer, config.columns)
