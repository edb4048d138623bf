"""Assembly: from a configuration to what a run works with. Everything that can be wrong is found here, before the loop.

tokenizer  ->  packed corpus  ->  model configuration  ->  does it fit in memory?  ->  model
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedTokenizerFast

from pragnosia.checkpoints.admission import most_padded
from pragnosia.data import (
    Batches,
    Corpus,
    Curriculum,
    PackingOptions,
    build_corpus,
    check_vocabulary,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
    vocabulary_size,
)
from pragnosia.data.tokenizer_training import check_vocab_size
from pragnosia.errors import BudgetError, ConfigError
from pragnosia.learning import LearningRule, learning_rule
from pragnosia.measure.accounting import account
from pragnosia.measure.limits import read_limits
from pragnosia.measure.memory import Memory, memory_to_train
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.presets import PRESETS
from pragnosia.spiking.neurogen_configuration import NeuroGenConfig
from pragnosia.training.configuration import TrainConfig
from pragnosia.training.curriculum import check_teacher, make_curriculum
from pragnosia.training.growing import check_elders, shape_at
from pragnosia.training.lobes import check_lobes, lobe_rule, mixture_of
from pragnosia.training.minds import is_spiking, spiking_config, spiking_memory
from pragnosia.training.progress import Reporter
from pragnosia.training.starting import begin_with, start_shape
from pragnosia.training.upbringing import check_budget, check_upbringing, first_shape
from pragnosia.units import format_bytes, format_count

if TYPE_CHECKING:
    from pragnosia.model.modeling import PragnosiaForCausalLM

TOKENIZER = "tokenizer.json"
_MOMENTS = {"adamw": 2, "adamw8bit": 0.5, "muon": 1}
# What says how many units an organ has -> what of the base no longer fits where that changes.
_DEPENDENT = (({"num_units", "width", "column_width"}, "lobes"), ({"width", "column_width"}, "thalamus"))


@dataclass(frozen=True)
class Materials:
    """What a run works with."""

    model: PragnosiaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    corpus: Corpus
    adult: Any
    """The shape that is configured; the model's own, unless it grows up in stages."""
    curriculum: Curriculum | None = None


def assemble(config: TrainConfig, out: Path, reporter: Reporter, checkpoint: Path | None = None) -> Materials:
    """Make or find the tokenizer in `out`, pack the text, build the model, of the shape it has at a checkpoint.

    Raises UserErrors.
    """
    device = find_device(config.device)
    tokenizer = prepare_tokenizer(config, out, reporter)
    adult = shape = shape_of(config, tokenizer)
    check_memory(config, adult, device)
    if isinstance(shape, PragnosiaConfig):
        check_budget(config, shape)
        shape = first_shape(config, shape)
        if checkpoint is not None:
            shape = shape_at(checkpoint, shape)
    corpus = prepare_corpus(config, tokenizer, out, reporter)
    curriculum = _curriculum(config, corpus, out, reporter)
    sow(config.seed)
    model = _made(shape)
    if config.start is not None and checkpoint is None:
        begin_with(model, config.start)
    if checkpoint is None:
        check_elders(config, model)
    model = model.to(device)
    if config.gradient_checkpointing:
        _checkpoint_activations(model)
    return Materials(model, tokenizer, corpus, adult, curriculum)


def check_plan(config: TrainConfig, out: Path) -> None:
    """What can be known before anything is made: the model, its memory, the rule, and whether there is text.

    Raises UserErrors.
    """
    adult = shape_of(config)
    check_memory(config, adult, find_device(config.device))
    check_upbringing(config, adult)
    check_lobes(config, adult)
    if config.rewiring is not None:
        config.rewiring.check(adult, config.rule)
    make_rule(config)
    if config.curriculum is not None:
        check_teacher(config.curriculum)
    mixture = mixture_of(config)
    if config.tokenizer.path is None and config.start is None and not (out / TOKENIZER).is_file():
        # Packing reads all text soon enough; training a tokenizer first would take minutes.
        check_vocab_size(config.tokenizer.vocab_size)
        mixture.check()


def make_rule(config: TrainConfig) -> LearningRule:
    """How the run learns. Raises ConfigError."""
    autocast = torch.bfloat16 if config.precision == "bf16" else None
    if config.lobes is not None:
        return lobe_rule(config, autocast)
    mind = "spiking model" if is_spiking(config.model) else "cortex"
    return learning_rule(config.rule, autocast=autocast, told=config.learning, mind=mind)


def _made(shape: PragnosiaConfig | NeuroGenConfig) -> Any:
    """The model of this shape, untrained; its class is slow to import, and tuning reads this file too."""
    if isinstance(shape, NeuroGenConfig):
        from pragnosia.spiking.neurogen import NeuroGenForCausalLM

        return NeuroGenForCausalLM(shape)
    from pragnosia.model.modeling import PragnosiaForCausalLM

    return PragnosiaForCausalLM(shape)


def _checkpoint_activations(model: PragnosiaForCausalLM) -> None:
    if hasattr(model, "activation_checkpointing_enable"):  # its name since some transformers 5
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]


def find_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises ConfigError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {name!r}, but torch sees no GPU here; use auto or cpu")
    return device


