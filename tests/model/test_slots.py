"""Working memory and the workspace: what stands in slots by a plain reckoning, however a text is cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from pragnosia.errors import ConfigError
from pragnosia.inference.decode import Decoder
from pragnosia.inference.program import writable
from pragnosia.inference.sampling import Sampling
from pragnosia.kernels import compiled
from pragnosia.measure.accounting import account
from pragnosia.model.attention import Moment
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.exits import ExitLesson
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.model.slot_organs import slot_bytes
from pragnosia.model.working_memory import SlotReader

Make = Callable[..., PragnosiaForCausalLM]

SLOTS: dict[str, Any] = {"num_slots": 3, "segment": 4, "num_heads": 2, "head_dim": 6}
MEMORY: dict[str, Any] = {"working_memory": {"layers": [1], **SLOTS}}
SPACE: dict[str, Any] = {"workspace": {"layers": [0, 1], **SLOTS, "num_slots": 2}}
DENSE: dict[str, Any] = {"experts": None, "feed_forward": {"width": 10}}
DRESSES: dict[str, dict[str, Any]] = {
    "memory": MEMORY,
    "workspace": SPACE,
    "both, by a window": {
        **MEMORY,
        **SPACE,
        **DENSE,
        "layer_types": "sliding_attention",
        "attention": {"sliding_window": 3},
    },
}
LONG_TERM: dict[str, Any] = {
    **DENSE,
    "feed_forwards": ["memory", "dense"],
    "hippocampus": {"num_rows": 144, "num_heads": 3, "num_awake": 5, "key_width": 12},
}
CUTS = ([1] * 22, [7, 2, 1, 9, 3], [3, 1, 4, 12, 2])


def rotation() -> Any:
    """Slots do not turn."""
    return torch.empty(0), torch.empty(0)


def spoken(model: PragnosiaForCausalLM, tokens: Tensor, cut: list[int], mask: Tensor | None = None) -> Tensor:
    """Logits of a text that comes in pieces."""
    state, pieces, seen = model.fresh_state(len(tokens), 4), [], 0
    for piece in tokens.split(cut, 1):
        seen += piece.shape[1]
        known = None if mask is None else mask[:, :seen]
        output = model(piece, attention_mask=known, past_key_values=state)
        state = output.past_key_values
        pieces.append(output.logits)
    return torch.cat(pieces, 1)


@pytest.fixture(scope="module", params=DRESSES)
def model(request: pytest.FixtureRequest, tiny_model: Make) -> PragnosiaForCausalLM:
    return tiny_model(**DRESSES[request.param])


@pytest.fixture
def text() -> Tensor:
    """Two rows of 22 tokens."""
    return torch.randint(0, 61, (2, 22), generator=torch.Generator().manual_seed(3))


# -- what stands, and what is read


def by_definition(x: Tensor, slots: SlotReader) -> Tensor:
    """One row, one token at a time, in double precision; every writer's tokens are rows of x: (T, N, D)."""
    organ, weights = slots.organ, {name: w.double() for name, w in slots.state_dict().items()}
    x = x.double()
    found = []
    for place in range(len(x)):
        now, offers = place // organ.segment, []
        for before in range(now * organ.segment):
            for writer, said in enumerate(x[before]):
                strength = float(said @ weights["salience.weight"][writer])
                faded = strength - organ.fading * (now - before // organ.segment)
                offers.append((faded, weights["k_proj.weight"] @ said, weights["v_proj.weight"] @ said))
        strongest = sorted(offers, key=lambda offer: -offer[0])[: organ.num_slots]
        query, width, heads = weights["q_proj.weight"] @ x[place, 0], organ.head_dim, []
        for head in range(organ.num_heads):
            mine = slice(head * width, (head + 1) * width)
            looks = [
                math.exp(float(query[mine] @ key[mine]) / math.sqrt(width)) / (1 + math.exp(-strength))
                for strength, key, _ in strongest
            ]
            total = sum(looks) + math.exp(float(weights["sinks"][head]))
            values = [look / total * value[mine] for look, (_, _, value) in zip(looks, strongest, strict=True)]
            heads.append(torch.stack(values).sum(0) if values else torch.zeros(width, dtype=x.dtype))
        found.append(weights["o_proj.weight"] @ torch.cat(heads))
    return torch.stack(found)


@pytest.mark.parametrize("writers", [1, 3])
@pytest.mark.parametrize("fading", [0.0, 0.7])
def test_by_its_definition(writers: int, fading: float, tiny_config: Callable[..., PragnosiaConfig]) -> None:
    config = tiny_config(working_memory={"layers": [0], **SLOTS, "fading": fading})
    slots = SlotReader(config, config.working_memory, writers)
    generator = torch.Generator().manual_seed(5)
    for parameter in slots.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    x = torch.randn(2, 19, writers, 24, generator=generator)
    standing, _, segments = slots.offer(x, None, Moment(rotation(), {}))
    found, weights = slots.recall(x[:, :, 0], standing, segments)
    for row, expected in zip(found, x, strict=True):
        torch.testing.assert_close(row.double(), by_definition(expected, slots), rtol=1e-4, atol=1e-5)
    assert (weights.sum(-1) < 1).all(), "something is left for nothing"
    assert not weights[:, 0].any(), "the first segment finds empty slots"


# -- a text is a text, however it comes


@pytest.mark.parametrize("cut", CUTS, ids=["one by one", "pieces", "others"])
@torch.no_grad()
def test_pieces_say_what_the_whole_says(cut: list[int], model: PragnosiaForCausalLM, text: Tensor) -> None:
    torch.testing.assert_close(spoken(model, text, cut), model(text, use_cache=False).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_padding_leaves_no_trace(model: PragnosiaForCausalLM, text: Tensor) -> None:
    alone = model(text[:1, :17], use_cache=False).logits[0]
    padded, mask = text.clone(), torch.ones_like(text)
    padded[0, 5:], mask[0, :5] = text[0, :17], 0
    whole = model(padded, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(whole[0, 5:], alone, rtol=1e-4, atol=1e-4)
    for cut in CUTS:
        torch.testing.assert_close(
            spoken(model, padded, cut, mask)[mask.bool()], whole[mask.bool()], rtol=1e-4, atol=1e-4
        )
    right, behind = text.clone(), torch.ones_like(text)
    behind[0, 17:] = 0
    torch.testing.assert_close(
        model(right, attention_mask=behind, use_cache=False).logits[0, :17], alone, rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_texts_that_share_a_row_know_nothing_of_each_other(model: PragnosiaForCausalLM, text: Tensor) -> None:
    texts = torch.tensor([[1] * 9 + [2] * 11 + [0] * 2, [1] * 22])
    mask = (texts[:, :, None] == texts[:, None, :]).tril()[:, None]
    packed = model(text, attention_mask=mask, use_cache=False).logits
    for row, begin, end in ((0, 0, 9), (0, 9, 20), (1, 0, 22)):
        alone = model(text[row : row + 1, begin:end], use_cache=False).logits[0]
        torch.testing.assert_close(packed[row, begin:end], alone, rtol=1e-4, atol=1e-4)
    state = model.fresh_state(2, 4)
    state = model(text[:, :5], past_key_values=state).past_key_values
    with pytest.raises(ConfigError, match="several texts in a row"):
        model(text[:, 5:7], attention_mask=torch.ones(2, 1, 2, 7).tril() > 0, past_key_values=state)


@torch.no_grad()
def test_the_future_changes_nothing(model: PragnosiaForCausalLM, text: Tensor) -> None:
    before = model(text, use_cache=False).logits
    for place in (5, 8, 21):
        other = text.clone()
        other[:, place] = (other[:, place] + 1) % 61
        after = model(other, use_cache=False).logits
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(after[:, place], before[:, place])


@torch.no_grad()
def test_slots_reach_beyond_a_window(tiny_model: Make, text: Tensor) -> None:
    reach: dict[str, Any] = {
        **DENSE, "num_hidden_layers": 1, "layer_types": "sliding_attention", "attention": {"sliding_window": 2}
    }  # fmt: skip
    other = text.clone()
    other[:, 0] = (other[:, 0] + 1) % 61
    for organ, differs in ((None, False), ({"layers": [0], **SLOTS, "num_slots": 16, "fading": 0}, True)):
        model = tiny_model(**reach, working_memory=organ)
        late = slice(8, None)
        same = torch.equal(model(text).logits[:, late], model(other).logits[:, late])
        assert same != differs


def test_every_weight_learns_and_forward_changes_none(model: PragnosiaForCausalLM, text: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    model(text, labels=text).loss.backward()
    model.eval()
    slots = {name: weight.grad for name, weight in model.named_parameters() if ".slots." in name}
    assert slots
    assert all(slope is not None and slope.any() and slope.isfinite().all() for slope in slots.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.zero_grad()


def test_slopes_are_those_of_differences(tiny_config: Callable[..., PragnosiaConfig]) -> None:
    config = tiny_config(working_memory={"layers": [0], **SLOTS})
    slots = SlotReader(config, config.working_memory, writers=2).double()
    generator = torch.Generator().manual_seed(5)
    for parameter in slots.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(1, 9, 2, 24, generator=generator, dtype=torch.float64)

    def found(values: Tensor) -> Tensor:
        standing, _, segments = slots.offer(values, None, Moment(rotation(), {}))
        return slots.recall(values[:, :, 0], standing, segments)[0].sum()

    wanted = torch.autograd.functional.jacobian(found, x)
    for where in ((0, 1, 0, 3), (0, 2, 1, 7), (0, 6, 0, 11), (0, 8, 0, 0)):
        step = torch.zeros_like(x)
        step[where] = 1e-3
        difference = (found(x + step) - found(x - step)) / 2e-3
        torch.testing.assert_close(wanted[where], difference, rtol=1e-2, atol=2e-3)  # strengths are in float32


# -- state


@torch.no_grad()
def test_state_is_a_value_of_constant_size(model: PragnosiaForCausalLM, text: Tensor) -> None:
    state = model.fresh_state(2, 64)
    size = state.nbytes
    slots = 2 * slot_bytes(model.config, 4)
    assert slots > 0
    assert size == account(model, precision="float32").cache_bytes(64, batch=2)
    early = model(text[:, :9], past_key_values=state).past_key_values
    kept = early.fork()
    late = model(text[:, 9:], past_key_values=early).past_key_values
    assert size == early.nbytes == late.nbytes == kept.nbytes
    for known in (early, kept):
        again = model(text[:, 9:], past_key_values=known).logits
        torch.testing.assert_close(again, model(text, use_cache=False).logits[:, 9:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_decoder_says_what_the_model_says(model: PragnosiaForCausalLM, text: Tensor) -> None:
    ids = text[0, :7].tolist()
    decoder = Decoder(model, 16)
    decoder.read(ids)
    said = list(decoder.speak(12, Sampling(temperature=0)))
    for _ in range(12):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    assert ids[7:] == said
    assert decoder.decoding == "modules"
    assert not writable(model, model.fresh_state(1, 8))


# -- caches of transformers


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@torch.no_grad()
def test_a_cache_of_transformers_carries_them(model: PragnosiaForCausalLM, text: Tensor, padded: bool) -> None:
    mask = torch.ones_like(text)
    if padded:
        mask[0, :5] = 0
    whole, heard = model(text, attention_mask=mask, use_cache=False).logits, mask.bool()
    for cache in (DynamicCache(), DynamicCache(config=model.config)):
        pieces, seen = [], 0
        for piece in text.split([9, 1, 6, 1, 1, 4], 1):
            seen += piece.shape[1]
            output = model(piece, attention_mask=mask[:, :seen], past_key_values=cache)
            assert output.past_key_values is cache
            assert cache.get_seq_length() == seen
            pieces.append(output.logits)
        torch.testing.assert_close(torch.cat(pieces, 1)[heard], whole[heard], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_generate_says_what_the_model_says(model: PragnosiaForCausalLM, text: Tensor) -> None:
    prompt, mask = text[:, :9], torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    for options in ({}, {"attention_mask": mask}, {"num_beams": 3}):
        how: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, **options}
        assert torch.equal(model.generate(prompt, **how), model.generate(prompt, use_cache=False, **how))
    by_hand = prompt
    for _ in range(10):
        likeliest = model(by_hand, use_cache=False).logits[:, -1].argmax(-1)
        by_hand = torch.cat((by_hand, likeliest[:, None]), 1)
    assert torch.equal(model.generate(prompt, max_new_tokens=10, do_sample=False, pad_token_id=0), by_hand)


@torch.no_grad()
def test_what_a_cache_cannot_do_with_slots(model: PragnosiaForCausalLM, text: Tensor) -> None:
    with pytest.raises(ConfigError, match="cache of fixed size"):
        model.generate(text, max_new_tokens=2, cache_implementation="static")
    cache = model(text, past_key_values=DynamicCache()).past_key_values
    cache.crop(0)
    with pytest.raises(ConfigError, match="cannot take tokens back"):
        cache.crop(-3)
    cache = model(text, past_key_values=DynamicCache()).past_key_values
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([2, 1]))
    after = model(text[:, :3].flip(0), past_key_values=cache).logits
    other = model(text, past_key_values=DynamicCache()).past_key_values
    torch.testing.assert_close(after.flip(0), model(text[:, :3], past_key_values=other).logits, rtol=1e-4, atol=1e-4)


# -- off by default, silent at first


@pytest.mark.parametrize("organs", [MEMORY, SPACE], ids=["memory", "workspace"])
@torch.no_grad()
def test_switched_on_it_changes_nothing_at_first(
    organs: dict[str, Any], tiny_config: Callable[..., PragnosiaConfig], text: Tensor
) -> None:
    plain, given = PragnosiaForCausalLM(tiny_config()), PragnosiaForCausalLM(tiny_config(**organs))
    fresh = given.load_state_dict(plain.state_dict(), strict=False)
    assert not fresh.unexpected_keys
    assert {name.split(".")[3] for name in fresh.missing_keys} <= {"working_memory", "workspace"}
    assert torch.equal(plain(text).logits, given(text).logits)


def test_saved_and_loaded(model: PragnosiaForCausalLM, text: Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = PragnosiaForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.to_dict()["working_memory"] == model.config.to_dict()["working_memory"]
    assert torch.equal(again(text).logits, model(text).logits)


@torch.no_grad()
def test_long_term_memory_has_a_voice(tiny_model: Make, text: Tensor) -> None:
    model = tiny_model(**LONG_TERM, workspace={"layers": [0], **SLOTS})
    assert model.model.layers[0].workspace.modules_heard == ("attention", "memory")
    torch.testing.assert_close(spoken(model, text, CUTS[1]), model(text).logits, rtol=1e-4, atol=1e-4)
    assert set(model.workspace_state(text[0]).attention) == {"attention", "memory"}


@torch.no_grad()
def test_rows_that_pass_a_layer_by(tiny_model: Make, text: Tensor) -> None:
    model = tiny_model(**MEMORY, **DENSE).train()
    rows = (None, torch.tensor([1]))
    dropped = model(text, use_cache=False, lesson=ExitLesson(rows=rows)).logits
    torch.testing.assert_close(dropped[1], model(text, use_cache=False).logits[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"working_memory": {"layers": []}}, r"working_memory.layers is \[\]; name layers"),
        ({"working_memory": {"layers": [-1]}}, "working_memory.layers names -1"),
        ({"working_memory": {"layers": [2]}}, "working_memory.layers names 2, the model has 2 layers: 0 to 1"),
        ({"workspace": {"layers": [5]}}, "workspace.layers names 5"),
        ({"workspace": {"layers": [0], "slots": 3}}, "key in WorkspaceConfig 'slots'.*num_slots"),
        ({"workspace": {"layers": [0], "num_slots": 0}}, "workspace.num_slots is 0; it must be greater than 0"),
        ({"working_memory": {"layers": [0], "segment": 2.5}}, "working_memory.segment is 2.5; it must be a whole"),
        ({"working_memory": {"layers": [0], "fading": -1}}, "working_memory.fading is -1; it must be a number, 0"),
        ({"working_memory": 3}, "WorkingMemoryConfig must be a mapping"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], message: str, tiny_config: Callable[..., PragnosiaConfig]) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(**changes)


def test_a_gated_layer_has_no_slots(tiny_config: Callable[..., PragnosiaConfig]) -> None:
    with pytest.raises(ConfigError, match=r"gates.layers and working_memory.layers both name 1"):
        PragnosiaForCausalLM(tiny_config(**MEMORY, gates={"layers": [1]}))


# -- what it costs


@torch.no_grad()
def test_counted(model: PragnosiaForCausalLM, text: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = account(model, precision="float32", context=22)
    assert counted.total_parameters == sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr(compiled, "_load", lambda: (None, "off"))
    with FlopCounterMode(display=False) as whole, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        state = model(text[:1, :21], past_key_values=model.fresh_state(1, 32)).past_key_values
        before = whole.get_total_flops()
        model(text[:1, 21:], past_key_values=state)
    assert whole.get_total_flops() - before == counted.operations_per_token
