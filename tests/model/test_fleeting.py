"""Fleeting attention: what fades and what does not, by a plain softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.model.attention import Attention, Moment, RotaryPositions
from pragnosia.model.configuration import PragnosiaConfig

MakeConfig = Callable[..., PragnosiaConfig]


def weights_of(attention: Attention, x: Tensor, moment: Moment) -> Tensor:
    """Attention weights (H, T, T) of one row, without fading."""
    from pragnosia.model.attention import rotate

    query = rotate(attention._heads(attention.q_proj(x)), moment.rotation)[0]
    key = rotate(attention._heads(attention.k_proj(x)), moment.rotation)[0].repeat_interleave(attention.groups, 0)
    scores = query @ key.transpose(-1, -2) / math.sqrt(attention.head_dim)
    return scores.masked_fill(~torch.ones(x.shape[1], x.shape[1]).tril().bool(), -math.inf).softmax(-1)


@pytest.mark.parametrize(("intact", "power"), [(1, 0.5), (3, 2.0), (40, 1.0)])
@torch.no_grad()
def test_weights_fade_by_a_power_of_age(intact: int, power: float, tiny_config: MakeConfig) -> None:
    config = tiny_config(fleeting={"intact": intact, "power": power})
    torch.manual_seed(2)
    attention, x = Attention(config, 0), torch.randn(1, 11, 24)
    moment = Moment(RotaryPositions(config)(torch.arange(11)[None], torch.float32), {"full_attention": None})
    weights = weights_of(attention, x, moment)
    for query in range(11):
        for key in range(query + 1):
            weights[:, query, key] *= (1 + max(0, query - key + 1 - intact)) ** -power
    weights = weights / weights.sum(-1, keepdim=True)
    values = attention._heads(attention.v_proj(x))[0].repeat_interleave(attention.groups, 0)
    expected = attention.o_proj((weights @ values).transpose(0, 1).flatten(1))
    torch.testing.assert_close(attention(x, None, moment)[0][0], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_layer_at_a_time(tiny_config: MakeConfig) -> None:
    config = tiny_config(fleeting={"layers": [1], "intact": 2})
    assert Attention(config, 0).fading is None
    assert Attention(config, 1).fading is not None
    assert tiny_config().fleeting is None


@pytest.mark.parametrize(
    ("organ", "message"),
    [
        ({"intact": 0}, "fleeting.intact is 0; it must be greater than 0"),
        ({"power": -1}, "fleeting.power is -1; it must be greater than 0"),
        ({"layers": [2]}, "fleeting.layers names 2, the model has 2 layers: 0 to 1"),
        ({"layers": []}, r"fleeting.layers is \[\]"),
        ({"window": 3}, "key in FleetingConfig 'window'"),
    ],
)
def test_what_cannot_be(organ: dict[str, Any], message: str, tiny_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(fleeting=organ)
