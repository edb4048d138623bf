"""PragnosiaConfig: one frozen sub-configuration per organ, Hugging Face names at the Hugging Face border.

A layer is a mixer (tokens look at each other) and a feed-forward (a token thinks alone); each is chosen by name from
`model.parts`, for all layers at once or layer by layer. An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.model.memory_organs import HippocampusConfig
from pragnosia.model.organs import (
    AttentionConfig,
    ColumnsConfig,
    DendritesConfig,
    ExitsConfig,
    ExpertsConfig,
    FeedForwardConfig,
    GatesConfig,
    Organ,
    ThalamusConfig,
    UnitsConfig,
    require,
    require_positive,
    require_whole,
)
from pragnosia.model.slot_organs import FleetingConfig, WorkingMemoryConfig, WorkspaceConfig
from pragnosia.model.spiking_organs import LIFConfig

__all__ = [
    "AttentionConfig",
    "ColumnsConfig",
    "DendritesConfig",
    "ExitsConfig",
    "ExpertsConfig",
    "FeedForwardConfig",
    "FleetingConfig",
    "GatesConfig",
    "HippocampusConfig",
    "LIFConfig",
    "PragnosiaConfig",
    "ThalamusConfig",
    "UnitsConfig",
    "WorkingMemoryConfig",
    "WorkspaceConfig",
]

LAYER_TYPES = ("full_attention", "sliding_attention")
SPARSE = ("experts", "columns")
"""Feed-forwards over a bank. A model has one of the two, for all its units are of one shape."""
ORGANS: dict[str, type[Organ]] = {
    "columns": ColumnsConfig,
    "attention": AttentionConfig,
    "dendrites": DendritesConfig,
    "feed_forward": FeedForwardConfig,
    "experts": ExpertsConfig,
    "exits": ExitsConfig,
    "gates": GatesConfig,
    "fleeting": FleetingConfig,
    "working_memory": WorkingMemoryConfig,
    "workspace": WorkspaceConfig,
    "hippocampus": HippocampusConfig,
    "lif": LIFConfig,
}

# What transformers itself passes to or keeps in a config besides its fields; anything else is a user's mistake.
BORDER_KEYS = {
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation_internal",
    "_from_model_config",
    "_name_or_path",
    "_output_attentions",
    "_post_init_done",
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "quantization_config",
    "rope_scaling",
    "rope_theta",
    "torch_dtype",
    "transformers_weights",
    *GenerationConfig().to_dict(),
}

# Names of other families' configurations -> ours, where they are not alike.
_ELSEWHERE = {
    "attention_bias": "attention.bias",
    "attention_heads": "attention.num_heads",
    "block_size": "max_position_embeddings",
    "context_length": "max_position_embeddings",
    "d_model": "hidden_size",
    "hidden_act": "feed_forward.activation",
    "hidden_dim": "hidden_size",
    "intermediate_size": "feed_forward.width",
    "max_seq_len": "max_position_embeddings",
    "moe_intermediate_size": "experts.unit_width",
    "n_embd": "hidden_size",
    "n_head": "attention.num_heads",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
    "n_routed_experts": "experts.num_units",
    "n_shared_experts": "experts.num_shared",
    "norm_topk_prob": "experts.thalamus.renormalise",
    "num_attention_heads": "attention.num_heads",
    "num_experts": "experts.num_units",
    "num_experts_per_tok": "experts.thalamus.num_awake",
    "num_layers": "num_hidden_layers",
    "num_local_experts": "experts.num_units",
}


class PragnosiaConfig(PreTrainedConfig):
    """The shape of a cortex. Every field has a default: `PragnosiaConfig()` is a small sparse model."""

    model_type = "pragnosia"
    keys_to_ignore_at_inference = ["past_key_values", "routings"]  # noqa: RUF012  (transformers adds lists to it)

    vocab_size: int = 8192
    hidden_size: int = 256
    num_hidden_layers: int = 4
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    rope_parameters: dict[str, Any] | None = None
    """Rotary positions and their scaling, in transformers' form (rope_type, rope_theta, factor, …)."""
    attention: Any = None
    dendrites: Any = None
    feed_forward: Any = None
    experts: Any = None
    columns: Any = None
    exits: Any = None
    """Layers after which a token may leave, and how that is trained; None: every token is for the whole way."""
    gates: Any = None
    """Layers that a token may pass by, and how many do; None: every token passes every layer."""
    fleeting: Any = None
    """How attention to older tokens fades; None: it does not."""
    working_memory: Any = None
    """Layers with slots that tokens compete for, read by all later segments; None: attention alone looks back."""
    workspace: Any = None
    """Layers whose modules compete for a few slots that all later tokens read; None: there is none."""
    hippocampus: Any = None
    """The table of long-term memory that the layers whose feed-forward is `memory` read."""
    lif: Any = None
    """The neurons of the layers whose feed-forward is `spiking`."""
    mixers: str | list[str] | None = None
    """None is `dendrites` for every layer if they are configured, else `attention`."""
    feed_forwards: str | list[str] | None = None
    """None is `experts` or `columns` for every layer if there are any, else `dense`, else `spiking`."""
    layer_types: list[str] | None = None
    """Per layer `full_attention` or `sliding_attention`; None is full everywhere."""
    tokenizer_digest: str | None = None
    """Of the vocabulary it was saved with (`data.vocabulary`), which loading checks; None: any that fits in size."""

    def __post_init__(self, **kwargs: Any) -> None:
        refuse_unknown(kwargs)
        if self.attention is None:
            self.attention = AttentionConfig()
        if all(organ is None for organ in (self.feed_forward, self.experts, self.columns, self.lif)):
            self.experts = ExpertsConfig()
        for name, organ in ORGANS.items():
            setattr(self, name, organ.read(getattr(self, name)))
        self._check_sizes()
        self._share_out_heads()
        _check_rotation(kwargs.get("rope_scaling") or self.rope_parameters or {})
        mixer = "dendrites" if self.dendrites is not None else "attention"
        self.mixers = self._per_layer("mixers", self.mixers or mixer)
        plain = "spiking" if self.feed_forward is None and self.lif is not None else "dense"
        thinker = next((kind for kind in SPARSE if getattr(self, kind) is not None), plain)
        self.feed_forwards = self._per_layer("feed_forwards", self.feed_forwards or thinker)
        self.layer_types = self._per_layer("layer_types", self.layer_types or "full_attention")
        self._check_layers()
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        try:
            self.validate_rope()
        except KeyError as error:
            raise ConfigError(f"rope_parameters: {error.args[0]}") from error

    def _per_layer(self, name: str, value: str | list[str]) -> list[str]:
        require(isinstance(value, str | list | tuple), f"{name} is {value!r}; give one name, or a list of them")
        values = [value] * self.num_hidden_layers if isinstance(value, str) else list(value)
        require(
            len(values) == self.num_hidden_layers,
            f"{name} names {len(values)} layers, num_hidden_layers is {self.num_hidden_layers}; make them agree",
        )
        return values

    def _check_sizes(self) -> None:
        require_whole(
            "config",
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            max_position_embeddings=self.max_position_embeddings,
        )
        require_positive("config", rms_norm_eps=self.rms_norm_eps, initializer_range=self.initializer_range)

    def _share_out_heads(self) -> None:
        """Heads without a width of their own divide the model's."""
        if self.attention.head_dim is None:
            heads, width = self.attention.num_heads, self.hidden_size
            require(
                width % heads == 0,
                f"attention.num_heads is {heads}, which does not divide hidden_size {width}; "
                "choose a divisor, or give attention.head_dim",
            )
            self.attention = replace(self.attention, head_dim=width // heads)

    def _check_layers(self) -> None:
        assert self.layer_types is not None
        assert self.feed_forwards is not None
        assert self.mixers is not None
        for kind in self.layer_types:
            if kind not in LAYER_TYPES:
                raise ConfigError(unknown_name("layer type", kind, LAYER_TYPES))
        require(
            "sliding_attention" not in self.layer_types or self.attention.sliding_window is not None,
            "layer_types name sliding_attention, attention.sliding_window is not set; give it a number of tokens",
        )
        require("dendrites" not in self.mixers or self.dendrites is not None,
                "mixers name dendrites, dendrites are not configured; give num_dendrites and num_awake")  # fmt: skip
        require("dense" not in self.feed_forwards or self.feed_forward is not None,
                "feed_forwards name a dense layer, feed_forward is not configured; give its width")  # fmt: skip
        require("experts" not in self.feed_forwards or self.experts is not None,
                "feed_forwards name experts, experts are not configured; give num_units and unit_width")  # fmt: skip
        require("columns" not in self.feed_forwards or self.columns is not None,
                "feed_forwards name columns, columns are not configured; give width and column_width")  # fmt: skip
        require("spiking" not in self.feed_forwards or self.lif is not None,
                "feed_forwards name spiking, lif is not configured; give width and num_steps")  # fmt: skip
        require(self.experts is None or self.columns is None,
                "experts and columns are both configured; a model has units of one shape, leave one out")  # fmt: skip
        require(("memory" in self.feed_forwards) == (self.hippocampus is not None),
                "feed_forwards name memory where a hippocampus is configured, and only there; give both or none",
        )  # fmt: skip
        for layer in self.exits.layers if self.exits is not None else ():
            require(
                layer < self.num_hidden_layers,
                f"exits.layers names {layer}, the model has {self.num_hidden_layers} layers; "
                f"exits stand after layer 1 to {self.num_hidden_layers - 1}",
            )
        for name in ("gates", "fleeting", "working_memory", "workspace"):
            for layer in getattr(getattr(self, name), "layers", None) or ():
                require(
                    layer < self.num_hidden_layers,
                    f"{name}.layers names {layer}, the model has {self.num_hidden_layers} layers: "
                    f"0 to {self.num_hidden_layers - 1}",
                )

    def to_dict(self) -> dict[str, Any]:
        """As transformers writes it, with the organs as plain dictionaries."""
        values: dict[str, Any] = super().to_dict()
        for name in ORGANS:
            organ = getattr(self, name)
            values[name] = organ.write() if isinstance(organ, Organ) else organ
        return values

    @property
    def units(self) -> UnitsConfig | None:
        """The experts or the columns, where there are any."""
        units: UnitsConfig | None = self.experts if self.columns is None else self.columns
        return units

    @property
    def sparse_layers(self) -> list[int]:
        """Numbers of the layers whose feed-forward is a bank."""
        return [layer for layer, kind in enumerate(self.feed_forwards or ()) if kind in SPARSE]

    # transformers asks for these names when it builds caches, masks and rotary frequencies.
    @property
    def num_attention_heads(self) -> int:
        """Query heads."""
        return int(self.attention.num_heads)

    @property
    def num_key_value_heads(self) -> int:
        """Key-value heads."""
        return int(self.attention.num_key_value_heads)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return int(self.attention.head_dim)

    @property
    def sliding_window(self) -> int | None:
        """Reach of the sliding layers, None where there are none."""
        return self.attention.sliding_window if "sliding_attention" in (self.layer_types or ()) else None


def refuse_unknown(keys: Iterable[str], besides: Collection[str] = ()) -> None:
    """Raise ConfigError for a key that is neither a field, nor transformers' own, nor one of `besides`."""
    accepted = {entry.name for entry in fields(PragnosiaConfig)} | BORDER_KEYS | {*besides}
    for key in keys:
        if key not in accepted:
            ours = [*inspect.get_annotations(PragnosiaConfig), *besides]
            raise ConfigError(unknown_name("configuration key", str(key), ours, _inner_names() | _ELSEWHERE))


def _inner_names() -> dict[str, str]:
    """What stands in an organ, by its last name: num_heads -> attention.num_heads."""
    organs: dict[str, type[Organ]] = {**ORGANS, "experts.thalamus": ThalamusConfig}
    return {entry.name: f"{path}.{entry.name}" for path, organ in organs.items() for entry in fields(organ)}


def _check_rotation(rope: Any) -> None:
    require(isinstance(rope, Mapping), f"rope_parameters are {rope!r}; they must be a mapping")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" and kind not in ROPE_INIT_FUNCTIONS:
        raise ConfigError(unknown_name("rope_type", str(kind), ["default", *ROPE_INIT_FUNCTIONS]))
    share = rope.get("partial_rotary_factor", 1.0)
    require(share == 1.0, f"rope_parameters.partial_rotary_factor is {share}; heads turn whole here, leave it out")
