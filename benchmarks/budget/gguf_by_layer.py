"""llama.cpp's file of a checkpoint where the disk cannot hold both: layer by layer, each deleted once it is there.

usage: gguf_by_layer.py LIKE FOLDER OUT. LIKE is the file that llama.cpp's own tool made of a checkpoint of the same
shape with fewer experts: from it come metadata, tensors and their types; FOLDER's checkpoint (checkpoint.py) is spent.
Its numbers are then those of the file that the tool would have made of all of it, byte for byte.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open

COUNT = "expert_count"
ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
PARTS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate_inp": "mlp.gate",
}


def sources(name: str, experts: int) -> list[str]:
    """The checkpoint's tensors that one of the file's is made of: one, or one of each expert."""
    whole = name.removesuffix(".weight")
    if whole in ENDS:
        return [f"{ENDS[whole]}.weight"]
    _, layer, part = whole.split(".")
    stacked = re.fullmatch(r"ffn_(gate|up|down)_exps", part)
    if stacked is None:
        return [f"model.layers.{layer}.{PARTS[part]}.weight"]
    return [f"model.layers.{layer}.mlp.experts.{unit}.{stacked[1]}_proj.weight" for unit in range(experts)]


def layer_of(name: str) -> int:
    """The layer; the ends come last, as in the checkpoint."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else 1 << 30


def numbers(files: dict[str, Path], names: list[str], plain: bool) -> np.ndarray[Any, Any]:
    """Of one of the file's tensors: single precision, or the bytes of bfloat16."""
    rows = []
    for name in names:
        with safe_open(files[name], framework="pt") as file:
            rows.append(file.get_tensor(name))
    whole = rows[0] if len(rows) == 1 else torch.stack(rows)
    return whole.float().numpy() if plain else whole.contiguous().view(torch.uint8).numpy()


def write(like: Path, folder: Path, out: Path) -> None:
    """The whole file; each of the checkpoint's is deleted as soon as it is spent."""
    known = gguf.GGUFReader(like)
    files = {name: file for file in sorted(folder.glob("*.safetensors")) for name in _names(file)}
    experts = 1 + max(int(found[1]) for name in files if (found := re.search(r"experts\.(\d+)\.", name)))
    writer = gguf.GGUFWriter(out, str(known.fields["general.architecture"].contents()))
    for name, field in known.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = experts if name.endswith(f".{COUNT}") else field.contents()
        writer.add_key_value(name, value, field.types[0], field.types[1] if len(field.types) > 1 else None)
    tensors = sorted(known.tensors, key=lambda tensor: layer_of(tensor.name))
    for tensor in tensors:
        shape = [int(side) for side in tensor.shape[::-1]]
        shape[0] = experts if tensor.name.endswith("_exps.weight") or "gate_inp" in tensor.name else shape[0]
        plain = tensor.tensor_type is gguf.GGMLQuantizationType.F32
        size = int(np.prod(shape)) * (4 if plain else 2)
        # what the library takes for bytes it wants with their own last side
        sides = shape if plain else [*shape[:-1], shape[-1] * 2]
        kind = np.dtype(np.float32 if plain else np.uint8)
        writer.add_tensor_info(tensor.name, sides, kind, size, None if plain else tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, spent in _with_what_is_spent(tensors, files, experts):
        plain = tensor.tensor_type is gguf.GGMLQuantizationType.F32
        writer.write_tensor_data(numbers(files, sources(tensor.name, experts), plain))
        for file in spent:
            file.unlink()
    writer.close()


def _with_what_is_spent(tensors: list[Any], files: dict[str, Path], experts: int) -> Iterator[tuple[Any, list[Path]]]:
    """Each tensor, and the files that nobody needs once it is written."""
    last = {files[source]: tensor.name for tensor in tensors for source in sources(tensor.name, experts)}
    for tensor in tensors:
        yield tensor, [file for file, name in last.items() if name == tensor.name]


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


if __name__ == "__main__":
    write(*(Path(word) for word in sys.argv[1:4]))
