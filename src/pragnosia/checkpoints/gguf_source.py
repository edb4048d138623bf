"""GGUF files as the Hugging Face tensors they were made of, dequantised as they are read.

llama.cpp's converter renames, and changes three things, which are undone here:

    llama           rotary pairs are neighbours there: rows of queries and keys are permuted within each head
    units           gate, up and down of all units are stacked, each in one tensor; here each unit has its own three
    gpt-oss         gate and up lie apart; here their columns take turns, and units are turned to (in, out)

Everything comes in one type: what lies in single precision alone stays so, everything else becomes bfloat16 unless
another is asked for.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from pragnosia.checkpoints.gguf_config import ROPE, config_json
from pragnosia.checkpoints.gguf_header import Header, Tensor, read_header
from pragnosia.checkpoints.source import Index, Shape
from pragnosia.errors import CheckpointError
from pragnosia.kernels.blocks import BLOCKS, Extent

_AT_ONCE = 1 << 22
"""Weights that are dequantised at once."""
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}
_ROUTERS = {"mixtral": "block_sparse_moe.gate", "gpt_oss": "mlp.router"}
_UNITS = {
    "mixtral": ("block_sparse_moe.experts", {"gate": "w1", "up": "w3", "down": "w2"}),
    "qwen3_moe": ("mlp.experts", {part: f"{part}_proj" for part in ("gate", "up", "down")}),
}
_UNITS["olmoe"] = _UNITS["qwen3_moe"]


@dataclass(frozen=True)
class _Origin:
    """What one of the Hugging Face tensors is made of."""

    tensor: str
    unit: int | None = None
    """Of a stacked tensor, this part of the first axis."""
    heads: int = 0
    """Whose rows were permuted; 0 where none were."""
    other: str | None = None
    """The tensor whose columns take turns with these."""
    turned: bool = False


@final
class GgufSource:
    """The tensors of a GGUF file. Raises CheckpointError for a file or a model that we cannot read."""

    def __init__(self, path: Path, dtype: torch.dtype | None = None) -> None:
        self.path = path
        self._header: Header = read_header(path)
        self._origins: dict[str, _Origin] = {}
        plain = all(tensor.kind == "F32" for tensor in self._header.tensors.values())
        self._dtype = dtype or (torch.float32 if plain else torch.bfloat16)
        self._name_all()

    @cached_property
    def config_json(self) -> dict[str, Any]:
        """The model's config.json."""
        values = config_json(self._header, self.path, self._exactly)
        return values | {"dtype": str(self._dtype).removeprefix("torch.")}

    @property
    def kinds(self) -> list[str]:
        """The types its numbers lie in, the one that takes most bytes first; without those that take next to none."""
        sizes = Counter[str]()
        for tensor in self._header.tensors.values():
            sizes[tensor.kind] += tensor.num_bytes
        return [kind for kind, size in sizes.most_common() if size > sizes.total() / 64]

    @property
    def names(self) -> Collection[str]:
        """Hugging Face names; what has none keeps the file's."""
        return self._origins.keys()

    def file(self, name: str) -> str:
        """The one file."""
        return str(self.path)

    def shape(self, name: str) -> Shape:
        """Shape of the whole tensor."""
        origin = self._origins[name]
        shape = self._header.tensors[origin.tensor].shape
        if origin.unit is not None:
            return shape[1:]
        if origin.other is not None:
            shape = (shape[0], 2 * shape[1], *shape[2:])
        return (shape[0], *shape[:0:-1]) if origin.turned else shape

    def dtype(self, name: str) -> torch.dtype:
        """One for all of them."""
        return self._dtype

    def read(self, name: str, index: Index = ()) -> torch.Tensor:
        """The part of `name` under `index`, as Hugging Face lays it out."""
        origin = self._origins[name]
        if origin.unit is not None:
            return self._numbers(origin.tensor, (origin.unit, *index))
        if origin.heads:
            return self._unpermuted(origin, index)
        if origin.other is None and not origin.turned:
            return self._numbers(origin.tensor, index)
        first, rest = (index[:1] or (slice(None),)), index[1:]
        rows = self._numbers(origin.tensor, first)
        axis = 0 if isinstance(first[0], int) else 1
        if origin.other is not None:
            rows = torch.stack((rows, self._numbers(origin.other, first)), dim=axis + 1).flatten(axis, axis + 1)
        rows = rows.transpose(axis, axis + 1) if origin.turned else rows
        return rows[(slice(None),) * axis + rest] if rest else rows

    def extent(self, name: str) -> Extent:
        """Where `name` lies in one piece, and how. Raises CheckpointError where its numbers have to be turned first."""
        origin = self._origins[name]
        known = self._header.tensors[origin.tensor]
        blocks = None if _PLAIN.get(known.kind) is self._dtype else BLOCKS.get(known.kind)
        is_ours = blocks is not None and self._dtype is torch.bfloat16
        if origin.other is not None or origin.turned or not (is_ours or _PLAIN.get(known.kind) is self._dtype):
            raise CheckpointError(
                f"{origin.tensor} of {self.path} ({known.kind}) has to be turned or unpacked before it can be computed "
                f"with, and is not read piece by piece; turn it once: pragnosia pack {self.path} OUT (--format int4 "
                "makes it smaller), then run OUT"
            )
        if origin.unit is not None:
            size = known.num_bytes // known.shape[0]
            return Extent(self.path, known.offset + origin.unit * size, size, blocks)
        head = known.shape[0] // origin.heads if origin.heads else 0
        return Extent(self.path, known.offset, known.num_bytes, blocks, known.row_bytes, head)

    def _unpermuted(self, origin: _Origin, index: Index) -> torch.Tensor:
        """Rows of queries or keys: (heads, pairs, 2) becomes (heads, 2, pairs), as many heads as are asked for."""
        total = self._header.tensors[origin.tensor].shape[0]
        width = total // origin.heads
        rows = index[0] if index else slice(None)
        start, stop, _ = rows.indices(total) if isinstance(rows, slice) else (rows, rows + 1, 1)
        low = start // width * width
        held = self._numbers(origin.tensor, (slice(low, -(-stop // width) * width),))
        pairs = held.view(-1, width // 2, 2, *held.shape[1:]).transpose(1, 2).reshape(held.shape)
        part = pairs[start - low : stop - low]
        part = part if isinstance(rows, slice) else part[0]
        return part[index[1:]] if index[1:] else part

    def _numbers(self, name: str, index: Index) -> torch.Tensor:
        """A part of one of the file's tensors, contiguous there but for what `index` says of its last axis."""
        known = self._header.tensors[name]
        first, axes, left, whole_axes = 0, known.shape[:-1], index, 0
        while left and axes:
            part, left, inner = left[0], left[1:], math.prod(axes[1:])
            if isinstance(part, slice):  # what follows it is whole
                start, stop, _ = part.indices(axes[0])
                first, axes, whole_axes = first + start * inner, (stop - start, *axes[1:]), 1
                break
            first, axes = first + part * inner, axes[1:]
        count, depth = math.prod(axes), known.shape[-1]
        out = torch.empty(count, depth, dtype=self._dtype)
        step = max(1, _AT_ONCE // depth)
        for at in range(0, count, step):
            rows = out[at : at + step]
            rows.copy_(self._rows(known, first + at, len(rows)))
        whole = out.view(*axes, depth)
        return whole[(slice(None),) * whole_axes + left] if left else whole

    def _exactly(self, name: str) -> list[float]:
        """A vector's numbers as they lie there."""
        values: list[float] = self._rows(self._header.tensors[name], 0, 1).view(-1).float().tolist()
        return values

    def _rows(self, known: Tensor, first: int, count: int) -> torch.Tensor:
        """So many rows, in the type they lie in or in single precision."""
        size = known.row_bytes
        try:
            data = np.fromfile(self.path, np.uint8, count * size, offset=known.offset + first * size)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}") from error
        if len(data) < count * size:
            raise CheckpointError(f"{self.path} ends too soon; fetch it again")
        if known.kind in _PLAIN:
            return torch.from_numpy(data).view(_PLAIN[known.kind]).view(count, -1)
        return torch.from_numpy(_dequantised(data.reshape(count, size), known.kind, self.path))

    def _name_all(self) -> None:
        model_type = self.config_json["model_type"]
        for name, tensor in self._header.tensors.items():
            if name == ROPE:
                continue
            part = re.fullmatch(r"blk\.(\d+)\.(.+?)(?:\.(\d+))?\.(weight|bias)", name)
            if part is None:
                self._origins[_WHOLE.get(name, name)] = _Origin(name)
            elif part[2].endswith("_exps"):
                self._name_units(model_type, name, tensor, f"model.layers.{part[1]}", part[2], part[4])
            else:
                self._name_one(model_type, name, f"model.layers.{part[1]}", *part.groups()[1:])

    def _name_one(self, model_type: str, name: str, layer: str, what: str, unit: str | None, kind: str) -> None:
        """A tensor that stands alone; early files have one for each unit."""
        values = self.config_json
        if unit is not None and model_type in _UNITS and what.removeprefix("ffn_") in ("gate", "up", "down"):
            block, parts = _UNITS[model_type]
            self._origins[f"{layer}.{block}.{unit}.{parts[what.removeprefix('ffn_')]}.{kind}"] = _Origin(name)
        elif what == "attn_sinks":
            self._origins[f"{layer}.self_attn.sinks"] = _Origin(name)
        elif what == "ffn_gate_inp":
            self._origins[f"{layer}.{_ROUTERS.get(model_type, 'mlp.gate')}.{kind}"] = _Origin(name)
        else:
            heads = 0
            if self._header.architecture == "llama" and what in ("attn_q", "attn_k"):
                heads = values["num_attention_heads" if what == "attn_q" else "num_key_value_heads"]
            known = unit is None and what in _LAYER
            self._origins[f"{layer}.{_LAYER[what]}.{kind}" if known else name] = _Origin(name, heads=heads)

    def _name_units(self, model_type: str, name: str, tensor: Tensor, layer: str, what: str, kind: str) -> None:
        """A tensor that holds all units' gate, up or down."""
        part = what.removeprefix("ffn_").removesuffix("_exps")
        if model_type == "gpt_oss":
            ending = "" if kind == "weight" else "_bias"
            turned = kind == "weight"
            if part == "gate":
                other = name.replace("gate_exps", "up_exps")
                if other not in self._header.tensors or self._header.tensors[other].shape != tensor.shape:
                    raise CheckpointError(f"{self.path}: tensor {other} does not stand beside {name}; fetch it again")
                self._origins[f"{layer}.mlp.experts.gate_up_proj{ending}"] = _Origin(name, other=other, turned=turned)
            elif part == "down":
                self._origins[f"{layer}.mlp.experts.down_proj{ending}"] = _Origin(name, turned=turned)
        elif model_type in _UNITS and part in _UNITS[model_type][1]:
            block, parts = _UNITS[model_type]
            for unit in range(tensor.shape[0]):
                self._origins[f"{layer}.{block}.{unit}.{parts[part]}.{kind}"] = _Origin(name, unit=unit)
        else:
            self._origins[name] = _Origin(name)


def _dequantised(rows: Any, kind: str, path: Path) -> Any:
    """Blocks of numbers in single precision, as the gguf library has them."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        return dequantize(rows, GGMLQuantizationType[kind])
    except NotImplementedError as error:
        raise CheckpointError(
            f"{path} is quantised as {kind}, which the gguf library does not dequantise; use a file in Q4_K_M or Q8_0"
        ) from error
