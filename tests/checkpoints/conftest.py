"""One tiny random transformers model of each family, saved, imported and exported once for all tests; or as GGUF."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pragnosia.checkpoints import export_model, import_model
from pragnosia.model.modeling import PragnosiaForCausalLM

try:
    import gguf
except ImportError:  # an extra
    gguf = None

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 32}
UNITS = {"num_experts": 5, "num_experts_per_tok": 2}

# What each family has that the others lack: switched on, so that nothing can hide.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3, "head_dim": 12},
    "mistral": {"sliding_window": 7, "head_dim": 8},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 9,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
        "rope_parameters": YARN,
    },
    "qwen3": {"head_dim": 12, "attention_bias": True},
    "qwen3_moe": {
        **UNITS,
        "head_dim": 12,
        "moe_intermediate_size": 16,
        "mlp_only_layers": [1],
        "norm_topk_prob": True,
    },
    "mixtral": {"num_local_experts": 4, "sliding_window": 11},
    "olmoe": {**UNITS, "clip_qkv": 0.8, "attention_bias": True},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 6},
}
CONFIGS["gpt_oss"]["rope_parameters"] = YARN | {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}


@dataclass(frozen=True)
class Specimen:
    """A model and where it went."""

    theirs: transformers.PreTrainedModel
    source: Path
    imported: Path
    exported: Path

    @property
    def ours(self) -> PragnosiaForCausalLM:
        """The imported model, loaded afresh."""
        return PragnosiaForCausalLM.from_pretrained(self.imported).eval()


def random_model(family: str, **changes: Any) -> transformers.PreTrainedModel:
    """A transformers model whose every parameter (norms, biases and sinks too) is random."""
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **CONFIGS[family], **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4, generator=generator)
    return model


@pytest.fixture(scope="session")
def specimen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Specimen]:
    """`specimen(family)`: there and back again."""

    @cache
    def made(family: str) -> Specimen:
        folder = tmp_path_factory.mktemp(family)
        theirs = random_model(family)
        theirs.save_pretrained(folder / "hf")
        import_model(folder / "hf", folder / "ours")
        export_model(folder / "ours", folder / "back")
        return Specimen(theirs, folder / "hf", folder / "ours", folder / "back")

    return made


@pytest.fixture(scope="session")
def make_model() -> Callable[..., transformers.PreTrainedModel]:
    """`make_model(family, **changes)`."""
    return random_model


ARCHITECTURES = {"mistral": "llama", "mixtral": "llama", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss"}
# What a GGUF file cannot say, switched off; rows of whole blocks.
CHANGES: dict[str, dict[str, Any]] = {
    "llama": {"mlp_bias": False},
    "qwen2": {"use_sliding_window": False},
    "qwen3_moe": {"moe_intermediate_size": 32, "mlp_only_layers": []},
    "olmoe": {"attention_bias": False},
}
# Bytes of a block that hold its scales, in half precision; the library quantises to these types nowhere but in C++.
SCALES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def stored(tensor: torch.Tensor, kind: str) -> tuple[np.ndarray, str, torch.Tensor]:
    """Rows as a file holds them, in which type, and what they stand for."""
    values = tensor.float().numpy()
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    if values.ndim < 2 or values.shape[-1] % block:
        return values, "F32", tensor
    if kind in SCALES:
        blocks = np.random.default_rng(values.size).integers(0, 256, (values.size // block, size), dtype=np.uint8)
        for at in SCALES[kind]:
            blocks[:, at : at + 2] = np.full((len(blocks), 1), 0.0008 if kind == "Q6_K" else 0.003, "<f2").view(
                np.uint8
            )
        rows = blocks.reshape(*values.shape[:-1], -1)
    else:
        rows = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    back = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind])
    return rows, kind, torch.from_numpy(np.array(back)).view(tensor.shape)


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp wants queries and keys of the llama architecture."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(folder: Path, path: Path, kind: str, change: Callable[[Any], None] | None = None) -> None:
    """A Hugging Face directory as a GGUF file; its weights become what the file's stand for."""
    values = json.loads((folder / "config.json").read_text())
    tensors, back = load_file(folder / "model.safetensors"), {}
    family, layers = values["model_type"], values["num_hidden_layers"]
    name = ARCHITECTURES.get(family, family)
    writer = gguf.GGUFWriter(path, name)
    write_metadata(writer, values)
    architecture = next(key for key, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
    names = gguf.get_tensor_name_map(architecture, layers)
    stacks: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    kinds: dict[str, str] = {}

    def add(theirs: str, rows: np.ndarray, held: str) -> None:
        called = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert called is not None, theirs
        writer.add_tensor(called, rows, raw_dtype=None if held in ("F32", "F16") else gguf.GGMLQuantizationType[held])

    for theirs, tensor in tensors.items():
        unit = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", theirs)
        if unit is not None:
            rows, held, back[theirs] = stored(tensor, kind)
            inner = unit[1].removeprefix("model.").replace("block_sparse_moe", "feed_forward")
            whole = f"{inner if family == 'mixtral' else unit[1]}.{unit[3]}.weight"
            stacks[whole][int(unit[2])], kinds[whole] = rows, held
        elif re.search(r"experts\.\w+_proj", theirs):
            back[theirs] = add_gpt_oss(add, theirs, tensor, kind)
        else:
            rows, held, back[theirs] = stored(tensor, "F32" if re.search(r"(gate|router)\.weight", theirs) else kind)
            if name == "llama" and re.search(r"\.[qk]_proj\.", theirs):
                rows = permuted(rows, values["num_attention_heads" if ".q_" in theirs else "num_key_value_heads"])
            add(theirs if not theirs.endswith("sinks") else f"{theirs}.weight", rows, held)
    for theirs, units in stacks.items():
        add(theirs, np.stack([units[unit] for unit in range(len(units))]), kinds[theirs])
    if values["rope_parameters"]["rope_type"] == "llama3":
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        plain = values["rope_parameters"]["rope_theta"] ** -(np.arange(0, values["head_dim"], 2) / values["head_dim"])
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32))
    if change is not None:
        change(writer)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    save_file(
        {key: tensor.contiguous() for key, tensor in back.items()}, folder / "model.safetensors", {"format": "pt"}
    )


