"""A model directory from outside: its JSON, its weights' headers, its tokenizer's vocabulary. torch is not loaded."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pragnosia.checkpoints.admission import FAMILIES, check_readable, unsupported
from pragnosia.checkpoints.gguf_config import known_architecture
from pragnosia.checkpoints.gguf_header import gguf_in, has_vocabulary, read_header
from pragnosia.data import vocabulary_digest
from pragnosia.errors import CheckpointError, unknown_name
from pragnosia.quantisation.index import is_packed, read_index

_FAMILY = "pragnosia"
# Files of which one set makes a tokenizer that transformers can load.
_TOKENIZERS = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("tekken.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
)
_TURNABLE = {  # as config.json calls them, ours and other families'
    "units": ("experts", "columns", "num_experts", "num_local_experts"),
    "exits": ("exits",),
    "gates": ("gates",),
}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def check_directory(directory: str | Path) -> None:
    """Raise CheckpointError for whatever of a model directory is missing, broken or foreign at first sight."""
    values = read_values(directory)
    check_weights(Path(directory))
    check_vocabulary(directory, values.get("tokenizer_digest"))


def check_speaker(directory: str | Path) -> None:
    """As `check_directory`, for what reads or says text: with a tokenizer; other families run as they lie."""
    if (file := gguf_in(directory)) is not None:
        known_architecture(read_header(file), file)
    elif is_foreign(directory):
        family = _read_values(directory)["model_type"]
        if family not in FAMILIES:
            raise unsupported(f"model family {family!r}")
        check_weights(Path(directory))
    else:
        check_directory(directory)
    require_tokenizer(directory)


def is_foreign(directory: str | Path) -> bool:
    """Whether a model directory was written by another library. Raises CheckpointError where it is none."""
    return gguf_in(directory) is not None or bool(_read_values(directory)["model_type"] != _FAMILY)


def turnable(directory: str | Path) -> frozenset[str]:
    """What a model has that the dial can turn, of units, exits and gates: nothing of a plain dense one.

    Raises CheckpointError as `is_foreign`.
    """
    if (file := gguf_in(directory)) is not None:
        experts = (value for key, value in read_header(file).metadata.items() if key.endswith(".expert_count"))
        return frozenset({"units"} if any(experts) else ())
    values = _read_values(directory)
    return frozenset(organ for organ, keys in _TURNABLE.items() if any(values.get(key) for key in keys))


def has_tokenizer(directory: str | Path) -> bool:
    """Whether a tokenizer lies there, or a GGUF file holds one; tokenizer_config.json alone only describes one."""
    if (file := gguf_in(directory)) is not None:
        return has_vocabulary(read_header(file))
    return any(all((Path(directory) / name).is_file() for name in names) for names in _TOKENIZERS)


def require_tokenizer(directory: str | Path) -> None:
    """Raise CheckpointError where no tokenizer lies beside the model."""
    if not has_tokenizer(directory):
        raise CheckpointError(
            f"{directory} holds no tokenizer.json; put the model's own there, or give token ids from Python "
            "(Pragnosia.generate_tokens)"
        )


def read_values(directory: str | Path) -> dict[str, Any]:
    """The config.json of a model directory of ours. Raises CheckpointError."""
    values = _read_values(directory)
    family = values["model_type"]
    if family != _FAMILY:
        raise CheckpointError(
            f"{directory} is a {family!r} model, not a pragnosia one; turn it into one with: "
            f"pragnosia import {directory} OUT"
        )
    return values


def _read_values(directory: str | Path) -> dict[str, Any]:
    path = Path(directory) / "config.json"
    if not Path(directory).is_dir():
        raise CheckpointError(f"no model directory at {directory}; train one (pragnosia train) or import one")
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{directory} holds no config.json, {_instead(Path(directory))}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a JSON {type(values).__name__}, expected an object; copy it again")
    if values.get("model_type") is None:
        raise CheckpointError(f"{path} names no model_type, expected {_FAMILY!r}; copy it again")
    return values


def _instead(folder: Path) -> str:
    """What a directory without a config.json is; a run that was stopped has models inside."""
    saved = sorted(path.parent for path in folder.glob("checkpoints/step-*/config.json"))
    if saved:
        return (
            f"for its run was stopped; use its newest checkpoint, {saved[-1]}, or finish the run: train with --resume"
        )
    if (folder / "train.yaml").is_file():
        return "for its run was stopped before its first checkpoint; go on with it: train with --resume"
    return "so it is no model directory"


def has_weights(folder: Path) -> bool:
    """Whether there is anything for `check_weights` to look at."""
    return gguf_in(folder) is not None or is_packed(folder) or (folder / INDEX).exists() or (folder / WEIGHTS).exists()


def check_weights(folder: Path) -> None:
    """Every shard the index names is there and whole. Raises CheckpointError naming the file."""
    if (file := gguf_in(folder)) is not None:
        known_architecture(read_header(file), file)
        return
    if is_packed(folder):
        read_index(folder)
        return
    index = folder / INDEX
    names = [WEIGHTS]
    if index.exists():
        try:
            shards = json.loads(index.read_text("utf-8"))["weight_map"].values()
            names = sorted({Path(shard).name for shard in shards})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index} is not a valid index of shards: {first_line(error)}") from error
    for name in names:
        path = folder / name
        if not path.is_file():
            pickled = any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors"))
            why = "its .bin files are pickled, which we do not open; save them as safetensors" if pickled else ""
            raise CheckpointError(f"{folder} has no {name}; {why or 'the model has no weights here, copy it again'}")
        check_readable(path)
        try:
            with safe_open(path, framework="np") as shard:  # only the header: any framework does, numpy is quick
                shard.keys()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is truncated or corrupt ({first_line(error)}); copy it again") from error


def check_vocabulary(directory: str | Path, digest: Any) -> None:
    """Raise CheckpointError where the tokenizer is not the one the model was saved with; without a digest, any will do.

    Two vocabularies of one size look alike to every other check, and the model would speak nonsense.
    """
    found = vocabulary_digest(directory)
    if digest is not None and found is not None and found != digest:
        raise CheckpointError(
            f"the tokenizer in {directory} belongs to another model: its vocabulary is not the one the model was saved "
            "with; put the model's own tokenizer.json back"
        )


def neither(model: str, presets: Collection[str]) -> str:
    """What to say of a name that is no model directory, no GGUF file and no preset."""
    if Path(model).is_file():
        return f"{model} is a file, and no GGUF file; name the directory of a model, or a preset"
    if Path(model).name != model:  # somebody meant a path
        return f"no model directory at {model}; name one, a GGUF file or a preset ({', '.join(presets)})"
    return unknown_name("preset", model, presets) + "; and there is no directory of that name"


def first_line(error: BaseException) -> str:
    """What an error says, cut to one line."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]
