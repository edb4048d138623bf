"""Blocks: every weight is in one of them, slopes are those of plain back-propagation, and what is learned stays."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from mixed_model import DENSE, SHAPE, made
from torch import Tensor, nn

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM, kernels
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.errors import ConfigError
from pragnosia.inference.budget import make_plan
from pragnosia.inference.layers import coming_and_going
from pragnosia.inference.shelf import open_shelf
from pragnosia.inference.stream import build, load_whole
from pragnosia.tuning.active import TunedModel
from pragnosia.tuning.block_files import read_tensors, write_tensors
from pragnosia.tuning.blocks import Block, BlockConfig, Cut, blocks_of, choose_cut, turn
from pragnosia.units import GIB

SLOTS = {"sparse": (None, 3, 12), "dense": (None, 2, 3)}


def opened(folder: Path, slots: int | None) -> TunedModel:
    """In memory, or streamed through so many slots."""
    if slots is None:
        return TunedModel(load_whole(folder).train())
    shelf = open_shelf(folder)
    model = build(shelf, replace(make_plan(shelf, GIB, interpreter=0), slots=slots))[0].train()
    return TunedModel(model, coming_and_going(model))


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    embedded = model.model.embed_tokens(ids).detach()  # type: ignore[union-attr, operator]
    return model(inputs_embeds=embedded, labels=ids, use_cache=False).loss  # type: ignore[no-any-return]


def everything(config: PragnosiaConfig) -> Block:
    """One block of the whole model."""
    blocks = blocks_of(config, Cut(config.experts.num_units if config.experts else 1))
    return Block("all", tuple(part for block in blocks for part in block.parts))


@pytest.fixture(params=["sparse", "dense"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def skip_without_kernels(slots: int | None) -> None:
    if slots is not None and kernels.native_library() is None:
        pytest.skip("no compiled kernels here")


@pytest.mark.parametrize(("name", "slots"), [(name, slots) for name, several in SLOTS.items() for slots in several])
def test_slopes_are_those_of_plain_back_propagation(tmp_path: Path, name: str, slots: int | None) -> None:
    skip_without_kernels(slots)
    folder = made(tmp_path / "model", name)
    reference = PragnosiaForCausalLM.from_pretrained(folder).train()
    ids = torch.randint(0, 60, (2, 20))
    expected = loss_of(reference, ids)
    expected.backward()
    wanted = {name: weight.grad for name, weight in reference.named_parameters()}
    tuned = opened(folder, slots)
    learning = tuned.take(everything(reference.config))
    untouched = {"model.embed_tokens.weight", "lm_head.weight"}
    assert learning.keys() == wanted.keys() - untouched
    for _ in range(2):  # what a first pass leaves in the pool changes nothing
        for weight in learning.values():
            weight.grad = None
        loss = loss_of(tuned.model, ids)
        loss.backward()
        assert abs(loss.item() - expected.item()) < 1e-5
        for key, weight in learning.items():
            assert weight.grad is not None, key
            torch.testing.assert_close(weight.grad, wanted[key], rtol=2e-4, atol=2e-6, msg=key)


def taught(tuned: TunedModel, folder: Path, cut: Cut, left: Path) -> list[Tensor]:
    """Three steps of plain descent on every block in turn; the losses, and what came of it in files."""
    config, ids, losses = blueprint(folder).config, torch.arange(40)[None], []
    print_ = blueprint(folder)
    for block in blocks_of(config, cut):
        learning = tuned.take(block)
        for _ in range(3):
            for weight in learning.values():
                weight.grad = None
            loss = loss_of(tuned.model, ids)
            loss.backward()
            losses.append(loss.detach())
            with torch.no_grad():
                for weight in learning.values():
                    assert weight.grad is not None
                    weight -= 0.05 * weight.grad
            tuned.sync()
        file = left / f"{block.name}.safetensors"
        write_tensors(file, learning, {name: print_.dtype(name) for name in learning})
        tuned.release()
        tuned.put(block, file)
    losses.append(loss_of(tuned.model, ids).detach())
    return losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_streamed_and_resident_learn_the_same_bits(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    skip_without_kernels(1)
    folder = made(tmp_path / "model", kind, dtype)
    cut = Cut(4, halves=True)
    here, *there = (taught(opened(folder, slots), folder, cut, tmp_path / f"left-{slots}") for slots in SLOTS[kind])
    for losses in there:
        assert [float(loss) for loss in losses] == [float(loss) for loss in here]
    assert float(here[-1]) < float(here[0]) - 0.3
    names = {file.name for file in (tmp_path / "left-None").iterdir()}
    for name in names:
        first, second = (read_tensors(tmp_path / f"left-{slots}" / name) for slots in SLOTS[kind][:2])
        assert all(tensor.dtype is dtype for tensor in first.values())
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_only_the_block_at_work_has_slopes(tmp_path: Path, kind: str) -> None:
    folder = made(tmp_path / "model", kind, torch.bfloat16)
    tuned = opened(folder, None)
    for block in blocks_of(blueprint(folder).config, Cut(2)):
        learning = tuned.take(block)
        assert all(weight.dtype is torch.float32 for weight in learning.values())
        loss_of(tuned.model, torch.arange(30)[None]).backward()
        assert all(weight.grad is not None and weight.grad.dtype is torch.float32 for weight in learning.values())
        assert [name for name, weight in tuned.model.named_parameters() if weight.grad is not None] == []
        tuned.release()


def test_slopes_are_summed_in_fp32_over_batches(tmp_path: Path) -> None:
    """In bfloat16 a small slope beside a large one would be lost."""
    folder = made(tmp_path / "model", "sparse", torch.bfloat16)
    tuned = opened(folder, None)
    learning = tuned.take(everything(blueprint(folder).config))
    single: list[dict[str, Tensor]] = []
    for ids in (torch.arange(30)[None], torch.arange(30, 60)[None]):
        loss_of(tuned.model, ids).backward()
        single.append({name: weight.grad.clone() for name, weight in learning.items() if weight.grad is not None})
        for weight in learning.values():
            weight.grad = None
    for ids in (torch.arange(30)[None], torch.arange(30, 60)[None]):
        loss_of(tuned.model, ids).backward()
    for name, weight in learning.items():
        assert weight.grad is not None
        assert torch.equal(weight.grad, single[0][name] + single[1][name]), name


@pytest.mark.parametrize("cut", [Cut(6), Cut(4, halves=True), Cut(1)])
def test_every_weight_is_in_one_block(cut: Cut) -> None:
    config = PragnosiaConfig(**SHAPE)
    with torch.device("meta"):
        weights = dict(PragnosiaForCausalLM(config).named_parameters())
    blocks = blocks_of(config, cut)
    counted: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    for block in blocks:
        assert block.parameters == sum(torch.Size(part.shape).numel() for part in block.parts)
        for part in block.parts:
            counted[part.tensor] += torch.Size(part.shape).numel()
            if part.first is not None:
                rows.update(f"{part.tensor} {part.first + row}" for row in range(part.shape[0]))
    assert set(rows.values()) == {1}
    frozen = {"model.embed_tokens.weight", "lm_head.weight"}
    assert counted == {name: weight.numel() for name, weight in weights.items() if name not in frozen}
    assert len({block.name for block in blocks}) == len(blocks)
    bases = {"layer-000", "layer-001", "layer-002"}
    if cut.halves:
        bases = {f"{base}.{half}" for base in bases for half in ("mixer", "feed-forward")}
    runs = {f"layer-{layer:03d}.units-{first:03d}" for layer in (0, 2) for first in range(0, 6, cut.units)}
    assert {block.name for block in blocks} == bases | runs


def test_the_cut_fits_the_room() -> None:
    config = PragnosiaConfig(**SHAPE)
    unit = 24 * 8 * 3 + 16 + 24
    assert choose_cut(config, None, None) == Cut(6)
    assert choose_cut(config, 10**9, None) == Cut(6)
    largest = max(block.parameters for block in blocks_of(config, Cut(6)) if "units" not in block.name)
    assert choose_cut(config, largest, None) == Cut(min(6, -(-6 // (-(-6 // (largest // unit))))))
    assert choose_cut(config, 1, None).halves
    assert choose_cut(config, 10**9, 2) == Cut(2)
    with pytest.raises(ConfigError, match="block_units is 7, a bank of this model has 6 units"):
        choose_cut(config, None, 7)
    with pytest.raises(ConfigError, match="this model has no units"):
        choose_cut(PragnosiaConfig(**DENSE), None, 1)
    with pytest.raises(ConfigError, match="block_steps is 0"):
        BlockConfig(steps=0)
    with pytest.raises(ConfigError, match="block_units is 0"):
        BlockConfig(units=0)


def test_every_round_visits_all_blocks_in_an_order_of_its_own() -> None:
    blocks = blocks_of(PragnosiaConfig(**SHAPE), Cut(2))
    rounds = [[turn(blocks, number, 7).name for number in range(first, first + len(blocks))]
              for first in range(0, 4 * len(blocks), len(blocks))]  # fmt: skip
    assert all(sorted(names) == [block.name for block in blocks] for names in rounds)
    assert len({tuple(names) for names in rounds}) == 4
    assert rounds[0] != [turn(blocks, number, 8).name for number in range(len(blocks))]


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_units_of_another_family_are_read_from_where_they_were_left(family: str, tmp_path: Path) -> None:
    """Gate and up lie apart in the source, together in a block's file."""
    skip_without_kernels(1)
    experts = {"num_local_experts": 4} if family == "mixtral" else {"num_experts": 4, "moe_intermediate_size": 16}
    config = transformers.AutoConfig.for_model(
        family, vocab_size=60, hidden_size=24, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=12, num_experts_per_tok=2, max_position_embeddings=64,
        initializer_range=0.3, tie_word_embeddings=False, **experts,
    )  # fmt: skip
    folder = tmp_path / "model"
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    here, there = (taught(opened(folder, slots), folder, Cut(3), tmp_path / f"left-{slots}") for slots in (None, 4))
    assert [float(loss) for loss in here] == [float(loss) for loss in there]
    assert float(here[-1]) < float(here[0])
