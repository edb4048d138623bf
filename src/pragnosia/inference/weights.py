"""How much each feature of a place weighs, in the order of lessons.FEATURES: what benchmarks/memory/weights.py found."""

from __future__ import annotations

import numpy as np

WEIGHTS = np.array([0.82, 2.59, 0.0, -1.36, 0.85, 4.62, 4.02, 0.75, 1.2])
BIAS = 8.36
"""Against nothing coming to mind."""
