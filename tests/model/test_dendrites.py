"""Dendritic attention against a definition that computes every dendrite and forgets the silent ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.measure.accounting import account
from pragnosia.model.attention import Moment, RotaryPositions, rotate
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.dendrites import Dendrites, DendriticAttention
from pragnosia.model.modeling import PragnosiaForCausalLM

MakeConfig = Callable[..., PragnosiaConfig]
Make = Callable[..., PragnosiaForCausalLM]
SHAPES = [{}, {"num_awake": 2}, {"num_dendrites": 3, "num_awake": 3}, {"num_dendrites": 1}]


def grown(config: PragnosiaConfig) -> DendriticAttention:
    torch.manual_seed(3)
    mixer = DendriticAttention(config, 0)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return mixer


def now(config: PragnosiaConfig, length: int) -> Moment:
    positions = torch.arange(length)[None]
    return Moment(RotaryPositions(config)(positions, torch.float32), {"full_attention": None})


def chosen(drive: Tensor, awake: int) -> Tensor:
    """(…, J) -> how loud each dendrite is, 0 for the silent."""
    kept = drive >= drive.topk(awake, -1).values[..., -1:]
    return torch.where(kept, 2 * drive.sigmoid(), 0.0)


def by_definition(mixer: DendriticAttention, config: Any, x: Tensor, moment: Moment) -> Tensor:
    """Everything computed, the silent multiplied by nothing."""
    inner: Any = mixer.attention
    heads, shared, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    many, awake = config.dendrites.num_dendrites, config.dendrites.num_awake
    query, key = (p(x).unflatten(-1, (-1, width)).transpose(1, 2) for p in (inner.q_proj, inner.k_proj))
    query, key = rotate(query, moment.rotation), rotate(key, moment.rotation)
    hearing, speaking = inner.v_proj, inner.o_proj
    loud = chosen((x @ hearing.gate.weight.T).unflatten(-1, (shared, many)), awake)
    each = torch.einsum("hjkd,btd->bthjk", hearing.weight.view(shared, many, width, -1), x)
    value = torch.einsum("bthj,bthjk->bhtk", loud, each)
    key, value = (part.repeat_interleave(heads // shared, 1) for part in (key, value))
    scores = query @ key.transpose(-1, -2) / math.sqrt(width)
    scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -math.inf)
    gathered = (scores.softmax(-1) @ value).transpose(1, 2)  # (B, T, H, K)
    loud = chosen((gathered.flatten(2) @ speaking.gate.weight.T).unflatten(-1, (heads, many)), awake)
    each = torch.einsum("hjdk,bthk->bthjd", speaking.weight.view(heads, many, -1, width), gathered)
    said: Tensor = torch.einsum("bthj,bthjd->btd", loud, each)
    return said


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_definition(shape: dict[str, int], tiny_config: MakeConfig) -> None:
    config = tiny_config(dendrites=shape)
    mixer, x = grown(config), torch.randn(2, 9, 24, requires_grad=True)
    moment = now(config, 9)
    got, expected = mixer(x, None, moment)[0], by_definition(mixer, config, x, moment)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn_like(got)
    names = [name for name, _ in mixer.named_parameters()]
    slopes = [
        torch.autograd.grad((y * weights).sum(), (x, *mixer.parameters()), retain_graph=True) for y in (got, expected)
    ]
    for name, ours, theirs in zip(["x", *names], *slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_one_at_a_time_as_all_together(tiny_config: MakeConfig) -> None:
    config = tiny_config(dendrites={})
    mixer, x = grown(config), torch.randn(2, 7, 24)
    whole = mixer(x, None, now(config, 7))[0]
    memory, said, positions = mixer.fresh_memory(2, 3, x), [], RotaryPositions(config)
    for token in range(7):
        moment = Moment(positions(torch.tensor([[token]]), torch.float32), {"full_attention": None})
        y, memory = mixer(x[:, token : token + 1], memory, moment)
        said.append(y)
    torch.testing.assert_close(torch.cat(said, 1), whole, rtol=1e-4, atol=1e-4)
    assert memory.nbytes == 2 * 2 * 2 * 12 * 6 * 4, (
        "an arena of plain attention: one key and one value a head and token"
    )


def test_the_silent_are_never_read(tiny_config: MakeConfig) -> None:
    """Not a number where a matrix is read, and nothing where it is not."""
    config = tiny_config(dendrites={})
    mixer, x = grown(config), torch.randn(1, 5, 24)
    parts = [module for module in mixer.modules() if isinstance(module, Dendrites)]
    with torch.no_grad():
        woken = []
        for part in parts:
            part.register_forward_pre_hook(
                lambda module, given: woken.append(module.driven(given[0].flatten(0, -2))[0])
            )
        mixer(x, None, now(config, 5))
        for part, units in zip(parts, woken[:2], strict=True):
            asleep = torch.ones(len(part.weight), dtype=torch.bool)
            asleep[units.unique()] = False
            assert asleep.any()
            part.weight[asleep] = math.nan
        assert mixer(x, None, now(config, 5))[0].isfinite().all()


def test_a_whole_model_trains_saves_and_speaks(tiny_model: Make, tokens: Tensor, tmp_path: Any) -> None:
    model = tiny_model(dendrites={"num_dendrites": 4, "num_awake": 2})
    assert model.config.mixers == ["dendrites", "dendrites"]
    model.train()
    model(tokens, labels=tokens).loss.backward()
    slopes = [p.grad for name, p in model.named_parameters() if "mixer" in name]
    assert all(slope is not None and slope.isfinite().all() for slope in slopes)
    model.eval().save_pretrained(tmp_path)
    again = PragnosiaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 61
    torch.testing.assert_close(model(changed).logits[:, :8], model(tokens).logits[:, :8])


def test_the_silent_are_not_counted(tiny_config: MakeConfig) -> None:
    one, four = (account(tiny_config(dendrites={"num_dendrites": n})).layers[0] for n in (1, 4))
    gates = 3 * (24 * 2 + 24 * 4)
    assert four.active_parameters == one.active_parameters + gates
    assert four.parameters == one.parameters + gates + 3 * (2 * 6 * 24 + 4 * 24 * 6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dendrites": {"num_awake": 5}}, "num_awake is 5, more than the 4"),
        ({"dendrites": {"num_dendrites": 0}}, "num_dendrites is 0"),
        ({"mixers": "dendrites"}, "dendrites are not configured"),
        ({"dendrites": {"branches": 4}}, "branches"),
    ],
)
def test_what_cannot_be(given: dict[str, Any], words: str, tiny_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_config(**given)
