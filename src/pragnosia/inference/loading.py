"""Load a model directory, or say in one line why not. safetensors and JSON only; nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from pragnosia.checkpoints.admission import check_tokenizer_size
from pragnosia.checkpoints.blueprint import foreign_config
from pragnosia.checkpoints.gguf_header import gguf_in
from pragnosia.errors import CheckpointError, ConfigError, PragnosiaError, UserError
from pragnosia.inference.directory import (
    check_vocabulary,
    check_weights,
    first_line,
    is_foreign,
    read_values,
    require_tokenizer,
)
from pragnosia.inference.sparsity import put_to_sleep, read_sparsity
from pragnosia.inference.stream import UNLIMITED, Progress, load_streamed, load_whole
from pragnosia.inference.table import TableOnDisk
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import Cortex
from pragnosia.quantisation.index import is_packed, read_index


def load_model(
    directory: str | Path, dtype: torch.dtype | str = "auto", device: str = "cpu", progress: Progress | None = None
) -> Cortex:
    """The model in evaluation mode; other families' run as they lie, and report their progress.

    Raises CheckpointError for what is broken.
    Raises UserError for a device that is not there.
    """
    folder = Path(directory)
    check_device(device)
    if is_packed(folder):
        if dtype != "auto":
            raise UserError("a packed model runs in the type it computes in; leave the type out")
        return _packed(folder, torch.device(device), progress)
    if is_foreign(folder):
        asked = dtype if isinstance(dtype, torch.dtype) else None
        foreign: Any = load_whole(folder, asked, progress=progress)
        return foreign.to(device, asked)  # type: ignore[no-any-return]
    load_config(folder)
    check_weights(folder)
    from pragnosia.model.modeling import PragnosiaForCausalLM  # seconds, which whoever streams need not wait

    bars = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        # Mismatches are let through to be told below, by name.
        loaded: Any = PragnosiaForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except PragnosiaError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"cannot load {folder}: {first_line(error)}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
    model, info = loaded
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(name if isinstance(name, str) else f"{name[0]} {tuple(name[1])}" for name in info[problem])
        if names:
            raise CheckpointError(
                f"the weights in {folder} do not fit its config.json: {len(names)} {problem.replace('_', ' ')}, "
                f"first {names[0]}; save or import the model again"
            )
    sparsity = read_sparsity(folder)
    if sparsity is not None:
        put_to_sleep(model, sparsity.sites)
    return model.to(device).eval()  # type: ignore[no-any-return]


def _packed(folder: Path, device: torch.device, progress: Progress | None) -> Cortex:
    """A packed model; on a GPU only what torch has sparse products for. Raises UserError for another device."""
    if device.type == "cpu":
        return load_streamed(folder, UNLIMITED, progress=progress)[0]
    index = read_index(folder)
    if device.type != "cuda" or not index.entry.pruned or index.units_per_layer:
        raise UserError("a packed model runs on the CPU; on a GPU a dense one does whose weights are pruned 2:4")
    from pragnosia.quantisation.semi_structured import on_tensor_cores  # torch.sparse, which the CPU does without

    model: Any = load_streamed(folder, UNLIMITED, progress=progress)[0]
    on_tensor_cores(model, device)
    if isinstance(model.model.embed_tokens, TableOnDisk):
        model.model.embed_tokens.device = device
    return model  # type: ignore[no-any-return]


def load_config(directory: str | Path) -> PragnosiaConfig:
    """The configuration of a model directory. Raises CheckpointError, ConfigError for unknown keys."""
    if is_foreign(directory):
        return foreign_config(directory)
    values = read_values(directory)
    try:
        return PragnosiaConfig.from_dict(values)
    except (ConfigError, StrictDataclassError, TypeError) as error:
        raise ConfigError(f"{Path(directory) / 'config.json'}: {' '.join(str(error).split())}") from error


def check_device(device: str) -> None:
    """torch knows the device and reaches it. Raises UserError."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch built without CUDA asserts
        raise UserError(f"cannot use the device {device!r}: {first_line(error)}") from error


def load_tokenizer(directory: str | Path, vocab_size: int, digest: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. Raises CheckpointError if there is none, or it is another model's.

    `digest` is what the model says of its vocabulary, None where it says nothing.
    """
    folder = Path(directory)
    require_tokenizer(folder)
    if (file := gguf_in(folder)) is not None:
        from pragnosia.checkpoints.gguf_tokenizer import gguf_tokenizer

        made = gguf_tokenizer(file)
        check_tokenizer_size(file, len(made), vocab_size)
        return made
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exception for a corrupt file
        raise CheckpointError(f"cannot read the tokenizer in {folder}: {first_line(error)}") from error
    check_tokenizer_size(folder, len(tokenizer), vocab_size)
    check_vocabulary(folder, digest)
    return tokenizer