def add_gpt_oss(add: Callable[..., None], theirs: str, tensor: torch.Tensor, kind: str) -> torch.Tensor:
    """Gate and up lie apart in the file, and matrices turned."""
    is_bias = theirs.endswith("_bias")
    laid = tensor if is_bias else tensor.transpose(1, 2)  # (U, out[, in])
    rows, held, back = stored(laid.contiguous(), "F32" if is_bias else kind)
    layer, _, part = theirs.removesuffix("_bias").rpartition(".")
    ending = "bias" if is_bias else "weight"
    if part == "gate_up_proj":
        for at, one in enumerate(("gate_proj", "up_proj")):
            add(f"{layer}.{one}.{ending}", np.ascontiguousarray(rows[:, at::2]), held)
    else:
        add(f"{layer}.{part}.{ending}", rows, held)
    return back if is_bias else back.transpose(1, 2)


def write_metadata(writer: Any, values: dict[str, Any]) -> None:
    writer.add_block_count(values["num_hidden_layers"])
    writer.add_context_length(values["max_position_embeddings"])
    writer.add_embedding_length(values["hidden_size"])
    writer.add_feed_forward_length(values["intermediate_size"])
    writer.add_head_count(values["num_attention_heads"])
    writer.add_head_count_kv(values["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(values["rms_norm_eps"])
    if values.get("head_dim"):
        writer.add_key_length(values["head_dim"])
        writer.add_value_length(values["head_dim"])
    rope = values["rope_parameters"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if units := values.get("num_experts", values.get("num_local_experts")):
        writer.add_expert_count(units)
        writer.add_expert_used_count(values["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(values.get("moe_intermediate_size", values["intermediate_size"]))
    if values.get("sliding_window"):
        writer.add_sliding_window(values["sliding_window"])
    if values.get("clip_qkv"):
        writer.add_clamp_kqv(values["clip_qkv"])
    for name in ("bos", "eos"):
        getattr(writer, f"add_{name}_token_id")(values[f"{name}_token_id"])


@pytest.fixture
def written(make_model, tmp_path: Path) -> Callable[..., tuple[transformers.PreTrainedModel, Path]]:
    """`written(family, kind)`: transformers' model of what the file says, and the file."""

    pytest.importorskip("gguf")

    def make(family: str, kind: str, change: Any = None, **changes: Any) -> tuple[transformers.PreTrainedModel, Path]:
        sizes = {"intermediate_size": 64, **CHANGES.get(family, {}), **changes}
        make_model(family, **sizes).save_pretrained(tmp_path / "hf")
        write_gguf(tmp_path / "hf", tmp_path / "model.gguf", kind, change)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
        return theirs, tmp_path / "model.gguf"

    return make


@pytest.fixture
def describe() -> Callable[[Any, dict[str, Any]], None]:
    """`describe(writer, config.json)`: the metadata of a file."""
    return write_metadata