def sow(seed: int) -> None:
    """Seed every global random generator."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (libraries draw from the global one)
    torch.manual_seed(seed)


def prepare_tokenizer(config: TrainConfig, out: Path, reporter: Reporter) -> PreTrainedTokenizerFast:
    """The run's tokenizer: already in `out`, else copied there, else trained on the run's data."""
    if (out / TOKENIZER).is_file():
        return load_tokenizer(out)
    given = config.tokenizer.path or config.start
    if given is not None:
        tokenizer = load_tokenizer(given)
        save_tokenizer(tokenizer, out)
        return tokenizer
    wanted = config.tokenizer
    reporter.note(f"training a tokenizer of {wanted.vocab_size} tokens")
    sources = mixture_of(config).parts
    report = train_tokenizer(
        sources,
        wanted.vocab_size,
        out,
        kind=wanted.kind,
        max_bytes=wanted.max_bytes,
        temperature=wanted.temperature,
    )
    reporter.note(f"tokenizer: {report.vocab_size} tokens, {report.bytes_per_token:.2f} bytes per token")
    return load_tokenizer(out)


def prepare_corpus(config: TrainConfig, tokenizer: PreTrainedTokenizerFast, out: Path, reporter: Reporter) -> Corpus:
    """The packed text, from the cache where it was packed before."""
    options = PackingOptions(validation_fraction=config.data.validation_fraction)
    corpus = build_corpus(mixture_of(config), tokenizer, _cache(config, out), options)
    Batches(corpus, config.batch.batch_size, config.batch.sequence_length, config.seed)  # raises where text is short
    reporter.note(
        f"data: {format_count(corpus.train_tokens)} tokens to learn from, {corpus.bytes_per_token:.2f} bytes each; "
        f"{format_count(sum(part.validation.tokens for part in corpus.parts))} held out"
    )
    return corpus


def _cache(config: TrainConfig, out: Path) -> Path:
    return Path(config.data.cache) if config.data.cache else out / "data"


def _curriculum(config: TrainConfig, corpus: Corpus, out: Path, reporter: Reporter) -> Curriculum | None:
    if config.curriculum is None:
        return None
    batch, cache = config.batch, _cache(config, out)
    rows = batch.batch_size * batch.accumulation
    return make_curriculum(config.curriculum, corpus, batch.sequence_length, rows, out, cache, reporter)


def shape_of(config: TrainConfig, tokenizer: PreTrainedTokenizerFast | None = None) -> PragnosiaConfig | NeuroGenConfig:
    """The model's shape, of whatever kind it is. Raises ConfigError."""
    if is_spiking(config.model):
        wanted = config.tokenizer.vocab_size if config.tokenizer.path is None else None
        return spiking_config(config.model, wanted, tokenizer)
    return model_config(config, tokenizer)


def model_config(config: TrainConfig, tokenizer: PreTrainedTokenizerFast | None = None) -> PragnosiaConfig:
    """A cortex's shape: the preset with the given changes, and what the tokenizer says.

    Until it is there, it is taken to have as many tokens as are asked for. Raises ConfigError.
    """
    if is_spiking(config.model):
        raise ConfigError("model.kind is neurogen, and this is defined for a cortex alone; name another configuration")
    if config.start is not None:
        return start_shape(config.start, config.batch.sequence_length)
    given = dict(config.model)
    name = given.pop("preset", None)
    values = merged(PRESETS[name] if name is not None else {}, given)
    if tokenizer is None and "vocab_size" not in given and config.tokenizer.path is None:
        values["vocab_size"] = config.tokenizer.vocab_size
    if tokenizer is not None:
        if "vocab_size" in given:
            check_vocabulary(tokenizer, given["vocab_size"])
            if given["vocab_size"] > most_padded(len(tokenizer)):
                raise ConfigError(
                    f"model.vocab_size is {given['vocab_size']}, and the tokenizer has {len(tokenizer)} tokens: the "
                    "model could not be told from one that belongs to another; leave model.vocab_size out, or give "
                    "the tokenizer more text"
                )
        else:
            values["vocab_size"] = vocabulary_size(tokenizer)
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            values.setdefault(key, getattr(tokenizer, key))
    try:
        shape = PragnosiaConfig(**values)
    except (StrictDataclassError, TypeError) as error:
        raise ConfigError(f"model: {' '.join(str(error).split())}") from error
    if shape.max_position_embeddings < config.batch.sequence_length:
        raise ConfigError(
            f"batch.sequence_length is {config.batch.sequence_length}, the model holds "
            f"{shape.max_position_embeddings} tokens; shorten it or raise model.max_position_embeddings"
        )
    return shape


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with nested `changes`; another number of units drops what was made for the old one."""
    values = dict(base)
    for key, change in changes.items():
        inner = values.get(key)
        values[key] = merged(inner, change) if isinstance(inner, Mapping) and isinstance(change, Mapping) else change
    for keys, dependent in _DEPENDENT:
        if changes.keys() & keys and dependent not in changes:
            values.pop(dependent, None)
    return values


def needed_memory(config: TrainConfig, shape: PragnosiaConfig | NeuroGenConfig) -> Memory:
    """What training takes, by what holds it."""
    tokens = config.batch.batch_size * config.batch.sequence_length
    moments = _MOMENTS[config.optimiser.name] + (config.ema is not None)
    if isinstance(shape, NeuroGenConfig):
        return spiking_memory(shape, tokens=tokens, moments=moments)
    return memory_to_train(
        account(shape, precision="float32"),
        tokens=tokens,
        checkpointing=config.gradient_checkpointing,
        moments=moments,
    )


def check_memory(config: TrainConfig, shape: PragnosiaConfig | NeuroGenConfig, device: torch.device) -> None:
    """Raise BudgetError where training needs more memory than is free, before any is taken."""
    needed = needed_memory(config, shape).total
    on_gpu = device.type == "cuda"
    free = int(torch.cuda.mem_get_info(device)[0]) if on_gpu else read_limits().memory_available
    if needed > free:
        raise BudgetError(
            f"training needs about {format_bytes(needed)}, {format_bytes(free)} are free; take a smaller preset or "
            "batch.batch_size, or set gradient_checkpointing: true"
        )
