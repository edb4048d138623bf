"""Exact mode, loaded: transformers' model on the meta device, its tensors read into place, its experts on a pool.

Their tensors are read by their names and in their layout, so that nothing is turned on the way. Within a budget the
plan is the stream's, with scratch for what transformers' eager modules take beside it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from pragnosia.checkpoints.admission import read_json
from pragnosia.checkpoints.blueprint import Blueprint, blueprint
from pragnosia.checkpoints.gguf_header import gguf_in
from pragnosia.checkpoints.places import Extents, Place, read_place, unit_extents
from pragnosia.checkpoints.rules import PerUnit, same
from pragnosia.errors import BudgetError, CheckpointError, ConfigError
from pragnosia.inference.budget import longest_context, make_plan
from pragnosia.inference.directory import check_weights, is_foreign
from pragnosia.inference.exact import ExactExperts, ExactModel, Reader
from pragnosia.inference.plan import Plan
from pragnosia.inference.scratch import PRODUCTS, PROMPT_PIECE
from pragnosia.inference.shelf import EMBEDDING, AsItLies, put_tensor
from pragnosia.inference.stream import UNLIMITED, Progress
from pragnosia.kernels.pool import UnitPool
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.quantisation.index import is_packed

_NAME, _OLDER_NAME = ".mlp.gate.", ".block_sparse_moe.gate."
"""Mixtral's router, today and in files as they were published."""


def load_exact(
    folder: str | Path,
    budget: int | None = None,
    *,
    context: int | None = None,
    progress: Progress | None = None,
    reserve: int = 0,
) -> tuple[ExactModel, Plan | None]:
    """Another family's model, sparse within `budget` bytes if there is one. Raises BudgetError, CheckpointError."""
    shelf, theirs = _opened(Path(folder), budget)
    plan, reader, table = None, None, None if budget is None else shelf.table
    if not shelf.is_dense:
        shared = _shared(shelf, budget, context, reserve)
        plan = None if budget is None else shared
        reader = _put_experts(theirs, shelf, shared)
    if table is not None:
        theirs.set_input_embeddings(table)
    _fill(theirs, shelf.print_, progress)
    return ExactModel(shelf.config, theirs, reader).eval(), plan


def plan_exact(folder: str | Path, budget: int, *, context: int | None = None) -> tuple[Plan, int]:
    """What `load_exact` would do within a budget, told by a process as heavy as its own; and the longest context."""
    shelf, theirs = _opened(Path(folder), budget)
    plan = _shared(shelf, budget, context, 0)
    del theirs
    return plan, longest_context(shelf, budget, besides=partial(_besides, shelf.config, shelf.dtype.itemsize))


def _opened(folder: Path, budget: int | None) -> tuple[AsItLies, Any]:
    """Where the weights lie, and transformers' model without them."""
    _check(folder)
    shelf = AsItLies(blueprint(folder))
    if shelf.is_dense and budget is not None:
        raise BudgetError("exact streams experts only, and this model has none; leave --memory out, or --exact")
    if not shelf.is_dense and shelf.dtype not in (torch.float32, torch.bfloat16):
        raise CheckpointError(
            f"the weights in {folder} are {shelf.dtype}; exact mode streams experts of float32 or bfloat16, and "
            "converts nothing; leave --exact out"
        )
    return shelf, _theirs(folder, shelf.print_)


def _shared(shelf: AsItLies, budget: int | None, context: int | None, reserve: int) -> Plan:
    """The plan, with what transformers' modules take beside ours."""
    room = min(shelf.config.max_position_embeddings, context or PROMPT_PIECE)
    besides = 0 if budget is None else reserve + _besides(shelf.config, shelf.dtype.itemsize, room)
    return make_plan(shelf, budget or UNLIMITED, context=room, reserve=besides)


def _check(folder: Path) -> None:
    """Raises CheckpointError or ConfigError for what transformers' own model cannot be run from."""
    foreign = gguf_in(folder) is None and is_foreign(folder)
    if not foreign or is_packed(folder):
        raise CheckpointError(
            f"{folder} is no other family's directory of plain numbers, and exact mode runs transformers' model on "
            "nothing else; leave --exact out"
        )
    if read_json(folder / "config.json").get("quantization_config"):
        raise ConfigError(f"the weights in {folder} are quantised, and exact mode converts nothing; leave --exact out")
    check_weights(folder)


