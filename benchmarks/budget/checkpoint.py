"""The checkpoint that all engines run: a Qwen3-MoE of random weights, 7.97 GB of bfloat16, as it lies on a hub.

usage: checkpoint.py OUT [LAYERS EXPERTS AWAKE HIDDEN WIDTH VOCABULARY]; the default is 12 64 4 2048 768 32000.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from _peers import Mixture, large


def write(out: Path, mixture: Mixture) -> None:
    """One file per layer, so that no more than a layer is ever in memory."""
    layers, experts, hidden, width = mixture.layers, mixture.units, mixture.width, mixture.unit_width
    queries, keys = mixture.heads * mixture.head_width, mixture.key_heads * mixture.head_width
    out.mkdir(parents=True, exist_ok=True)
    generator, places = torch.Generator().manual_seed(0), {}

    def normal(*size: int, std: float = 0.02) -> torch.Tensor:
        return (torch.randn(*size, generator=generator) * std).to(torch.bfloat16)

    def ones(size: int) -> torch.Tensor:
        return torch.ones(size, dtype=torch.bfloat16)

    def save(number: int, tensors: dict[str, torch.Tensor]) -> None:
        name = f"model-{number:05}-of-{layers + 1:05}.safetensors"
        save_file(tensors, out / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, name))

    for layer in range(layers):
        name = f"model.layers.{layer}"
        tensors = {
            f"{name}.input_layernorm.weight": ones(hidden),
            f"{name}.post_attention_layernorm.weight": ones(hidden),
            f"{name}.self_attn.q_proj.weight": normal(queries, hidden),
            f"{name}.self_attn.k_proj.weight": normal(keys, hidden),
            f"{name}.self_attn.v_proj.weight": normal(keys, hidden),
            f"{name}.self_attn.o_proj.weight": normal(hidden, queries),
            f"{name}.self_attn.q_norm.weight": ones(mixture.head_width),
            f"{name}.self_attn.k_norm.weight": ones(mixture.head_width),
            f"{name}.mlp.gate.weight": normal(experts, hidden),
        }
        for expert in range(experts):
            for part, size in (("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width))):
                tensors[f"{name}.mlp.experts.{expert}.{part}_proj.weight"] = normal(*size)
        save(layer + 1, tensors)
        print(f"layer {layer + 1}/{layers}", flush=True)
    ends = {"model.norm.weight": ones(hidden), "lm_head.weight": normal(mixture.vocabulary, hidden)}
    save(layers + 1, ends | {"model.embed_tokens.weight": normal(mixture.vocabulary, hidden, std=1.0)})
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config = mixture.theirs(bos_token_id=0, eos_token_id=1, dtype=torch.bfloat16)
    (out / "config.json").write_text(json.dumps(_as_on_a_hub(config), indent=1))
    _tokenizer(mixture.vocabulary).save_pretrained(out)
    about = out / "tokenizer_config.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))


def _as_on_a_hub(config: Qwen3MoeConfig) -> dict[str, Any]:
    """With the keys that Qwen3-MoE was published with, which every version of every engine knows."""
    values: dict[str, Any] = json.loads(config.to_json_string())
    values["num_experts"] = values.pop("num_local_experts", config.num_experts)
    values["torch_dtype"] = values.pop("dtype")
    values["rope_theta"] = values.pop("rope_parameters")["rope_theta"]
    return values


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Bytes, and as many pairs of them as fill the vocabulary."""
    letters = sorted(ByteLevel.alphabet())
    pairs = [(a, b) for a in letters for b in letters][: vocabulary - 2 - len(letters)]
    tokens = ["<|bos|>", "<|eos|>", *letters, *(a + b for a, b in pairs)]
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, pairs))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|bos|>", eos_token="<|eos|>")


if __name__ == "__main__":
    write(Path(sys.argv[1]), large(*(int(word) for word in sys.argv[2:])))
