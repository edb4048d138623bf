"""Tuning by blocks: OUT becomes a model that has learned, within a budget the same one, and kill -9 costs only time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from small_talk import small_model, with_tokenizer, write_chat

from pragnosia import kernels
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.errors import BudgetError, CheckpointError, ConfigError
from pragnosia.inference.loading import load_model
from pragnosia.training.block_learner import BLOCKS
from pragnosia.training.checkpoint import CheckpointConfig
from pragnosia.training.log import LOG, read_log
from pragnosia.training.optimisers import OptimiserConfig
from pragnosia.training.progress import Silent
from pragnosia.training.run_folder import CHECKPOINTS
from pragnosia.training.tuner import tune
from pragnosia.training.tuning import TuneConfig
from pragnosia.tuning.blocks import BlockConfig

FROZEN = {"model.embed_tokens.weight", "lm_head.weight"}
needs_kernels = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
Configure = Callable[..., TuneConfig]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corner: Path) -> Path:
    """A sparse model with a dense layer in it, and the corner's tokenizer."""
    return small_model(
        tmp_path_factory.mktemp("models") / "sparse",
        corner,
        torch.bfloat16,
        num_hidden_layers=3,
        initializer_range=0.2,
        feed_forward={"width": 32},
        feed_forwards=["experts", "dense", "experts"],
        experts={"num_units": 6, "unit_width": 8, "bias": True, "thalamus": {"kind": "softmax", "num_awake": 2}},
    )


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat(tmp_path_factory.mktemp("chats") / "chat.jsonl")


