"""Deeper: new layers that say nothing yet, among those that are there.

    x + mixer(norm(x)) + feed_forward(norm(x)) = x        where what writes to the stream is zero

A newborn layer is a copy of the one before it, but for what writes to the stream: so its first step already has
slopes, for what it would say is all there. Block expansion: LLaMA Pro, Wu et al. 2024, arXiv 2401.02415. With `stack`
the copy is whole, and the function changes at once: depth-wise stacking, Du et al. 2024, arXiv 2405.15319.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pragnosia.errors import ConfigError
from pragnosia.model.bank import Bank
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import Cortex, PlainCortex
from pragnosia.plasticity.origin import Change, Origin
from pragnosia.plasticity.transplant import changed, check_whole, transplant

_OWN = ("gate.", "working_memory.", "workspace.")
"""What a layer has by name, which its copy has not."""


def deepen(
    model: Cortex, count: int, *, after: Sequence[int] | None = None, stack: bool = False, seed: int = 0
) -> Change:
    """`count` layers more, each behind the layer that `after` names (from 0); None spreads them out.

    The function stays, unless they `stack`. Raises ConfigError.
    """
    check_whole(model)
    config = model.config
    places = _places(config, count, after)
    shape = deepened(config, count, places)
    sources, born = _order(config.num_hidden_layers, places)
    made = PlainCortex.unfilled(shape)
    writers = set(stream_writers(made))
    origins = {}
    for name, _ in (*made.named_parameters(), *made.named_buffers()):
        prefix, _, rest = name.partition("model.layers.")
        if prefix or not rest:
            continue
        number, _, part = rest.partition(".")
        layer = int(number)
        if born[layer] and part.startswith(_OWN):
            origins[name] = Origin(None)
            continue
        quiet = born[layer] and not stack and name in writers
        origins[name] = Origin(
            f"model.layers.{sources[layer]}.{part}", newborn=born[layer], amend=_silence if quiet else None
        )
    return transplant(model, shape, origins, what="stack" if stack else "deepen", seed=seed)


def deepened(config: PragnosiaConfig, count: int, after: Sequence[int] | None = None) -> PragnosiaConfig:
    """The configuration with `count` layers more. Raises ConfigError."""
    sources, born = _order(config.num_hidden_layers, _places(config, count, after))
    now = {source: layer for layer, source in enumerate(sources) if not born[layer]}
    changes: dict[str, Any] = {"num_hidden_layers": len(sources)}
    for name in ("mixers", "feed_forwards", "layer_types"):
        kinds: Any = getattr(config, name)
        changes[name] = [kinds[source] for source in sources]
    for name in ("gates", "working_memory", "workspace"):
        organ: Any = getattr(config, name)
        if organ is not None:
            changes[name] = replace(organ, layers=[now[layer] for layer in organ.layers]).write()
    if config.fleeting is not None and config.fleeting.layers is not None:
        fading = [layer for layer, source in enumerate(sources) if source in config.fleeting.layers]
        changes["fleeting"] = replace(config.fleeting, layers=fading).write()
    if config.exits is not None:  # so many layers stand before an exit
        changes["exits"] = replace(config.exits, layers=[now[layer - 1] + 1 for layer in config.exits.layers]).write()
    return changed(config, **changes)


def _order(layers: int, after: Sequence[int]) -> tuple[list[int], list[bool]]:
    """For each layer now, the one that it was or copies, and whether it is a copy."""
    sources, born = [], []
    for layer in range(layers):
        copies = list(after).count(layer)
        sources += [layer] * (1 + copies)
        born += [False] + [True] * copies
    return sources, born


def _places(config: PragnosiaConfig, count: int, after: Sequence[int] | None) -> list[int]:
    """The layers that newborn ones stand behind. Raises ConfigError."""
    if count < 1:
        raise ConfigError(f"cannot add {count} layers; give at least 1")
    kinds: Any = config.feed_forwards
    able = [layer for layer, kind in enumerate(kinds) if kind != "memory"]
    if not able:
        raise ConfigError("every layer recalls from the one long-term memory, so none could be copied and be silent")
    if after is None:
        return [able[-(-(number + 1) * len(able) // count) - 1] for number in range(count)]
    places = sorted(after)
    if len(places) != count:
        raise ConfigError(f"{count} layers are to be added, and after names {len(places)}; make them agree")
    for place in places:
        if not 0 <= place < config.num_hidden_layers:
            raise ConfigError(f"there is no layer {place}; the model has layers 0 to {config.num_hidden_layers - 1}")
        if place not in able:
            raise ConfigError(
                f"layer {place} recalls from the one long-term memory; a copy of it would not be silent: "
                f"put the layer behind one of {able}"
            )
    return places


def stream_writers(model: nn.Module) -> list[str]:
    """Names of the tensors through which layers write to the stream; zero, they say nothing."""
    names = []
    for prefix, module in model.named_modules():
        if isinstance(module, Bank):
            own = ["down", "down_bias"]
        elif getattr(module, "writes_to_stream", False):
            own = [name for name, _ in module.named_parameters(recurse=False)]
        else:
            continue
        names += [f"{prefix}.{name}" for name in own if getattr(module, name) is not None]
    return names


def _silence(now: Tensor, generator: torch.Generator) -> None:
    now.zero_()
