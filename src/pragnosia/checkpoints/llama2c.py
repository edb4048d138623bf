"""llama2.c `.bin` checkpoints (version 0, float32), read as the Llama they are.

    header: 7 int32 = dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size (< 0: own head), seq_len
    then float32: token_embedding | rms_att wq wk wv wo rms_ffn w1 w2 w3, each for all layers | rms_final
                  | freq_cis_real freq_cis_imag (not needed) | wcls, if the vocabulary size is negative

Rotary pairs are (2i, 2i + 1) there and (i, i + K/2) here, so the rows of queries and keys are reordered.
Format: https://github.com/karpathy/llama2.c, run.c.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from pragnosia.checkpoints.source import Index, Shape
from pragnosia.errors import CheckpointError

_HEADER = struct.Struct("<7i")
_VERSIONED = 0x616B3432  # "ak42" opens the later versions
# The model starts and ends a text with token 1.
_BOS, _EOS = 1, 2


@dataclass(frozen=True)
class Header:
    """The seven numbers at the front."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int

    @property
    def head_dim(self) -> int:
        """K."""
        return self.dim // self.n_heads

    def config_json(self) -> dict[str, Any]:
        """The same as the config.json of a Llama."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": abs(self.vocab_size),
            "hidden_size": self.dim,
            "intermediate_size": self.hidden_dim,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "max_position_embeddings": self.seq_len,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "tie_word_embeddings": self.vocab_size > 0,
            "bos_token_id": _BOS,
            "eos_token_id": [_EOS, _BOS],
            "dtype": "float32",
        }

    def arrays(self) -> list[tuple[str, Shape]]:
        """Llama's name (none for what is not needed) and shape of each array, in file order."""
        width, keys = self.dim, self.n_kv_heads * self.head_dim
        layers: list[tuple[str, Shape]] = [
            ("input_layernorm", (width,)),
            ("self_attn.q_proj", (width, width)),
            ("self_attn.k_proj", (keys, width)),
            ("self_attn.v_proj", (keys, width)),
            ("self_attn.o_proj", (width, width)),
            ("post_attention_layernorm", (width,)),
            ("mlp.gate_proj", (self.hidden_dim, width)),
            ("mlp.down_proj", (width, self.hidden_dim)),
            ("mlp.up_proj", (self.hidden_dim, width)),
        ]
        vocabulary = (abs(self.vocab_size), width)
        return [
            ("model.embed_tokens.weight", vocabulary),
            *((f"model.layers.{{layer}}.{name}.weight", shape) for name, shape in layers),
            ("model.norm.weight", (width,)),
            ("", (self.seq_len, self.head_dim)),
            *([("lm_head.weight", vocabulary)] if self.vocab_size < 0 else []),
        ]


@final
class Llama2cSource:
    """The arrays of a llama2.c file as the tensors of a Llama."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.header = read_header(path)
        self._places: dict[str, tuple[int, Shape]] = {}
        offset = _HEADER.size
        for name, shape in self.header.arrays():
            for layer in range(self.header.n_layers if "{layer}" in name else 1):
                self._places[name.format(layer=layer)] = (offset, shape)
                offset += 4 * math.prod(shape)
        self._places.pop("")
        size = path.stat().st_size
        if size != offset:
            raise CheckpointError(f"{path} has {size} bytes, its header calls for {offset}: truncated or not llama2.c")

    @property
    def names(self) -> Collection[str]:
        """Every tensor of the Llama."""
        return self._places.keys()

    def file(self, name: str) -> str:
        """The one file."""
        return str(self._path)

    def shape(self, name: str) -> Shape:
        """Shape of the whole tensor."""
        return self._places[name][1]

    def dtype(self, name: str) -> torch.dtype:
        """Always float32."""
        return torch.float32

    def read(self, name: str, index: Index = ()) -> Tensor:
        """The part of `name` under `index`, rotary rows in our order."""
        offset, shape = self._places[name]
        array = np.memmap(self._path, dtype="<f4", mode="r", offset=offset, shape=shape)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            pairs = array.reshape(-1, self.header.head_dim // 2, 2, shape[-1])
            array = pairs.swapaxes(1, 2).reshape(shape)
        return torch.from_numpy(np.array(array[index]))


def read_header(path: Path) -> Header:
    """The header. Raises CheckpointError for what is not a version 0 file."""
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER.size)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    if start.startswith((b"PK", b"\x80\x02")):
        raise CheckpointError(
            f"{path} is a pickle, which can run code when opened; convert it where you trust it: "
            "AutoModelForCausalLM.from_pretrained(…).save_pretrained(…) writes safetensors"
        )
    if len(start) < _HEADER.size:
        raise CheckpointError(f"{path} has {len(start)} bytes, too few for a llama2.c header; fetch it again")
    numbers = _HEADER.unpack(start)
    if numbers[0] == _VERSIONED:
        raise CheckpointError(
            f"{path} is llama2.c version {numbers[1]}, expected version 0; export it with --version 0"
        )
    header = Header(*numbers)
    sound = min(numbers[:5]) > 0 and header.vocab_size != 0 and header.seq_len > 0
    if not sound or header.dim % header.n_heads or header.n_heads % header.n_kv_heads or header.head_dim % 2:
        raise CheckpointError(f"{path} does not start with a llama2.c header, got {numbers}")
    return header
