"""Presets: shapes by name, from a laptop's afternoon to a cluster's month.

    nano .. 450b       a few fine-grained experts beside one shared unit, sigmoid scores and loss-free balance, as
                       DeepSeek-V3 has them (arXiv 2412.19437); the name is the total, not the active size
    braingpt-*         layers, width and heads of Brain-Inspired GPT; the feed-forwards are cortical columns, 95 % of
                       them asleep (model/columns.py)
    brain-lm           about 16 M, for learning from little: dense layers and layers of long-term memory, working
                       memory and a workspace that can be read out; `brain-lm-spiking` has leaky integrate-and-fire
                       neurons where it has dense layers

Lobes are equal quarters. `pragnosia inspect NAME` says what each costs.
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


def _brain(*, vocab: int, layers: int, heads: int, column: int, context: int) -> dict[str, Any]:
    """Heads of 64, four of which share keys and values; eight hidden neurons to one of the stream, as measured."""
    width = 64 * heads
    num_columns = 8 * width // column
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
        "attention": {
            "num_heads": heads,
            "num_key_value_heads": heads // 4,
            "head_dim": 64,
            "qk_norm": "head",
        },
        "columns": {  # what is not said of their router, ColumnsConfig knows
            "width": 8 * width,
            "column_width": column,
            "lobes": dict.fromkeys(LOBES, num_columns // len(LOBES)),
            "thalamus": {"num_awake": num_columns // 20},
        },
    }


def remembering(*, vocab: int, width: int, layers: int, context: int, spiking: bool = False) -> dict[str, Any]:
    """Long-term memory in the place of the feed-forwards in the middle and above, slots beside the layers between.

    The other feed-forwards are dense, or `spiking`.
    """
    heads = max(1, width // 64)
    middle, above = layers // 3, 2 * layers // 3
    plain = "spiking" if spiking else "dense"
    thinkers = ["memory" if layers > 2 and at in (middle, above) else plain for at in range(layers)]
    shape: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
        "attention": {
            "num_heads": heads,
            "num_key_value_heads": heads if heads % 2 else heads // 2,
            "head_dim": width // heads,
            "qk_norm": "head",
        },
        **({"lif": {"width": 4 * width}} if spiking else {"feed_forward": {"width": 4 * width, "activation": "relu2"}}),
        "feed_forwards": thinkers,
        "working_memory": {"layers": [middle], "num_slots": 64, "segment": 64},
        "workspace": {"layers": [min(middle + 1, layers - 1)], "num_slots": 8, "segment": 64},
    }
    if "memory" in thinkers:
        shape["hippocampus"] = {"num_rows": 112 * 112, "num_heads": 4, "num_awake": 16}
    return shape


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
    # Wider columns in larger models: there are 256 to 512 of them everywhere, and what the router reads stays small.
    "braingpt-small": _brain(vocab=16384, layers=6, heads=8, column=16, context=1024),
    "braingpt-medium": _brain(vocab=32768, layers=12, heads=16, column=16, context=2048),
    "braingpt-large": _brain(vocab=32768, layers=24, heads=24, column=32, context=2048),
    "braingpt-xlarge": _brain(vocab=65536, layers=48, heads=32, column=64, context=4096),
    "brain-lm": remembering(vocab=8192, width=384, layers=6, context=1024),
    "brain-lm-spiking": remembering(vocab=8192, width=384, layers=6, context=1024, spiking=True),
}


def preset(name: str, **changes: Any) -> PragnosiaConfig:
    """The configuration of a preset, with top-level fields changed. Raises ConfigError that lists the presets."""
    if name not in PRESETS:
        raise ConfigError(unknown_name("preset", name, PRESETS))
    return PragnosiaConfig(**(PRESETS[name] | changes))
