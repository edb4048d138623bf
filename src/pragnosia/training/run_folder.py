"""The folder of a run: who may start in it, and whether a resumed run is still the same run.

run/
    train.yaml              the configuration, complete
    config.json, model.safetensors, tokenizer …    the model, once trained
    ema/                    the averaged model, where it stands beside
    log.jsonl, tensorboard/, curves.png, report.json, report.html
    checkpoints/, data/     see checkpoint.py; the packed text
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pragnosia.data import vocabulary_digest
from pragnosia.errors import ConfigError
from pragnosia.training.checkpoint import Checkpoints, write_whole
from pragnosia.training.configuration import TrainConfig, read_config
from pragnosia.training.log import LOG

SETTINGS = "train.yaml"
COMPARISON = "compare.yaml"
CHECKPOINTS = "checkpoints"
REPORT = "report.json"
_TOKENIZER = ("tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt")
# What a resumed run may see differently without becoming another run.
_FREE = ("steps", "tokens", "logging", "checkpoint", "data.cache", "device")


def open_run(out: Path, config: TrainConfig, *, resume: bool) -> Path | None:
    """Make the folder ready; the checkpoint to go on from, or None to begin. Raises ConfigError."""
    try:
        return _open_run(out, config, resume)
    except OSError as error:
        raise ConfigError(f"cannot write the run folder {out}: {error.strerror}; choose another --out") from error


def is_run(out: Path) -> bool:
    """Whether a run has begun in `out`."""
    return (out / SETTINGS).is_file()


def _open_run(out: Path, config: TrainConfig, resume: bool) -> Path | None:
    held = is_run(out)
    if out.exists() and not held and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty and holds no run; choose another --out")
    checkpoints = Checkpoints(out / CHECKPOINTS, config.checkpoint.keep)
    checkpoints.sweep()
    latest = checkpoints.latest()
    if held and resume:
        _check_same_run(out, config, latest)
    elif latest is not None:
        raise ConfigError(f"{out} already holds a run, saved as {latest.name}; add --resume or choose another --out")
    elif held:
        clear_run(out)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / SETTINGS, yaml.safe_dump(config.write(), sort_keys=False, allow_unicode=True))
    return latest


def make_shared_folder(out: Path, settings: str) -> None:
    """A folder for several runs of one comparison: new, empty, or of the same comparison. Raises ConfigError."""
    try:
        held = out / COMPARISON
        if held.is_file() and held.read_text(encoding="utf-8") != settings:
            raise ConfigError(f"{out} holds another comparison; choose another --out")
        if out.exists() and not held.is_file() and any(out.iterdir()):
            raise ConfigError(f"{out} is not empty and holds no comparison; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        write_whole(held, settings)
    except OSError as error:
        raise ConfigError(f"cannot write the folder {out}: {error.strerror}; choose another --out") from error


def differences(before: TrainConfig, now: TrainConfig) -> list[str]:
    """The keys that make another run of it, sorted."""
    old, new = dict(flat(before.write())), dict(flat(now.write()))
    changed = {key for key in old | new if old.get(key) != new.get(key)}
    return sorted(key for key in changed if not any(key == free or key.startswith(f"{free}.") for free in _FREE))


def _check_same_run(out: Path, config: TrainConfig, latest: Path | None) -> None:
    changed = differences(read_config(out / SETTINGS), config)
    if changed:
        raise ConfigError(
            f"cannot resume {out}: {', '.join(changed)} changed since the run was started; "
            "put it back (only steps, tokens, logging and checkpoint may change) or choose another --out"
        )
    if latest is not None and vocabulary_digest(out) != vocabulary_digest(latest):
        raise ConfigError(f"cannot resume {out}: its tokenizer.json is not the run's own; copy it back from {latest}")


def flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def clear_run(out: Path) -> None:
    """Remove what a run that never reached a checkpoint left behind."""
    for folder in (CHECKPOINTS, "tensorboard", "data"):
        shutil.rmtree(out / folder, ignore_errors=True)
    for pattern in (SETTINGS, LOG, *_TOKENIZER):
        for file in out.glob(pattern):
            file.unlink()