def _theirs(folder: Path, print_: Blueprint) -> Any:
    """transformers' model without any weights, in the type of the file's."""
    config = AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = print_.config.tie_word_embeddings  # a file with a head of its own is not tied
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config,
            dtype=print_.dtype(EMBEDDING),
            attn_implementation="eager",
            experts_implementation="eager",
        )
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _put_experts(theirs: Any, shelf: AsItLies, plan: Plan) -> Reader:
    """Every experts module draws on one pool."""
    organ = shelf.config.experts
    assert organ is not None
    pool = UnitPool(len(shelf.sparse), organ.num_units, plan.record, plan.slots)
    reader = Reader(pool)
    for number, bank in enumerate(shelf.sparse):
        layer = int(bank.split(".")[2])
        for unit in range(organ.num_units):
            extents = [e for part in ("up", "down") for e in _extents(shelf.print_, f"{bank}.{part}", unit)]
            pool.place(number, unit, extents)
        block = theirs.model.layers[layer].mlp
        if shelf.print_.dtype(f"{bank}.up") != block.experts.gate_up_proj.dtype:
            raise CheckpointError(
                f"the units of {shelf.folder} have another type than its token table, and exact mode converts nothing; "
                "leave --exact out"
            )
        block.experts = ExactExperts(block.experts, reader, (layer, number))
    return reader


def _extents(print_: Blueprint, name: str, unit: int) -> Extents:
    """Where a unit lies, in their layout: transformers turns nothing either."""
    rule = print_.rules[name]
    if isinstance(rule, PerUnit):
        rule = same(name, rule.theirs)
    return unit_extents(rule, unit, print_.known, print_.shapes[name][0])


def _fill(theirs: Any, print_: Blueprint, progress: Progress | None) -> None:
    """Read what is resident, and make what is in no file."""
    wanted = {name: _place(print_, name) for name, _ in theirs.named_parameters()}
    done, total = 0, sum(place.num_bytes for place in wanted.values())
    for name, parameter in list(theirs.named_parameters()):
        place = wanted[name]
        flat = torch.empty(place.num_bytes // place.dtype.itemsize, dtype=place.dtype)
        read_place(place, flat)
        put_tensor(theirs, name, flat.view(place.shape).to(parameter.dtype))
        done += place.num_bytes
        if progress is not None:
            progress(done, total)
    rotary = theirs.model.rotary_emb
    theirs.model.rotary_emb = type(rotary)(config=theirs.config)  # its frequencies follow from the configuration
    if theirs.config.tie_word_embeddings:
        theirs.tie_weights()
    unread = [name for name, tensor in (*theirs.named_parameters(), *theirs.named_buffers()) if tensor.is_meta]
    assert not unread, f"nothing is known of {unread}"


def _place(print_: Blueprint, name: str) -> Place:
    """Where a tensor of their model lies, by its name of today or an older one."""
    name = name.replace(".experts.theirs.", ".experts.")  # biases of units are resident
    place = print_.known.get(name) or print_.known.get(name.replace(_NAME, _OLDER_NAME))
    if place is not None:
        return place
    raise CheckpointError(f"{print_.folder} holds no {name}, which transformers' model wants; leave --exact out")


def _besides(config: PragnosiaConfig, itemsize: int, tokens: int) -> int:
    """Bytes that transformers' modules take beside what ours do, while a prompt of so many tokens is read at once.

    The eager attention's scores, their softmax in single precision and the mask; keys and values of the state before
    and the state after; an expert's rows; and the code of products, one for each number of rows that an expert gets.
    """
    attention, organ = config.attention, config.experts
    assert organ is not None
    assert attention.head_dim is not None
    scores = tokens * tokens * (attention.num_heads * (8 + 2 * itemsize) + 8)
    keys = 2 * config.num_hidden_layers * attention.num_key_value_heads * attention.head_dim * tokens * itemsize
    repeated = 4 * attention.num_heads * attention.head_dim * tokens * itemsize
    rows = tokens * (6 * organ.unit_width * 4 + organ.thalamus.num_awake * (organ.num_units + 1) * 16)
    return int(scores + keys + repeated + rows) + 2 * PRODUCTS
