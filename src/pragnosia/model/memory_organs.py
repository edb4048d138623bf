"""Sub-configurations of the organs that remember."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from pragnosia.model.organs import Organ, require, require_whole


@dataclass(frozen=True, kw_only=True)
class HippocampusConfig(Organ):
    """Long-term memory: one table of rows for all layers whose feed-forward is `memory`, each with keys of its own."""

    num_rows: int = 1 << 16
    """Of the table; a square, for a row is found by two keys of side sqrt(num_rows)."""
    num_heads: int = 4
    """Queries of a token in each layer."""
    num_awake: int = 16
    """Rows that each head recalls."""
    key_width: int = 64
    """Of a query: half of it meets the first keys, half the second."""

    def __post_init__(self) -> None:
        sizes = {"num_rows": self.num_rows, "num_heads": self.num_heads, "num_awake": self.num_awake}
        require_whole("hippocampus", **sizes, key_width=self.key_width)
        near = max(1, isqrt(self.num_rows))
        require(
            near * near == self.num_rows,
            f"hippocampus.num_rows is {self.num_rows}; a row is found by two keys, so it must be a square: "
            f"{near * near} or {(near + 1) ** 2}",
        )
        require(
            self.num_awake <= near,
            f"hippocampus.num_awake is {self.num_awake}; of {self.num_rows} rows a head recalls at most {near}",
        )
        require(self.key_width % 2 == 0, f"hippocampus.key_width is {self.key_width}; it must be even")

    @property
    def side(self) -> int:
        """Keys of a half."""
        return isqrt(self.num_rows)
