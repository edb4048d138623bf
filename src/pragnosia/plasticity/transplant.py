"""Transplant: a model takes another shape, in place. Every tensor says where it came from; the rest is drawn.

The model stays the object it was, and everything in it is new: the organs are those that its new configuration makes,
so what is saved is what would be loaded. Nothing is drawn that is not wanted, and the same seed draws the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pragnosia.errors import ConfigError
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import Cortex, PlainCortex, initialise
from pragnosia.plasticity.origin import Change, Origin


def changed(config: PragnosiaConfig, **changes: Any) -> PragnosiaConfig:
    """Another configuration with some fields changed. Raises ConfigError for what cannot be."""
    values = config.to_dict() | changes
    made: PragnosiaConfig = PragnosiaConfig.from_dict(values)
    return made


def shapes(config: PragnosiaConfig) -> dict[str, Tensor]:
    """Every parameter and buffer that a model of this configuration has, by name, without storage."""
    return dict(tensors(PlainCortex.unfilled(config)))


def tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Parameters and buffers; a table that serves at both ends once."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def check_whole(model: Cortex) -> None:
    """Raise ConfigError unless the model is what its configuration says: its own weights, no more and no others."""
    held = {name: tensor.shape for name, tensor in tensors(model)}
    said = {name: tensor.shape for name, tensor in shapes(model.config).items()}
    if held != said:
        odd = min(name for name in held.keys() | said.keys() if held.get(name) != said.get(name))
        raise ConfigError(
            f"the model's structure cannot change: {odd} is not as its configuration says, for it is packed, "
            "sparsified or wears adapters; take the model it was made from, or merge the adapters first"
        )


@torch.no_grad()
def transplant(
    model: Cortex, config: PragnosiaConfig, origins: Mapping[str, Origin], *, what: str, seed: int = 0
) -> Change:
    """Give `model` the shape of `config`; a tensor that `origins` does not name is the one of its name before.

    All gradients are gone afterwards, and so is every inner module: keep no reference to one.
    """
    before, held = model.config, dict(tensors(model))
    total = sum(weight.numel() for weight in model.parameters())
    made = _unfilled(type(model), config)
    whole = {name: origins.get(name, Origin(name)) for name, _ in tensors(made) if name in origins or name in held}
    devices = list({tensor.device.index or 0 for tensor in held.values() if tensor.is_cuda})
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for prefix, module in made.named_modules():
            _fill(module, prefix, config, held, whole, model, seed)
    made.tie_weights()
    _take_place(model, made)
    now = {name: origin for name, origin in whole.items() if origin.name is None or origin.name in held}
    after = sum(weight.numel() for weight in model.parameters())
    return Change(what, before.to_dict(), config.to_dict(), total, after, now, seed)


def _unfilled(kind: type[Cortex], config: PragnosiaConfig) -> Any:
    if issubclass(kind, PlainCortex):
        return PlainCortex.unfilled(config)
    with torch.device("meta"):
        made: Any = kind(config)
    made.tie_weights()
    return made


def _fill(
    module: nn.Module,
    prefix: str,
    config: PragnosiaConfig,
    held: Mapping[str, Tensor],
    origins: Mapping[str, Origin],
    model: Cortex,
    seed: int,
) -> None:
    """Put storage behind a module's own tensors: what they came from, or what they are drawn as."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    tied = config.tie_word_embeddings and prefix == "lm_head"  # tied again at the end
    own = [(name, tensor) for name, tensor in own if tensor.is_meta and not tied]
    if not own:
        return
    names = {name: f"{prefix}.{name}" if prefix else name for name, _ in own}
    drawn: dict[str, Tensor] = {}
    if any(full not in origins or origins[full].draws for full in names.values()):
        module.to_empty(device="cpu", recurse=False)
        initialise(module, config)
        drawn = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    for name, meta in own:
        full = names[name]
        origin = origins.get(full, Origin(None))
        before = None if origin.name is None else held[origin.name]
        fresh = drawn.get(name)
        if before is None:
            assert fresh is not None
            kind = model.dtype if isinstance(meta, nn.Parameter) else fresh.dtype
            fresh = fresh.to(model.device, kind)
        now = origin.weights(before, fresh, full, seed)
        assert now.shape == meta.shape, f"{full}: {tuple(now.shape)} grown, {tuple(meta.shape)} configured"
        if isinstance(meta, nn.Parameter):
            learns = True if before is None else before.requires_grad
            setattr(module, name, nn.Parameter(now, requires_grad=learns))
        else:
            module._buffers[name] = now


def _take_place(model: Any, made: Any) -> None:
    """What is inside `made` stands inside `model` from now on, and behaves as what stood there did."""
    made.train(model.training)
    old, new = model.model, made.model
    for key in ("gradient_checkpointing", "_gradient_checkpointing_func"):
        if key in old.__dict__:
            setattr(new, key, old.__dict__[key])
        for layer in new.layers:
            if len(old.layers) and key in old.layers[0].__dict__:
                setattr(layer, key, old.layers[0].__dict__[key])
    model.model, model.lm_head, model.config = made.model, made.lm_head, made.config
