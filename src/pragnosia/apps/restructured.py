"""What `grow`, `prune` and partly `sparsify` share: a model is opened, changed, measured twice, and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps.dialling import left_behind
from pragnosia.units import format_bytes, format_count

if TYPE_CHECKING:
    from torch import Tensor

    from pragnosia.model.cortex import Cortex

TOKENS, HELD_OUT = 4096, 16384
_LOOKED_AT = 256
Source = Annotated[Path, typer.Argument(metavar="MODEL", help="A model directory, ours or a supported family's.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="A directory to make.")]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", help="A text; what it costs is measured on its last part. Repeatable."),
]


def check_rate(learning_rate: float | None, recover: int) -> None:
    """Raise ConfigError for a rate that nothing is trained at."""
    from pragnosia.errors import ConfigError

    if learning_rate is not None and (not recover or learning_rate <= 0):
        raise ConfigError("--learning-rate is that of --recover, and greater than 0")


@dataclass
class Opened:
    """A model to change, and the text it is measured on."""

    source: Path
    model: Any
    kinds: dict[str, Any]
    """What each parameter is stored as."""
    tokenizer: Any
    seen: list[Tensor]
    held_out: list[Tensor] | None
    units: int | None
    size: int


def open_source(source: Path, out: Path, data: list[str] | None, tokens: int) -> Opened:
    """In single precision. Raises UserErrors."""
    from pragnosia.checkpoints.admission import check_vacant, check_wide_awake
    from pragnosia.data.specs import resolve
    from pragnosia.errors import CheckpointError
    from pragnosia.inference.directory import check_speaker, check_weights, is_foreign
    from pragnosia.quantisation.index import is_packed
    from pragnosia.tuning.admission import check_directory_of_tensors

    for name in data or []:
        resolve(name)
    check_directory_of_tensors(source, "restructure")
    if data:
        check_speaker(source)
    foreign = is_foreign(source)
    check_wide_awake(source)
    if is_packed(source):
        raise CheckpointError(
            f"{source} is packed, and packed units keep their number; change the model it was made from, then pack that"
        )
    if not foreign:
        check_weights(source)
    check_vacant(out)
    from pragnosia.checkpoints.blueprint import blueprint
    from pragnosia.inference.loading import load_model, load_tokenizer

    print_ = blueprint(source)
    config = print_.config
    seen: list[Tensor] = []
    held_out, tokenizer = None, None
    if data:
        tokenizer = load_tokenizer(source, int(config.vocab_size), config.tokenizer_digest)
        seen, held_out = _windows(data, tokenizer, config, tokens)
    import torch

    model: Any = load_model(source, torch.float32)
    kinds = {name: print_.dtype(name) for name, _ in model.named_parameters() if name in print_.shapes}
    units = None if config.units is None else config.units.num_units
    size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    return Opened(source, model, kinds, tokenizer, seen, held_out, units, size)


def _windows(data: list[str], tokenizer: Any, config: Any, tokens: int) -> tuple[list[Tensor], list[Tensor]]:
    """Windows of tokens (T,) from all over a text: to look on at and learn from, and held out. Raises DataError."""
    from pragnosia.data import Joined, resolve
    from pragnosia.data.pieces import pieces
    from pragnosia.measure.calibration import WINDOW, cut

    length, size = min(int(config.max_position_embeddings), WINDOW), int(config.vocab_size)
    texts = pieces(Joined(tuple(resolve(part) for part in data)))
    seen, held_out = (
        [window for window in cut(tokenizer, text, size, count, length) if len(window) > 1]
        for text, count in zip(texts, (tokens, HELD_OUT), strict=True)
    )
    return seen, held_out


def changed(
    opened: Opened, out: Path, change: Callable[[Cortex], None], learn: Callable[[Cortex], None] | None = None
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Change the model, measure it before and after, and write it: whole at `out` or not at all."""
    from pragnosia.measure.accounting import account

    model = opened.model
    looked_at = _tokens(opened)
    before, said = account(model), _logits(model, looked_at)
    bits_before = _bits(opened)
    change(model)
    apart = float((_logits(model, looked_at) - said).abs().max())
    bits_changed = _bits(opened)
    if learn is not None:
        learn(model)
    after = account(model)
    values: dict[str, Any] = {
        "source": str(opened.source),
        "out": str(out),
        "total_parameters_before": before.total_parameters,
        "total_parameters": after.total_parameters,
        "active_parameters_before": before.active_parameters,
        "active_parameters": after.active_parameters,
        "largest_logit_change": apart,
        "largest_logit": float(said.abs().max()),
        "units_before": opened.units,
        "units": None if model.config.units is None else model.config.units.num_units,
    }
    rows = [
        ("parameters", _became(before.total_parameters, after.total_parameters, format_count)),
        ("active", _became(before.active_parameters, after.active_parameters, format_count)),
    ]
    if bits_before is not None and bits_changed is not None:
        bits = _bits(opened) if learn is not None else bits_changed
        assert bits is not None
        values |= {"bits_per_byte_before": bits_before, "bits_per_byte": bits}
        recovered = ""
        if learn is not None:
            values["bits_per_byte_unrecovered"] = bits_changed
            recovered = f", {bits_changed:.4f} before recovery"
        held = sum(map(len, opened.held_out or []))
        told = f"{bits:.4f}, before {bits_before:.4f} ({bits / bits_before - 1:+.2%}){recovered}"
        rows += [("bits per byte", told), ("measured on", f"{held} tokens held out")]
    values |= {"file_bytes_before": opened.size, "file_bytes": _write(opened, out)}
    rows.append(("files", _became(opened.size, values["file_bytes"], format_bytes)))
    return values | {"not_carried": left_behind(opened.source)}, rows


def _write(opened: Opened, out: Path) -> int:
    """Bytes of the weights written."""
    from collections import Counter

    from transformers.utils import logging as transformers_logging

    from pragnosia.checkpoints.travel import carry
    from pragnosia.checkpoints.writer import new_directory

    model = opened.model
    usual = Counter(opened.kinds.values()).most_common(1)[0][0]
    for name, tensor in model.named_parameters():
        tensor.data = tensor.data.to(opened.kinds.get(name, usual))
    model.config.dtype = usual
    transformers_logging.disable_progress_bar()
    with new_directory(out) as folder:
        model.save_pretrained(folder)
        carry(opened.source, folder)
    return sum(file.stat().st_size for file in out.glob("*.safetensors"))


def _tokens(opened: Opened) -> Tensor:
    """(1, T): the first of the text held out, or any."""
    import torch

    config = opened.model.config
    length = min(_LOOKED_AT, int(config.max_position_embeddings))
    if opened.held_out:
        return opened.held_out[0][None, :length]
    return torch.randint(0, int(config.vocab_size), (1, length), generator=torch.Generator().manual_seed(0))


def _logits(model: Any, tokens: Tensor) -> Tensor:
    import torch

    with torch.inference_mode():
        logits: Tensor = model(tokens, use_cache=False).logits.float()
    return logits


def _bits(opened: Opened) -> float | None:
    from pragnosia.measure.held_out import bits_per_byte

    if not opened.held_out:
        return None
    return bits_per_byte(opened.model, opened.tokenizer, opened.held_out)


def _became(before: int, after: int, written: Callable[[int], str]) -> str:
    return f"{written(after)}, before {written(before)} ({after / before - 1:+.0%})"
