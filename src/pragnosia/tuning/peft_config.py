"""adapter_config.json, as PEFT writes it: read strictly, for a field passed over would be another function.

    scale of a module = alpha / r, with use_rslora alpha / sqrt(r)      (Kalajdzievski 2023, arXiv 2312.03732)

`rank_pattern` and `alpha_pattern` map regular expressions over the ends of names to other numbers.
Format: https://huggingface.co/docs/peft/developer_guides/checkpoint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pragnosia.checkpoints.admission import check_readable, read_json
from pragnosia.errors import CheckpointError
from pragnosia.tuning.configuration import LoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# The first version that lays out parameters of three axes (U, out, in) as it does linear layers; before, it took every
# such parameter for (U, in, out).
LAYOUT_VERSION = "0.19.0"
# Fields that change nothing in what a finished adapter computes.
_SILENT = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
_READ = {
    "alpha_pattern",
    "bias",
    "init_lora_weights",
    "lora_alpha",
    "peft_type",
    "peft_version",
    "r",
    "rank_pattern",
    "target_parameters",
    "use_rslora",
}
# Ways to start that leave the base weights as they were; the others move a part of them into the adapter.
_HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class PeftConfig:
    """What of adapter_config.json decides the function."""

    path: Path
    rank: int
    alpha: float
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    target_parameters: tuple[str, ...] = ()
    parameters_lie_turned: bool = False
    """Whether a version before LAYOUT_VERSION wrote it."""

    def rank_of(self, name: str) -> int:
        """r of a module or parameter."""
        return int(self._pattern(self.rank_pattern, name, self.rank))

    def scale_of(self, name: str) -> float:
        """What B A of a module or parameter is multiplied by."""
        rank, alpha = self.rank_of(name), float(self._pattern(self.alpha_pattern, name, self.alpha))
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def targets_parameter(self, name: str) -> bool:
        """Whether a parameter is adapted."""
        return any(name == target or name.endswith(f".{target}") for target in self.target_parameters)

    def _pattern(self, patterns: Mapping[str, Any], name: str, default: Any) -> Any:
        for pattern, value in patterns.items():
            try:
                if re.match(rf"(.*\.)?({pattern})$", name):
                    return value
            except re.error as error:
                raise CheckpointError(f"{self.path}: {pattern!r} is no regular expression ({error})") from error
        return default


def check_adapter(folder: str | Path) -> PeftConfig:
    """Configuration of an adapter whose files are there. Raises CheckpointError; torch is not loaded."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"no adapter at {folder}; expected a directory with {CONFIG} and {WEIGHTS}")
    if not (folder / CONFIG).exists():
        raise CheckpointError(f"{folder} holds no {CONFIG}, so it is no adapter")
    if not (folder / WEIGHTS).exists():
        pickled = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
        if pickled:
            raise CheckpointError(
                f"{folder} holds a pickled adapter ({pickled[0]}), which can run code when opened; load it where you "
                "trust it, and save it again with PeftModel.save_pretrained, which writes safetensors"
            )
        raise CheckpointError(f"{folder} holds no {WEIGHTS}; the adapter is incomplete, fetch that file again")
    check_readable(folder / WEIGHTS)
    return read_peft_config(folder / CONFIG)


def read_peft_config(path: Path) -> PeftConfig:
    """Raises CheckpointError for a kind of adapter that we do not compute, and names the field."""
    values = read_json(path)
    _check_kind(path, values)
    rank = _checked(path, "r", values.get("r", 8), _is_size, "a whole number of at least 1")
    alpha = _checked(path, "lora_alpha", values.get("lora_alpha", 8), _is_positive, "a number greater than 0")
    ranks = values.get("rank_pattern") or {}
    _checked(path, "rank_pattern", ranks, lambda value: _maps(value, _is_size), "names mapped to whole numbers")
    alphas = values.get("alpha_pattern") or {}
    _checked(
        path,
        "alpha_pattern",
        alphas,
        lambda value: _maps(value, _is_positive),
        "names mapped to numbers greater than 0",
    )
    listed = values.get("target_parameters") or []
    _checked(path, "target_parameters", listed, lambda value: isinstance(value, list), "a list of names")
    return PeftConfig(
        path=path,
        rank=int(rank),
        alpha=float(alpha),
        rslora=bool(values.get("use_rslora")),
        rank_pattern=ranks,
        alpha_pattern=alphas,
        target_parameters=tuple(str(name) for name in listed),
        parameters_lie_turned=_before(values.get("peft_version"), LAYOUT_VERSION),
    )


def peft_json(
    config: LoraConfig, ranks: Mapping[str, int], modules: Iterable[str], parameters: Iterable[str], base: str
) -> dict[str, Any]:
    """For adapter_config.json; `ranks` are those of names whose rank is not the configuration's."""
    patterns = {re.escape(name): rank for name, rank in ranks.items()}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "peft_version": LAYOUT_VERSION,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": _plain(config.alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": sorted(modules) or None,
        "target_parameters": sorted(parameters) or None,
        "rank_pattern": patterns,
        "alpha_pattern": {name: _plain(config.scale * rank) for name, rank in patterns.items()},
    }


def _check_kind(path: Path, values: Mapping[str, Any]) -> None:
    kind = values.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path}: peft_type is {kind!r}; we read only 'LORA'")
    bias, start = values.get("bias", "none"), values.get("init_lora_weights", True)
    if bias != "none":
        raise CheckpointError(f"{path}: bias is {bias!r}: it carries biases of the model, which we do not adapt")
    if start not in _HARMLESS_STARTS:
        raise CheckpointError(
            f"{path}: init_lora_weights is {start!r}, which changed the model's own weights; save it as a plain LoRA "
            "with PeftModel.save_pretrained(…, path_initial_model_for_weight_conversion=…)"
        )
    for key, value in values.items():
        if value and key not in _READ | _SILENT:
            raise CheckpointError(
                f"{path}: {key} is {value!r}, which we do not compute; train without it, or merge "
                "it with PEFT (merge_and_unload)"
            )


def _checked(path: Path, key: str, value: Any, fits: Callable[[Any], bool], expected: str) -> Any:
    if not fits(value):
        raise CheckpointError(f"{path}: {key} is {value!r}, expected {expected}")
    return value


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_size(value: Any) -> bool:
    return _is_positive(value) and value == int(value)


def _maps(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(fits(entry) for entry in value.values())


def _before(version: Any, border: str) -> bool:
    """Whether a version is older; the field came with 0.18, so without it, it is."""
    numbers = [int(part) for part in re.findall(r"\d+", str(version or ""))[:2]]
    return numbers < [int(part) for part in border.split(".")[:2]]


def _plain(value: float) -> float | int:
    """16.0 as 16, as PEFT has it."""
    return int(value) if value == int(value) else value
