"""Names of the project's ancestors, over what stands behind them today."""

from __future__ import annotations
