"""Training in one pass: a text is read once by a coincidence learner, the held-out part scored, the model saved.

There is no loop to configure: `model` (with `kind: coincidence`) and `data` are all that a configuration says.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from jaxtyping import Int
from torch import Tensor

from pragnosia.data import Mixture, load_tokenizer, train_tokenizer
from pragnosia.data.sources import Texts
from pragnosia.data.splitting import by_document, by_tail, check_fraction, fair
from pragnosia.data.tokenizer_training import MIN_VOCAB_SIZE
from pragnosia.data.whole import whole_folder
from pragnosia.errors import ConfigError, DataError, unknown_name
from pragnosia.learning.coincidence import Bytes, learn_text, score_text, sprout
from pragnosia.model.coincidence import CoincidenceConfig
from pragnosia.training.checkpoint import write_whole
from pragnosia.training.run_folder import REPORT, SETTINGS
from pragnosia.training.snapshot import save_model

_SECTIONS = {"model": None, "data": ("sources", "validation_fraction")}


@dataclass(frozen=True, kw_only=True)
class OnePassReport:
    """What one pass came to."""

    out: str
    bytes: int
    """Learned."""
    bits_per_byte: float
    """On held-out text, the weights still; NaN where nothing was held out."""
    bits_per_byte_learned: float
    """Of the learned text, each byte before it was learned."""
    bytes_per_second: float
    seconds: float


def check_settings(values: Mapping[str, Any]) -> None:
    """Raise ConfigError for a section or key that one pass has no use for."""
    for section, content in values.items():
        if section not in _SECTIONS:
            raise ConfigError(unknown_name("section of a one-pass configuration", section, _SECTIONS))
        if not isinstance(content, Mapping):
            raise ConfigError(f"the section {section} is {content!r}; expected keys and values")
        for key in content:
            known = _SECTIONS[section]
            if known is not None and key not in known:
                raise ConfigError(unknown_name(f"key in {section}", key, known))


def train_once(values: Mapping[str, Any], out: Path, data: Sequence[str] = ()) -> OnePassReport:
    """Learn `data`, or what the settings name, and leave a model directory. Raises UserErrors."""
    check_settings(values)
    section = values.get("data", {})
    fraction = section.get("validation_fraction", 0.1)
    if not isinstance(fraction, int | float):
        raise ConfigError(f"data.validation_fraction is {fraction!r}; expected a number")
    check_fraction(fraction)
    shape = {key: value for key, value in values["model"].items() if key != "kind"}
    config = CoincidenceConfig(**{"vocab_size": MIN_VOCAB_SIZE} | shape)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; choose another --out")
    mixture = Mixture.parse(list(data) or section.get("sources", ["default"]))
    mixture.check()
    with whole_folder(out) as partial:
        train_tokenizer([Texts(["bytes"])], MIN_VOCAB_SIZE, partial)
        tokenizer = load_tokenizer(partial)
        config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
        alphabet = Bytes(tokenizer)
        learned, held = _split(mixture, alphabet, fraction)
        began = time.perf_counter()
        model = sprout(config, alphabet, learned)
        nats = sum(-float(learn_text(model, ids)[0].double().sum()) for ids in learned)
        seconds = time.perf_counter() - began
        held_nats = sum(-float(score_text(model, ids).double().sum()) for ids in held)
        save_model(model, tokenizer, partial)
        num_learned, num_held = sum(map(len, learned)), sum(map(len, held))
        report = OnePassReport(
            out=str(out),
            bytes=num_learned,
            bits_per_byte=held_nats / num_held / math.log(2) if num_held else math.nan,
            bits_per_byte_learned=nats / num_learned / math.log(2),
            bytes_per_second=num_learned / seconds,
            seconds=seconds,
        )
        written = {"model": dict(values["model"]), "data": {**section, "sources": list(data) or section.get("sources")}}
        write_whole(partial / SETTINGS, yaml.safe_dump(written, sort_keys=False, allow_unicode=True))
        write_whole(partial / REPORT, json.dumps(asdict(report), indent=1))
    return report


def _split(
    mixture: Mixture, alphabet: Bytes, fraction: float
) -> tuple[list[Int[Tensor, " T"]], list[Int[Tensor, " T"]]]:
    """What is learned and what is held out, in ids; by document where that is fair, else every document's end."""
    for split in (by_document, by_tail):
        parts = [split(text, fraction) for text in mixture.documents()]
        learned, held = ([alphabet.encode(part[side]) for part in parts if part[side]] for side in (0, 1))
        if split is by_tail or fair(sum(map(len, learned)), sum(map(len, held)), fraction):
            break
    if not learned:
        raise DataError("there is no text to learn; give at least one document that is not empty")
    return learned, held
