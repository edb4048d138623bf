"""Presets: shapes by name, from a laptop's afternoon to a cluster's month. The name is the total, not the active size.

All wake a few fine-grained units (sigmoid scores, loss-free balance) beside one shared unit, as DeepSeek-V3 does
(arXiv 2412.19437); lobes are equal quarters. `pragnosia inspect NAME` prints what each costs.
"""

from __future__ import annotations

from typing import Any

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.model.configuration import PragnosiaConfig

LOBES = ("language", "reasoning", "memory", "planning")


def _shape(
    *,
    vocab: int,
    width: int,
    layers: int,
    heads: tuple[int, int, int],
    units: tuple[int, int, int],
    context: int,
    tied: bool = True,
) -> dict[str, Any]:
    """`heads` is (query, key-value, width of one); `units` is (how many, awake, width of one)."""
    num_heads, num_key_value_heads, head_dim = heads
    num_units, num_awake, unit_width = units
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        "attention": {
            "num_heads": num_heads,
            "num_key_value_heads": num_key_value_heads,
            "head_dim": head_dim,
            "qk_norm": "head",
        },
        "experts": {
            "num_units": num_units,
            "unit_width": unit_width,
            "num_shared": 1,
            "lobes": dict.fromkeys(LOBES, num_units // len(LOBES)),
            "thalamus": {
                "kind": "sigmoid",
                "num_awake": num_awake,
                "balance_rate": 1e-3,
                # An awake unit then speaks about as loudly as the shared one; at 1 the units learn too slowly.
                "scale": float(num_awake),
            },
        },
    }


PRESETS: dict[str, dict[str, Any]] = {
    "nano": _shape(vocab=4096, width=256, layers=4, heads=(4, 2, 64), units=(16, 2, 128), context=512),
    "small": _shape(vocab=16384, width=512, layers=8, heads=(8, 4, 64), units=(32, 3, 256), context=1024),
    "1b": _shape(vocab=32768, width=1024, layers=16, heads=(16, 4, 64), units=(64, 6, 320), context=4096),
    "7b": _shape(vocab=65536, width=2048, layers=24, heads=(16, 4, 128), units=(64, 6, 704), context=8192),
    "60b": _shape(
        vocab=131072,
        width=4096,
        layers=36,
        heads=(32, 8, 128),
        units=(128, 6, 1024),
        context=32768,
        tied=False,
    ),
    "450b": _shape(
        vocab=131072,
        width=6144,
        layers=61,
        heads=(48, 8, 128),
        units=(256, 8, 1536),
        context=32768,
        tied=False,
    ),
}


def preset(name: str, **changes: Any) -> PragnosiaConfig:
    """The configuration of a preset, with top-level fields changed. Raises ConfigError that lists the presets."""
    if name not in PRESETS:
        raise ConfigError(unknown_name("preset", name, PRESETS))
    return PragnosiaConfig(**(PRESETS[name] | changes))
