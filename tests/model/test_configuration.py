"""Configurations: every misfit is told in one line, and what is written is read back the same."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pragnosia.errors import ConfigError
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.organs import AttentionConfig, ExpertsConfig, FeedForwardConfig, ThalamusConfig

MakeConfig = Callable[..., PragnosiaConfig]

MISFITS: list[tuple[dict[str, Any], str]] = [
    # sizes
    ({"hidden_size": 0}, "config.hidden_size is 0; it must be greater than 0"),
    ({"hidden_size": -8}, "config.hidden_size is -8"),
    ({"hidden_size": "wide"}, "config.hidden_size is 'wide'; it must be a number"),
    ({"hidden_size": None}, "config.hidden_size is None; it must be a number"),
    ({"hidden_size": 2.5}, "config.hidden_size is 2.5; it must be a whole number"),
    ({"vocab_size": True}, "config.vocab_size is True"),
    ({"num_hidden_layers": 0}, "config.num_hidden_layers is 0"),
    ({"max_position_embeddings": 0}, "config.max_position_embeddings is 0"),
    ({"rms_norm_eps": -1e-6}, "config.rms_norm_eps is -1e-06"),
    ({"initializer_range": float("nan")}, "config.initializer_range is nan"),
    # attention
    ({"attention": {"num_heads": 4, "num_key_value_heads": 3}}, "num_heads is 4, not a multiple .* 3"),
    ({"attention": {"num_heads": 2, "num_key_value_heads": 4}}, "num_heads is 2, not a multiple .* 4"),
    ({"attention": {"num_key_value_heads": 0}}, "attention.num_key_value_heads is 0"),
    ({"attention": {"head_dim": 7}}, "attention.head_dim is 7; rotary positions need an even width"),
    ({"attention": {"sliding_window": 0}}, "attention.sliding_window is 0"),
    ({"attention": {"clip_qkv": -1.0}}, "attention.clip_qkv is -1.0"),
    ({"attention": {"qk_norm": "heads"}}, "Did you mean 'head'"),
    ({"attention": 3}, "AttentionConfig must be a mapping, got 3"),
    # units
    ({"experts": {"thalamus": {"num_awake": 9}}}, "thalamus.num_awake is 9, more than the 8 units there are"),
    ({"experts": {"thalamus": {"num_awake": 0}}}, "thalamus.num_awake is 0"),
    ({"experts": {"thalamus": {"num_awake": 1.5}}}, "thalamus.num_awake is 1.5; it must be a whole number"),
    ({"experts": {"thalamus": {"max_awake": 1}}}, "thalamus.max_awake is 1, below num_awake 2"),
    ({"experts": {"thalamus": {"balance_rate": -0.1}}}, "thalamus.balance_rate is -0.1"),
    ({"experts": {"thalamus": {"scale": 0}}}, "thalamus.scale is 0"),
    ({"experts": {"thalamus": None}}, "experts.thalamus is null"),
    ({"experts": {"lobes": {"language": 3, "reasoning": 4}}}, "experts.lobes hold 7 units, num_units is 8"),
    ({"experts": {"lobes": {"language": 8, "reasoning": 0}}}, r"experts.lobes\['reasoning'\]"),
    ({"experts": {"unit_width": -1}}, "experts.unit_width is -1"),
    ({"experts": {"num_shared": -1}}, "experts.num_shared is -1"),
    ({"experts": {"activation": "swigloo"}}, "unknown experts.activation 'swigloo'. Did you mean 'swiglu'"),
    ({"feed_forward": {"width": 0}}, "feed_forward.width is 0"),
    ({"feed_forward": {"width": 8, "activation": "relu"}}, "unknown feed_forward.activation 'relu'"),
    # layers
    ({"layer_types": ["full_attention"]}, "layer_types names 1 layers, num_hidden_layers is 2"),
    ({"layer_types": "sliding_atention"}, "unknown layer type 'sliding_atention'. Did you mean 'sliding_attention'"),
    ({"layer_types": "sliding_attention"}, "attention.sliding_window is not set"),
    ({"layer_types": 2}, "layer_types is 2; give one name, or a list of them"),
    ({"mixers": ["attention"] * 3}, "mixers names 3 layers, num_hidden_layers is 2"),
    ({"feed_forwards": "dense"}, "feed_forward is not configured"),
    ({"feed_forwards": "experts", "experts": None, "feed_forward": {"width": 8}}, "experts are not configured"),
    # rotation
    ({"rope_parameters": {"rope_type": "linar", "factor": 2.0}}, "unknown rope_type 'linar'. Did you mean 'linear'"),
    ({"rope_scaling": {"type": "linar", "factor": 2.0}}, "unknown rope_type 'linar'. Did you mean 'linear'"),
    ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ({"rope_parameters": 10000.0}, "rope_parameters are 10000.0; they must be a mapping"),
    # keys nobody knows
    ({"hiden_size": 8}, "unknown configuration key 'hiden_size'. Did you mean 'hidden_size'"),
    ({"num_attention_heads": 8}, "unknown configuration key 'num_attention_heads'. Did you mean 'attention.num_heads'"),
    ({"num_key_value_heads": 8}, "Did you mean 'attention.num_key_value_heads'"),
    ({"intermediate_size": 8}, "Did you mean 'feed_forward.width'"),
    ({"num_experts_per_tok": 2}, "Did you mean 'experts.thalamus.num_awake'"),
    ({"n_layers": 2}, "Did you mean 'num_hidden_layers'"),
    ({"attention": {"num_head": 8}}, "unknown key in AttentionConfig 'num_head'. Did you mean 'num_heads'"),
    ({"feed_forward": {"with": 8}}, "unknown key in FeedForwardConfig 'with'. Did you mean 'width'"),
    ({"experts": {"num_unit": 8}}, "unknown key in ExpertsConfig 'num_unit'. Did you mean 'num_units'"),
    ({"experts": {"thalamus": {"awake": 8}}}, "unknown key in ThalamusConfig 'awake'. Did you mean 'num_awake'"),
]


@pytest.mark.parametrize(("changes", "message"), MISFITS, ids=[str(changes) for changes, _ in MISFITS])
def test_misfits(changes: dict[str, Any], message: str, tiny_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        tiny_config(**changes)
    assert "\n" not in str(caught.value)


def test_the_known_keys_are_our_own(tiny_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="Available: attention, bos_token_id") as caught:
        tiny_config(nonsense=1)
    assert not any(
        theirs in str(caught.value) for theirs in ("id2label", "architectures", "chunk_size", "problem_type")
    )


def test_the_default_is_a_small_sparse_model() -> None:
    config = PragnosiaConfig()
    assert config.feed_forwards == ["experts"] * config.num_hidden_layers
    assert config.layer_types == ["full_attention"] * config.num_hidden_layers
    assert config.sliding_window is None


def test_without_experts_every_layer_is_dense(tiny_config: MakeConfig) -> None:
    config = tiny_config(experts=None, feed_forward={"width": 8})
    assert config.experts is None
    assert config.feed_forwards == ["dense", "dense"]


def test_lobes_default_to_one(tiny_config: MakeConfig) -> None:
    assert tiny_config(experts={"lobes": None}).experts.lobes == {"cortex": 8}


def test_organs_are_frozen(tiny_config: MakeConfig) -> None:
    config = tiny_config()
    with pytest.raises(AttributeError):
        config.attention.num_heads = 3
    with pytest.raises(AttributeError):
        config.experts.thalamus.num_awake = 3


def test_the_old_names_of_rotation_are_heard(tiny_config: MakeConfig) -> None:
    assert tiny_config(rope_theta=5e5).rope_parameters == {"rope_theta": 5e5, "rope_type": "default"}
    scaled = tiny_config(rope_scaling={"type": "linear", "factor": 4.0}).rope_parameters
    assert scaled is not None
    assert (scaled["rope_type"], scaled["factor"]) == ("linear", 4.0)


attentions = st.builds(
    lambda groups, heads, half, **rest: AttentionConfig(
        num_heads=groups * heads, num_key_value_heads=heads, head_dim=2 * half, **rest
    ),
    groups=st.integers(1, 4),
    heads=st.integers(1, 4),
    half=st.integers(1, 64),
    bias=st.booleans(),
    output_bias=st.booleans(),
    sinks=st.booleans(),
    qk_norm=st.sampled_from([None, "head", "full"]),
    clip_qkv=st.none() | st.floats(0.1, 100),
    sliding_window=st.just(4096),
)
thalami = st.builds(
    ThalamusConfig,
    kind=st.sampled_from(["softmax", "sigmoid", "threshold", "my_module:MyThalamus"]),
    num_awake=st.integers(1, 4),
    renormalise=st.booleans(),
    scale=st.floats(0.1, 4),
    balance_rate=st.floats(0, 1),
)
activations = st.sampled_from(sorted(ACTIVATIONS))
experts = st.builds(
    lambda lobes, **rest: ExpertsConfig(lobes=lobes, num_units=sum(lobes.values()), **rest),
    lobes=st.dictionaries(st.text(min_size=1, max_size=5), st.integers(4, 9), min_size=1, max_size=4),
    unit_width=st.integers(1, 99),
    num_shared=st.integers(0, 3),
    activation=activations,
    thalamus=thalami,
)
dense = st.builds(FeedForwardConfig, width=st.integers(1, 99), activation=activations, bias=st.booleans())
configs = st.builds(
    PragnosiaConfig,
    hidden_size=st.integers(1, 512),
    num_hidden_layers=st.just(3),
    tie_word_embeddings=st.booleans(),
    eos_token_id=st.none() | st.integers(0, 9) | st.lists(st.integers(0, 9), min_size=1, max_size=3),
    attention=attentions,
    experts=experts,
    feed_forward=dense,
    feed_forwards=st.none() | st.lists(st.sampled_from(["dense", "experts"]), min_size=3, max_size=3),
    layer_types=st.none() | st.lists(st.sampled_from(["full_attention", "sliding_attention"]), min_size=3, max_size=3),
    rope_theta=st.floats(1e3, 1e7),
)


@given(configs)
@settings(max_examples=25)
def test_written_and_read_back_the_same(config: PragnosiaConfig) -> None:
    for written in (config.to_json_string(use_diff=True), config.to_json_string(use_diff=False)):
        again = PragnosiaConfig.from_dict(json.loads(written))
        assert again.to_dict() == config.to_dict()
        assert (again.attention, again.experts, again.feed_forward) == (
            config.attention,
            config.experts,
            config.feed_forward,
        )
    assert copy.deepcopy(config).to_dict() == config.to_dict()


def test_saved_and_loaded(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config(experts=None, feed_forward={"width": 8}, rope_theta=5e5)
    config.save_pretrained(tmp_path)
    assert PragnosiaConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_a_file_with_a_key_nobody_knows(tiny_config: MakeConfig, tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_expert": 8}))
    with pytest.raises(ConfigError, match=r"unknown configuration key 'num_expert'. Did you mean 'experts.num_units'"):
        PragnosiaConfig.from_pretrained(tmp_path)


def test_loading_with_a_change(tiny_config: MakeConfig, tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    assert PragnosiaConfig.from_pretrained(tmp_path, max_position_embeddings=7).max_position_embeddings == 7
