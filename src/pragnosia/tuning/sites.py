"""Sites: the matrices of a model that an adapter can stand on, and what its two factors are called.

    linear layer P    P.weight (out, in)     P.lora_a (r, in)      P.lora_b (out, r)
    bank P            P.up     (U, R, D)     P.up_a   (U, r, D)    P.up_b   (U, R, r)
                      P.down   (U, D, F)     P.down_a (U, r, F)    P.down_b (U, D, r)

The adapted matrix is W + scale b a, for a bank in every unit. R rows of up are F, or 2F with the gate's rows first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pragnosia.checkpoints.matching import parameter_shapes
from pragnosia.checkpoints.source import Shape
from pragnosia.model.configuration import PragnosiaConfig

_KINDS = (
    ("attention", re.compile(r".*\.mixer\.[qkvo]_proj\.weight")),
    ("units", re.compile(r".*\.bank\.(up|down)")),
    ("dense", re.compile(r".*\.feed_forward\.(shared\.)?(up|down)\.weight")),
)


@dataclass(frozen=True)
class Site:
    """One matrix, or one per unit."""

    tensor: str
    """Name of the weights."""
    shape: Shape
    target: str
    """Which of the targets it belongs to."""

    @property
    def a(self) -> str:
        """Name of the factor that meets the input."""
        return f"{self._stem}a"

    @property
    def b(self) -> str:
        """Name of the factor that makes the output."""
        return f"{self._stem}b"

    @property
    def num_units(self) -> int | None:
        """U of a bank's, None of a linear layer."""
        return self.shape[0] if len(self.shape) == 3 else None

    @property
    def _stem(self) -> str:
        return f"{self.tensor}_" if len(self.shape) == 3 else f"{self.tensor.removesuffix('weight')}lora_"

    def factor_shapes(self, rank: int) -> tuple[Shape, Shape]:
        """Of a and b at that rank."""
        *units, rows, columns = self.shape
        return (*units, rank, columns), (*units, rows, rank)


def sites(config: PragnosiaConfig) -> dict[str, Site]:
    """Every site of a model by the name of its weights, in the order of its layers; a bank's up before its down."""
    found = {}
    for name, shape in parameter_shapes(config).items():
        for target, pattern in _KINDS:
            if pattern.fullmatch(name):
                found[name] = Site(name, shape, target)
    return found
