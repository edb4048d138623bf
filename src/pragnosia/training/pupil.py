"""Pupil: from a model directory, conversations and a budget to what learns. What is wrong is told before the loop.

conversations -> examples -> rows        model on disk -> plan -> frozen model -> adapters on it, or blocks of it
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from pragnosia.checkpoints.admission import check_wide_awake
from pragnosia.checkpoints.blueprint import Blueprint
from pragnosia.data import TuningBatches, read_conversations, tokenize_conversations
from pragnosia.errors import BudgetError, CheckpointError, ConfigError
from pragnosia.inference.budget import Tuning, as_bytes, make_plan
from pragnosia.inference.directory import check_speaker
from pragnosia.inference.layers import PASSING
from pragnosia.inference.loading import load_config, load_model, load_tokenizer
from pragnosia.inference.plan import Plan
from pragnosia.inference.shelf import AsItLies, Shelf, open_shelf
from pragnosia.inference.stream import build, pool_of
from pragnosia.inference.vram import accelerator, check_vram
from pragnosia.kernels.pool import UnitPool
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import Cortex
from pragnosia.training.adapter_learner import AdapterLearner
from pragnosia.training.assembly import sow
from pragnosia.training.block_learner import BLOCKS, CUT, BlockLearner
from pragnosia.training.checkpoint import write_whole
from pragnosia.training.learners import Learner
from pragnosia.training.progress import Reporter
from pragnosia.training.tuning import TuneConfig
from pragnosia.tuning.admission import check_tunable
from pragnosia.tuning.blocks import Block, Cut, blocks_of, choose_cut
from pragnosia.tuning.lora import count_parameters
from pragnosia.units import format_bytes, format_count, plural

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pupil:
    """What a run works with."""

    learner: Learner
    tokenizer: PreTrainedTokenizerBase
    batches: TuningBatches
    held_out: TuningBatches | None
    device: torch.device = CPU
    """Where the model computes."""


def prepare(config: TuneConfig, out: Path, reporter: Reporter) -> Pupil:
    """Read the conversations, plan the memory, load the model, freeze it and choose what learns. Raises UserErrors."""
    folder, device = Path(config.model), _device(config)
    check_speaker(folder)
    if config.method == "blocks":
        check_tunable(folder)
    shape = load_config(folder)
    if config.sequence_length > shape.max_position_embeddings:
        raise ConfigError(
            f"sequence_length is {config.sequence_length}, the model holds {shape.max_position_embeddings} tokens; "
            "shorten it"
        )
    tokenizer = load_tokenizer(folder, shape.vocab_size, shape.tokenizer_digest)
    batches, held_out = _batches(config, tokenizer, reporter)
    made = _by_blocks if config.method == "blocks" else partial(_by_adapters, device=device)
    learner = made(config, shape, out, reporter)
    learner.model.train()
    if isinstance(learner, BlockLearner):
        turns = math.ceil(config.num_steps(batches) / config.blocks.steps)
        if turns < len(learner.blocks):
            none = plural(len(learner.blocks) - turns, "block")
            reporter.note(f"{plural(turns, 'turn')}: {none} will have none; more --epochs would do")
    return Pupil(learner, tokenizer, batches, held_out, device)


def _device(config: TuneConfig) -> torch.device:
    """Where the model computes. Raises BudgetError where that is a GPU that is not there, or does not do."""
    if config.vram is None:
        return CPU
    check_vram(config.memory, None)
    if config.method == "blocks":
        raise BudgetError(
            "--method blocks does not run within --vram yet; leave --vram out, or tune adapters: --method lora"
        )
    return accelerator()


def _by_adapters(
    config: TuneConfig, shape: PragnosiaConfig, out: Path, reporter: Reporter, device: torch.device
) -> Learner:
    """A frozen model and adapters on it."""
    parameters = count_parameters(shape, config.lora)
    shelf = plan = None
    if config.memory is not None:
        shelf = open_shelf(Path(config.model))
        vram, tuning = 0 if config.vram is None else as_bytes(config.vram), _needs(config, parameters)
        plan = make_plan(shelf, as_bytes(config.memory), tuning=tuning, vram=vram, device=device)
    model, pool = _loaded(config, shelf, plan, reporter, device)
    learner = AdapterLearner(model, pool, config.lora, config.optimiser, out, config.model, device)
    reporter.note(
        f"adapters: {format_count(parameters)} parameters of rank {config.lora.rank} on "
        f"{' and '.join(config.lora.targets)}, {format_bytes(4 * parameters)}"
    )
    return learner


def _by_blocks(config: TuneConfig, shape: PragnosiaConfig, out: Path, reporter: Reporter) -> Learner:
    """A model cut so that one block with all that its optimiser needs fits the budget."""
    shelf, known = open_shelf(Path(config.model)), out / BLOCKS / CUT
    assert isinstance(shelf, AsItLies)
    if not shelf.print_.known:
        raise CheckpointError(
            f"the weights in {config.model} are quantised, and rounded weights cannot learn; tune the model they were "
            "made from, or adapters on this one: --method lora"
        )
    budget = None if config.memory is None else as_bytes(config.memory)
    if known.is_file():
        cut = Cut(**json.loads(known.read_text(encoding="utf-8")))
    else:
        room = None if budget is None else _room(config, shelf, budget)
        cut = choose_cut(shape, room, config.blocks.units)
    blocks = blocks_of(shape, cut)
    largest = max(block.parameters for block in blocks)
    plan = None
    if budget is not None:
        plan = make_plan(shelf, budget, tuning=_needs(config, largest, "one block", _extra(config, shelf)))
    model, pool = _loaded(config, shelf, plan, reporter)
    known.parent.mkdir(parents=True, exist_ok=True)
    write_whole(known, json.dumps({"units": cut.units, "halves": cut.halves}))
    reporter.note(_told(config, shelf.print_, blocks))
    return BlockLearner(model, pool, shelf.print_, blocks, (config.blocks, config.optimiser, config.seed), out)


def _needs(config: TuneConfig, parameters: int, learns: str = "adapters", extra: int = 0) -> Tuning:
    """What a model needs to learn; `extra` bytes for each parameter."""
    moments = 2 + 8 / 256 if config.optimiser.name == "adamw8bit" else 8
    tokens = config.batch_size * config.sequence_length
    rows = config.batch_size
    return Tuning(tokens=tokens, parameters=parameters, moment_bytes=moments + extra, learns=learns, rows=rows)


def _extra(config: TuneConfig, shelf: Shelf) -> int:
    """Bytes of a block's weight beside itself, slope and moments: slopes that are added up, a layer no longer read."""
    return (4 if config.accumulation > 1 else 0) + (shelf.dtype.itemsize if shelf.is_dense else 0)


