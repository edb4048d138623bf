"""How often a woken unit is here already, by the share of all units that have a slot.

Three curves of benchmarks/budget/locality.py, each through (0, 0) and (1, 1):

    LOW       a mixture that learned, with its load balanced, reading held-out text: it turns to ever other units
    CENTRAL   the 8 GB mixture of random weights reading random tokens: what benchmarks/budget/forecast.py speaks with
    HIGH      the same one reading text: tokens that come again wake the same units

Where between them a model lies depends on how evenly its router was taught to spread its load.
"""

from __future__ import annotations

from itertools import pairwise

Curve = tuple[tuple[float, float], ...]
"""(share, hits), both rising from (0, 0) to (1, 1)."""

LOW: Curve = (
    *((0.0, 0.0), (0.09, 0.19), (0.12, 0.24), (0.14, 0.28), (0.26, 0.47)),
    *((0.35, 0.58), (0.52, 0.75), (1.0, 1.0)),
)
CENTRAL: Curve = (
    *((0.0, 0.0), (0.09, 0.46), (0.12, 0.54), (0.14, 0.58), (0.26, 0.72)),
    *((0.34, 0.82), (0.42, 0.89), (0.55, 0.95), (1.0, 1.0)),
)
HIGH: Curve = (
    *((0.0, 0.0), (0.09, 0.67), (0.12, 0.74), (0.14, 0.78), (0.26, 0.91)),
    *((0.35, 0.95), (0.52, 0.99), (1.0, 1.0)),
)


def hits(share: float, curve: Curve = CENTRAL) -> float:
    """Of woken units, those that are here, where a `share` of all units has a slot."""
    for (low, below), (high, above) in pairwise(curve):
        if share <= high:
            return below + (above - below) * (share - low) / (high - low)
    return 1.0