@pytest.fixture
def configure(folder: Path, chat: Path) -> Configure:
    def configured(**changes: Any) -> TuneConfig:
        base = TuneConfig(
            model=str(folder),
            data=[str(chat)],
            method="blocks",
            blocks=BlockConfig(steps=3, units=3),
            batch_size=2,
            sequence_length=64,
            steps=25,
            validation_fraction=0.0,
            optimiser=OptimiserConfig(learning_rate=0.01, weight_decay=0.0),
            checkpoint=CheckpointConfig(every=5),
        )
        return replace(base, **changes)

    return configured


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def same(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


def test_a_model_comes_out_that_has_learned(configure: Configure, folder: Path, tmp_path: Path) -> None:
    before, source = weights(folder), (folder / "model.safetensors").read_bytes()
    config = configure(steps=42, validation_fraction=0.3)
    report = tune(config, out=tmp_path / "out", reporter=Silent())
    log = read_log(tmp_path / "out" / LOG)
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    assert (folder / "model.safetensors").read_bytes() == source
    after = weights(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == before.keys() - FROZEN
    assert all(after[name].dtype is tensor.dtype for name, tensor in before.items())
    assert (report.num_blocks, report.turns) == (7, 14)
    assert report.blocks is not None
    assert sorted(report.blocks) == [
        *("layer-000", "layer-000.units-000", "layer-000.units-003", "layer-001"),
        *("layer-002", "layer-002.units-000", "layer-002.units-003"),
    ]
    assert report.blocks["layer-000.units-000"] == 3 * (16 * 48 + 48 * 8 + 16 + 48)
    assert report.parameters == sum(report.blocks.values()) == sum(before[name].numel() for name in changed)
    for left in (BLOCKS, CHECKPOINTS, ".model"):
        assert not (tmp_path / "out" / left).exists()
    # what was examined at the end of the run is what lies there
    again = tune(replace(config, model=str(tmp_path / "out"), steps=1), out=tmp_path / "again", reporter=Silent())
    assert again.validation_loss_before == report.validation_loss
    assert report.validation_loss is not None
    assert report.validation_loss_before is not None
    assert report.validation_loss < report.validation_loss_before


def test_only_blocks_that_had_a_turn_change(configure: Configure, folder: Path, tmp_path: Path) -> None:
    report = tune(configure(steps=5), out=tmp_path / "out", reporter=Silent())
    assert report.turns == 2
    assert report.blocks is not None
    before, after = weights(folder), weights(tmp_path / "out")
    for name, tensor in before.items():
        differs = (tensor != after[name]).reshape(len(tensor), -1).any(-1)
        for row, changed in enumerate(differs.tolist()):
            layer = f"layer-00{name.split('.')[2]}" if name.startswith("model.layers") else "layer-002"
            block = f"{layer}.units-00{row // 3 * 3}" if ".bank." in name else layer
            assert not changed or (block in report.blocks and name not in FROZEN), (name, row)
    assert not same(folder, tmp_path / "out")


@needs_kernels
@pytest.mark.parametrize("accumulation", [1, 2])
def test_within_a_budget_the_same_is_learned(configure: Configure, tmp_path: Path, accumulation: int) -> None:
    for name, memory in (("here", None), ("there", "2GiB")):
        tune(configure(memory=memory, accumulation=accumulation), out=tmp_path / name, reporter=Silent())
    assert same(tmp_path / "here", tmp_path / "there")


@needs_kernels
def test_a_budget_too_small_is_refused_with_the_arithmetic(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"one block, slopes and moments .* give --memory"):
        tune(configure(memory="30MiB"), out=tmp_path / "little", reporter=Silent())


def test_moments_may_be_forgotten_between_turns(configure: Configure, tmp_path: Path) -> None:
    config = configure(steps=26)
    forgetful = replace(config, blocks=replace(config.blocks, reset_moments=True))
    tune(config, out=tmp_path / "kept", reporter=Silent())
    tune(forgetful, out=tmp_path / "reset", reporter=Silent())
    losses = [[line["loss"] for line in read_log(tmp_path / name / LOG)] for name in ("kept", "reset")]
    assert losses[0][:22] == losses[1][:22]  # until a block has its second turn
    assert losses[0][22:] != losses[1][22:]


class Stopping:
    """Fails once a step is done, before anything else is."""

    def __init__(self, step: int) -> None:
        self.step, self.files = step, 0

    def note(self, line: str) -> None: ...
    def watch(self, bytes_read: Callable[[], int]) -> None: ...
    def loading(self, done: int, total: int) -> None: ...
    def start(self, steps: int, done: int) -> None: ...
    def stop(self) -> None: ...
    def advance(self, step: int, record: Any) -> None:
        if step == self.step:
            raise KeyboardInterrupt


@needs_kernels
@pytest.mark.parametrize(("memory", "every"), [(None, 9), ("2GiB", 4)])
def test_a_broken_run_ends_as_an_unbroken_one(
    configure: Configure, tmp_path: Path, memory: str | None, every: int
) -> None:
    """Blocks that were left after the last checkpoint are taken back to where they were."""
    config = configure(memory=memory, steps=40, checkpoint=CheckpointConfig(every=every))
    config = replace(config, optimiser=replace(config.optimiser, name="adamw8bit"))
    tune(config, out=tmp_path / "whole", reporter=Silent())
    for step in (2, 8, 17, 23, 35):
        with pytest.raises(KeyboardInterrupt):
            tune(config, out=tmp_path / "broken", resume=True, reporter=Stopping(step))
    tune(config, out=tmp_path / "broken", resume=True, reporter=Silent())
    assert same(tmp_path / "whole", tmp_path / "broken")
    losses = [[line["loss"] for line in read_log(tmp_path / name / LOG)] for name in ("whole", "broken")]
    assert losses[0] == losses[1]


def test_old_files_go_when_no_checkpoint_needs_them(configure: Configure, tmp_path: Path) -> None:
    config = configure(steps=60, checkpoint=CheckpointConfig(every=5, keep=1))
    with pytest.raises(KeyboardInterrupt):
        tune(config, out=tmp_path / "out", reporter=Stopping(56))
    names = [path.name for path in (tmp_path / "out" / BLOCKS).iterdir()]
    states = [name.partition("-0000")[0] for name in names if ".state." in name]
    assert len(set(states)) == 7
    assert len(states) == 7


@pytest.mark.slow
@needs_kernels
def test_kill_9_and_resume_ends_with_the_weights_of_an_unbroken_run(configure: Configure, tmp_path: Path) -> None:
    config = configure(steps=40, memory="2GiB", checkpoint=CheckpointConfig(every=8))
    out, log = tmp_path / "killed", tmp_path / "killed" / LOG
    script = (
        "import sys, json, torch; torch.set_num_threads(1)\n"
        "from pragnosia.training.tuner import tune; from pragnosia.training.tuning import TuneConfig\n"
        "from pragnosia.training.progress import Silent; from pragnosia.tuning.blocks import BlockConfig\n"
        "from pragnosia.training.optimisers import OptimiserConfig\n"
        "from pragnosia.training.checkpoint import CheckpointConfig\n"
        "given = json.loads(sys.argv[1]); given.pop('schedule'); given.pop('lora')\n"
        "given['blocks'] = BlockConfig(**given['blocks']); given['optimiser'] = OptimiserConfig(**given['optimiser'])\n"
        "given['checkpoint'] = CheckpointConfig(**given['checkpoint'])\n"
        "tune(TuneConfig(**given), out=sys.argv[2], resume=True, reporter=Silent())\n"
    )
    for lines in (12, 25):
        child = subprocess.Popen(
            [sys.executable, "-c", script, json.dumps(config.write()), str(out)], env=dict(os.environ)
        )
        try:
            while not log.exists() or len(read_log(log)) < lines:
                assert child.poll() is None, "the run ended before it could be killed"
                time.sleep(0.01)
        finally:
            child.kill()
        assert child.wait() == -signal.SIGKILL
        assert not (out / "config.json").exists()
    tune(config, out=out, resume=True, reporter=Silent())
    tune(replace(config, memory=None), out=tmp_path / "whole", reporter=Silent())
    assert same(out, tmp_path / "whole")


@needs_kernels
def test_another_familys_model_stays_one(chat: Path, corner: Path, configure: Configure, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(
        "qwen3_moe", vocab_size=300, hidden_size=48, intermediate_size=32, moe_intermediate_size=8,
        num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=24, num_experts=6,
        num_experts_per_tok=2, mlp_only_layers=[1], max_position_embeddings=128, initializer_range=0.2,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    source = tmp_path / "source"
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(source)
    with_tokenizer(source, corner)
    for name, memory in (("here", None), ("there", "2GiB")):
        tune(configure(model=str(source), memory=memory, steps=30), out=tmp_path / name, reporter=Silent())
    assert same(tmp_path / "here", tmp_path / "there")
    before, after = weights(source), weights(tmp_path / "here")
    assert before.keys() == after.keys()
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in still if ".experts." not in name} == {"model.embed_tokens.weight"}
    assert len(still) < 20  # of 36 matrices of units, some of which nobody woke
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "here").eval()
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        ours = load_model(tmp_path / "there")(ids, use_cache=False).logits
        torch.testing.assert_close(ours, theirs(ids, use_cache=False).logits, rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("memory", ["2GiB", None])
def test_a_dense_model_in_layers_that_come_and_go(
    corner: Path, configure: Configure, tmp_path: Path, memory: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pragnosia.kernels.pool import UnitPool

    config = transformers.AutoConfig.for_model(
        "llama", vocab_size=300, hidden_size=48, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    source = tmp_path / "source"
    transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(source)
    with_tokenizer(source, corner)
    given = configure(model=str(source), blocks=BlockConfig(steps=3), steps=28)
    tune(replace(given, memory=None), out=tmp_path / "here", reporter=Silent())
    if memory:  # so few slots that layers pass through them
        monkeypatch.setattr(UnitPool, "bytes_for", staticmethod(lambda record, slots: 2 * 10**8 * slots))
    tune(replace(given, memory=memory), out=tmp_path / "there", reporter=Silent())
    assert same(tmp_path / "here", tmp_path / "there")


def test_what_cannot_be_tuned_in_blocks(configure: Configure, folder: Path, tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"reporter": Silent()}
    with pytest.raises(ConfigError, match="block_units is 7, a bank of this model has 6 units"):
        tune(configure(blocks=BlockConfig(units=7)), out=tmp_path / "a", **quiet)
    with pytest.raises(ConfigError, match="Did you mean 'blocks'"):
        configure(method="block")
    tune(configure(steps=2), out=tmp_path / "b", **quiet)
    for resume in (False, True):
        with pytest.raises(ConfigError, match="holds a run that is over, and is a model"):
            tune(configure(steps=3), out=tmp_path / "b", resume=resume, **quiet)
    if kernels.native_library() is not None:
        from pragnosia.quantisation.packing import pack_model

        pack_model(blueprint(folder), tmp_path / "packed", "int4")
        with pytest.raises(CheckpointError, match="is packed, and rounded weights cannot learn; tune the model it was"):
            tune(configure(model=str(tmp_path / "packed")), out=tmp_path / "c", **quiet)
