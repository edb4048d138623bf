"""How often a woken unit is here already, by the share of all units that have a slot.

Three curves of benchmarks/budget/locality.py, each through (0, 0) and (1, 1):

    LOW       a mixture that learned, with its load balanced, reading held-out text: it turns to ever other units
    CENTRAL   the 8 GB mixture of random weights reading random tokens: what benchmarks/budget/forecast.py speaks with
    HIGH      the same one reading text: tokens that come again wake the same units

Where between them a model lies depends on how evenly its router was taught to spread its load. A row of long-term
memory is expected here as a unit is.
"""

from __future__ import annotations

from itertools import pairwise

Curve = tuple[tuple[float, float], ...]
"""(share, hits), both rising from (0, 0) to (1, 1)."""

LOW: Curve = (
    *((0.0, 0.0), (0.03, 0.06), (0.06, 0.13), (0.09, 0.19), (0.12, 0.24), (0.14, 0.28), (0.2, 0.38)),
    *((0.26, 0.47), (0.35, 0.58), (0.43, 0.665), (0.52, 0.75), (0.7, 0.878), (1.0, 1.0)),
)
CENTRAL: Curve = (
    *((0.0, 0.0), (0.03, 0.235), (0.06, 0.382), (0.09, 0.469), (0.12, 0.538), (0.14, 0.575), (0.2, 0.659)),
    *((0.26, 0.731), (0.35, 0.819), (0.43, 0.882), (0.52, 0.939), (0.7, 0.991), (1.0, 1.0)),
)
HIGH: Curve = (
    *((0.0, 0.0), (0.03, 0.249), (0.06, 0.399), (0.09, 0.497), (0.12, 0.575), (0.14, 0.618), (0.2, 0.722)),
    *((0.26, 0.796), (0.35, 0.874), (0.43, 0.924), (0.52, 0.962), (0.7, 0.993), (1.0, 1.0)),
)


def hits(share: float, curve: Curve = CENTRAL) -> float:
    """Of woken units, those that are here, where a `share` of all units has a slot."""
    for (low, below), (high, above) in pairwise(curve):
        if share <= high:
            return below + (above - below) * (share - low) / (high - low)
    return 1.0
