"""The cortex: needs torch and transformers, nothing of the house above it."""

from __future__ import annotations

# transformers' Auto classes load first, and learn of our models as they do (pragnosia._auto). Were they loaded from
# within modeling.py instead, registration would find it half made.
import transformers.models.auto.modeling_auto as _  # noqa: F401