def _room(config: TuneConfig, shelf: Shelf, budget: int) -> int:
    """Parameters that a block may have: half of what is free goes to the block, half to units that stay here."""
    try:
        plan = make_plan(shelf, budget, tuning=_needs(config, 0, "one block"))
    except BudgetError:
        return 0  # the plan of the finest cut says what is missing
    least = UnitPool.bytes_for(plan.record, min(PASSING if plan.dense else 2 * plan.awake, plan.num_units))
    free = budget - plan.total + plan.pool
    return min(free // 2, free - least) // _needs(config, 1, "one block", _extra(config, shelf)).learning


def _loaded(
    config: TuneConfig, shelf: Shelf | None, plan: Plan | None, reporter: Reporter, device: torch.device = CPU
) -> tuple[Cortex, UnitPool | None]:
    """The model of a plan, or whole in memory where there is none."""
    if shelf is None or plan is None:
        check_wide_awake(Path(config.model))
        model, pool = load_model(Path(config.model)), None
    else:
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # of 1,024 megabytes pile up
        reporter.note(plan.table())
        model = build(shelf, plan, device=device)[0]
        pool = pool_of(model)
    sow(config.seed)
    return model, pool


def _told(config: TuneConfig, print_: Blueprint, blocks: list[Block]) -> str:
    """How the model is cut, in a line."""
    learned, largest = sum(block.parameters for block in blocks), max(block.parameters for block in blocks)
    whole = sum(print_.num_bytes(name) // print_.dtype(name).itemsize for name in print_.shapes)
    return (
        f"blocks: {len(blocks)} of up to {format_count(largest)} parameters, {config.blocks.steps} steps each; "
        f"together {format_count(learned)} of the model's {format_count(whole)}; embeddings and output head stay"
    )


def _batches(config: TuneConfig, tokenizer: Any, reporter: Reporter) -> tuple[TuningBatches, TuningBatches | None]:
    """Rows to learn from, and rows to be examined on."""
    examples = tokenize_conversations(read_conversations(config.data), tokenizer, learn_prompts=config.learn_prompts)
    held_out = None
    learned = examples
    if config.validation_fraction and len(examples) > 1:
        learned, held = examples.split(config.validation_fraction, config.seed)
        held_out = TuningBatches(held, config.batch_size, config.sequence_length, config.seed, config.packing)
    batches = TuningBatches(learned, config.batch_size, config.sequence_length, config.seed, config.packing)
    reporter.note(
        f"data: {len(examples)} examples, {format_count(batches.tokens)} tokens in {batches.rows_per_epoch} rows, "
        f"{format_count(batches.tokens_learned)} of them learned; "
        f"{0 if held_out is None else len(held_out.examples)} examples held out"
    )
    told = batches.stretches.told(config.sequence_length)
    if told:
        reporter.note(told)
    return batches, held_out
