"""Admission: what may come in and go out, said before anything heavy is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pragnosia.checkpoints.gguf_header import gguf_in, read_header
from pragnosia.errors import CheckpointError, UnsupportedArchitectureError

OURS = "pragnosia"
SPARSITY = "sparsity.json"
"""Beside a sparsified model's config.json: which inputs of its layers sleep."""

# An export of a model that came from nowhere takes the first that can express it.
FAMILIES: dict[str, str] = {
    "llama": "pragnosia.checkpoints.llama:Llama",
    "mistral": "pragnosia.checkpoints.mistral:Mistral",
    "qwen2": "pragnosia.checkpoints.qwen2:Qwen2",
    "qwen3": "pragnosia.checkpoints.qwen3:Qwen3",
    "mixtral": "pragnosia.checkpoints.mixtral:Mixtral",
    "qwen3_moe": "pragnosia.checkpoints.qwen3_moe:Qwen3Moe",
    "olmoe": "pragnosia.checkpoints.olmoe:Olmoe",
    "gpt_oss": "pragnosia.checkpoints.gpt_oss:GptOss",
}


def check_source(source: Path) -> None:
    """Raise CheckpointError unless a model of another family may stand at `source`."""
    file = gguf_in(source)
    if source.is_file() and file is None:
        if source.suffix != ".bin":
            raise UnsupportedArchitectureError(
                f"{source} is no checkpoint we read; expected a directory of safetensors, a .gguf file or a llama2.c "
                ".bin file"
            )
        return
    if not source.exists():
        raise CheckpointError(
            f"{source} does not exist; expected a model directory, a .gguf file or a llama2.c .bin file"
        )
    if file is not None:
        read_header(file)
        return
    if read_json(source / "config.json").get("model_type") == OURS:
        raise CheckpointError(
            f"{source} is a pragnosia model already: use it as it is, copy the directory, or turn it into another "
            f"family's with: pragnosia export {source} OUT"
        )


def unsupported(what: str) -> UnsupportedArchitectureError:
    """The error that names what we cannot read, and lists what we can."""
    return UnsupportedArchitectureError(
        f"{what} is not supported. Supported: {', '.join(FAMILIES)}, also as GGUF; llama2.c .bin files"
    )


def check_vacant(out: Path) -> None:
    """Raise CheckpointError if `out` exists and is not an empty directory."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise CheckpointError(f"{out} already exists and is not an empty directory; choose another or remove it")


def check_readable(path: Path) -> None:
    """Raise CheckpointError for a file that is there and cannot be opened: safetensors calls it missing."""
    try:
        with path.open("rb"):
            pass
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def most_padded(num_tokens: int) -> int:
    """The largest vocabulary that a model with a tokenizer of so many tokens may have."""
    return int(1.1 * num_tokens + 256)


def check_tokenizer_size(folder: Path, num_tokens: int, vocab_size: int) -> None:
    """Raise CheckpointError unless a tokenizer of `num_tokens` may be that of a model of `vocab_size`.

    A vocabulary is often padded a little past its tokenizer; far past, the two never belonged together.
    """
    if not num_tokens <= vocab_size <= most_padded(num_tokens):
        raise CheckpointError(
            f"the tokenizer in {folder} knows {num_tokens} tokens, the model {vocab_size}; "
            "it belongs to another model; put the model's own there"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises CheckpointError when it is missing, unreadable or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; expected a model directory with {path.name} in it") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # both what is not UTF-8 and what is not JSON
        raise CheckpointError(f"{path} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def check_wide_awake(folder: Path) -> None:
    """Raise CheckpointError for a sparsified model: it means what it means only with its thresholds."""
    if (folder / SPARSITY).is_file():
        raise CheckpointError(
            f"{folder} is sparsified and runs whole in memory as it is (generate, chat, eval); for anything else take "
            "the model it was made from"
        )
