"""What a model costs per token, counted from its parameters: no weights are needed, meta tensors suffice.

    operations = 2 sum(matrix elements awake) + 4 sum over layers of (H K) min(C, window), and of (H K) M for slots
    bytes      = (parameters awake) x (bytes each) + keys and values of C tokens read, of one written

One token at batch 1 that sees a context of C tokens, itself included. A multiply-accumulate is two operations.
Attention counts the products q k and p v; norms, activations and biases (below 1 %) count as bytes and not as
operations. Of a bank only the awake units count, of the embedding one row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.inference.exact import ExactModel
from pragnosia.inference.stream import far_rows, pool_of
from pragnosia.inference.table import TableOnDisk
from pragnosia.model.awake_linear import AwakeLinear
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import Cortex, PlainCortex
from pragnosia.model.dendrites import Dendrites, Hearing
from pragnosia.model.hippocampus import Hippocampus
from pragnosia.model.spiking_feed_forward import SpikingFeedForward
from pragnosia.model.thalamus import Thalamus
from pragnosia.model.working_memory import SlotReader
from pragnosia.quantisation.layers import PackedEmbedding, PackedLinear, PackedTable
from pragnosia.tuning.lora import adapters

# Bits, since some precisions are finer than a byte.
PRECISIONS: dict[str, float] = {
    "float32": 32,
    "bfloat16": 16,
    "float16": 16,
    "int8": 8,
    "int4": 4,
    "nf4": 4,
    "int3": 3,
    "int2": 2,
    "bf16-2:4": 9,
    "int8-2:4": 5,  # half the weights, and a bit each for where they stood
}
DEFAULT_CONTEXT = 2048
_ELSEWHERE = (PackedLinear, PackedEmbedding, PackedTable, TableOnDisk)
_HEARD = ("mixer_norm.", "gate.", "mixer.k_", "mixer.v_")  # of a layer, by tokens that pass it by


def bytes_of(count: float, precision: str) -> float:
    """Bytes of so many numbers. Raises ConfigError for a precision there is not."""
    if precision not in PRECISIONS:
        raise ConfigError(unknown_name("precision", precision, PRECISIONS))
    return count * PRECISIONS[precision] / 8


@dataclass(frozen=True, kw_only=True)
class LayerAccount:
    """One layer: what is always awake, what one unit costs, and what attention remembers per token."""

    parameters: int
    """All but the bank's units."""
    matrix_parameters: int
    """Those of them that multiply each token."""
    silent_parameters: int = 0
    """Those of `parameters` that a token leaves unread: its silent dendrites."""
    unit_parameters: int = 0
    unit_matrix_parameters: int = 0
    num_units: int = 0
    num_awake: int = 0
    query_width: int = 0
    """H K."""
    key_width: int = 0
    """Key-value heads x K."""
    window: int | None = None
    asleep_parameters: float = 0.0
    """Of `matrix_parameters`: those of inputs that sleep, on average, which a single token does not read."""
    passing: float = 1.0
    """Share of the tokens that pass the layer's gate; 1 where it has none."""
    heard_parameters: int = 0
    """What of `parameters` a token reads that passes the layer by: norm, gate, keys and values. 0 without a gate."""
    heard_matrix_parameters: int = 0
    recalled_parameters: int = 0
    """Rows of the table of long-term memory that a token recalls here; the table is counted outside the layers."""
    norms_queries: bool = False
    slot_operations: int = 0
    """Of one token: what it offers to slots beyond the first writer's share, and what it reads of them."""
    slot_width: int = 0
    """Numbers in slots that a token reads."""
    slot_bytes: tuple[int, int] = (0, 0)
    """What slots keep of a text, however long: numbers of the cache's precision, and strengths of four bytes."""
    slot_hidden: int = 0
    """Numbers of one token that slots keep for the way back."""
    hidden: int = 0
    """Feed-forward activations of one token that are always there, before and after the non-linearity."""
    unit_hidden: int = 0
    """The same of one unit."""

    @property
    def total_parameters(self) -> int:
        """With all units."""
        return self.parameters + self.num_units * self.unit_parameters

    @property
    def active_parameters(self) -> int:
        """With the awake ones."""
        read = self.parameters - self.silent_parameters - self.asleep_parameters
        passed = round(read) + self.num_awake * self.unit_parameters + self.recalled_parameters
        return round(self.passing * (passed - self.heard_parameters)) + self.heard_parameters

    def seen(self, context: int) -> int:
        """Keys one token looks at when `context` tokens are there, itself included."""
        return context if self.window is None else min(context, self.window)

    def operations(self, awake: float, seen: float) -> float:
        """Of one token that wakes `awake` units, looks at `seen` keys and does not pass the layer by."""
        matrices = self.matrix_parameters + awake * self.unit_matrix_parameters + self.recalled_parameters
        return 2 * matrices + 4 * self.query_width * seen + self.slot_operations

    def mean_operations(self, seen: float) -> float:
        """Of a token that wakes as many units as usual, whether or not it passes."""
        passed = self.operations(self.num_awake, seen)
        return self.passing * passed + (1 - self.passing) * 2 * self.heard_matrix_parameters


@dataclass(frozen=True, kw_only=True)
class Account:
    """What one model costs per token, for weights of one precision and a context of `context` tokens."""

    layers: tuple[LayerAccount, ...]
    hidden_size: int
    vocab_size: int
    embedding_parameters: int
    """The table of which a token reads one row; 0 where the head is the same matrix."""
    head_parameters: int
    """Read whole for every token: the head, and what else stands outside the layers."""
    head_matrix_parameters: int
    precision: str
    context: int
    table_parameters: int = 0
    """Of long-term memory, of which a token reads what its layers recall."""

    @property
    def total_parameters(self) -> int:
        """All there are."""
        outside = self.embedding_parameters + self.head_parameters + self.table_parameters
        return outside + sum(layer.total_parameters for layer in self.layers)

    @property
    def active_parameters(self) -> int:
        """Those one token touches."""
        row = min(self.embedding_parameters, self.hidden_size)
        return row + self.head_parameters + sum(layer.active_parameters for layer in self.layers)

    @property
    def operations_per_token(self) -> int:
        """Two per multiply-accumulate."""
        layers = sum(layer.mean_operations(layer.seen(self.context)) for layer in self.layers)
        return round(2 * (self.head_matrix_parameters - self.asleep_parameters) + layers)

    @property
    def asleep_parameters(self) -> float:
        """What a single token does not read because the inputs sleep."""
        return sum(layer.passing * layer.asleep_parameters for layer in self.layers)

    @property
    def bytes_per_token(self) -> int:
        """Weights, keys and values that move at batch 1."""
        keys = sum(2 * layer.key_width * (layer.passing * layer.seen(self.context) + 1) for layer in self.layers)
        keys += sum(layer.slot_width for layer in self.layers)
        return round(bytes_of(self.active_parameters, self.precision) + bytes_of(keys, self.cache_precision))

    @property
    def cache_precision(self) -> str:
        """Keys and values stay in floating point when weights are packed."""
        return self.precision if "float" in self.precision else "bfloat16"

    @property
    def arithmetic(self) -> str:
        """What is computed in, for a price: packed weights are made bfloat16 on their way, or better."""
        return self.precision if "float" in self.precision else "bfloat16"

    def cache_bytes(self, context: int, batch: int = 1) -> int:
        """Keys and values of `batch` sequences of `context` tokens, which are kept whole, windowed or not; slots."""
        keys = sum(2 * layer.key_width for layer in self.layers) * context
        slots, strengths = (sum(layer.slot_bytes[part] for layer in self.layers) for part in (0, 1))
        return round(batch * (bytes_of(keys + slots, self.cache_precision) + 4 * strengths))


def stored(model: Cortex) -> str:
    """The precision that a model's matrices lie in: a packed format's name, or its type's."""
    entry = next((module.entry for module in model.modules() if isinstance(module, PackedLinear)), None)
    return entry.name if entry is not None and entry.plain_dtype is None else str(model.dtype).removeprefix("torch.")


def account(
    subject: PragnosiaConfig | Cortex,
    *,
    precision: str = "bfloat16",
    context: int | None = None,
    awake: float = 1.0,
    gates: float = 1.0,
) -> Account:
    """Count a model, or a configuration without building it in memory.

    `context` defaults to 2048 tokens, or all the model can hold if that is less. Raises ConfigError for a
    precision that does not exist or a context that does not fit.
    """
    bytes_of(0, precision)
    model: Any = subject if isinstance(subject, nn.Module) else on_meta(subject)
    # most of it lies on disk, in packed rows, in others' modules, or behind adapters, which add a percent or so
    packed = any(isinstance(module, _ELSEWHERE) for module in model.modules())
    if isinstance(model, ExactModel) or pool_of(model) or far_rows(model) or packed or adapters(model):
        described: Any = model.config
        model = on_meta(described)
    limit = int(model.config.max_position_embeddings)
    context = min(DEFAULT_CONTEXT, limit) if context is None else context
    if not 0 < context <= limit:
        raise ConfigError(f"context is {context} tokens; the model holds 1 to {limit}")
    outside = {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if not name.startswith("model.layers.")
    }
    remembered = prod(outside.pop("model.hippocampus.rows", (0,)))
    table = outside["model.embed_tokens.weight"]
    tied = "lm_head.weight" not in outside
    head = [shape for name, shape in outside.items() if tied or name != "model.embed_tokens.weight"]
    return Account(
        layers=tuple(_layer_account(layer, awake, gates) for layer in model.model.layers),
        hidden_size=int(model.config.hidden_size),
        vocab_size=int(model.config.vocab_size),
        embedding_parameters=0 if tied else prod(table),
        head_parameters=sum(map(prod, head)),
        head_matrix_parameters=_matrices(head),
        precision=precision,
        context=context,
        table_parameters=remembered,
    )


def on_meta(config: PragnosiaConfig) -> Cortex:
    """The model with shapes and without storage."""
    return PlainCortex.unfilled(config)


def _layer_account(layer: nn.Module, awake: float, gates: float) -> LayerAccount:
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    units = {name: shape[1:] for name, shape in shapes.items() if ".bank." in name}
    others = {name.replace("mixer.attention.", "mixer."): s for name, s in shapes.items() if ".bank." not in name}
    dendrites = [module for module in layer.modules() if isinstance(module, Dendrites)]
    silent = sum(module.weight.numel() * (module.each - module.num_awake) // module.each for module in dendrites)
    routers = [module for module in layer.modules() if isinstance(module, Thalamus)]
    sleepers = [module for module in layer.modules() if isinstance(module, AwakeLinear)]
    gate: Any = layer.gate
    heard = {name: shape for name, shape in others.items() if name.startswith(_HEARD)} if gate is not None else {}
    hearing = [d for d in dendrites if gate is not None and isinstance(d, Hearing)]
    values = sum(d.weight.numel() * d.num_awake // d.each for d in hearing)
    slots = [module for module in layer.modules() if isinstance(module, SlotReader)]
    recalling = [module for module in layer.modules() if isinstance(module, Hippocampus)]
    spiking = [module for module in layer.modules() if isinstance(module, SpikingFeedForward)]
    return LayerAccount(
        parameters=sum(map(prod, others.values())),
        matrix_parameters=_matrices(others.values()) + sum(d.weight.numel() for d in dendrites) - silent,
        silent_parameters=silent,
        unit_parameters=sum(map(prod, units.values())),
        unit_matrix_parameters=_matrices(units.values()),
        num_units=routers[0].num_units if routers else 0,
        num_awake=routers[0].num_awake(awake) if routers else 0,
        query_width=others.get("mixer.q_proj.weight", (0,))[0],
        key_width=others.get("mixer.k_proj.weight", (0,))[0],
        window=getattr(getattr(layer.mixer, "attention", layer.mixer), "window", None),
        asleep_parameters=sum(linear.asleep * linear.weight.numel() for linear in sleepers),
        passing=1.0 if gate is None else gates * gate.share,
        heard_parameters=sum(map(prod, heard.values())) - sum(d.weight.numel() for d in hearing) + values,
        heard_matrix_parameters=_matrices(heard.values()) + values,
        recalled_parameters=sum(module.recalled * module.query.in_features for module in recalling),
        norms_queries="mixer.q_norm.weight" in others,
        slot_operations=sum(map(_slot_operations, slots)),
        slot_width=sum(one.organ.num_slots * one.organ.entry_width for one in slots),
        slot_bytes=(
            sum(one.organ.num_entries(one.writers) * one.organ.entry_width for one in slots),
            sum(one.organ.num_entries(one.writers) for one in slots),
        ),
        slot_hidden=sum(map(_slot_hidden, slots)),
        hidden=_hidden(others) + sum(module.kept for module in spiking),
        unit_hidden=_hidden(units),
    )


def _slot_operations(slots: SlotReader) -> int:
    """Keys and values of every writer but the first, which is among the matrices, and weighing and mixing M slots."""
    offering = 2 * sum(layer.weight.numel() for layer in (slots.k_proj, slots.v_proj))
    return (slots.writers - 1) * offering + 2 * slots.organ.num_slots * slots.organ.entry_width


def _slot_hidden(slots: SlotReader) -> int:
    """Numbers of one token that slots keep for the way back: what it offers, its share of those read, its weights."""
    organ = slots.organ
    found = organ.num_slots * organ.entry_width // organ.segment
    return (
        slots.writers * (organ.entry_width + slots.q_proj.in_features)
        + found
        + 3 * organ.num_heads * (organ.num_slots + 1)
    )


def _hidden(shapes: dict[str, tuple[int, ...]]) -> int:
    """Rows of every `up` (F, or 2 F where gated) and columns of every `down` (F)."""
    organs = {name.removesuffix(".weight"): shape for name, shape in shapes.items()}
    rows = sum(shape[0] for name, shape in organs.items() if name.endswith(".up"))
    return rows + sum(shape[1] for name, shape in organs.items() if name.endswith(".down"))


def _matrices(shapes: Iterable[tuple[int, ...]]) -> int:
    """Elements of those with two axes: each is one multiply-accumulate per token."""
    return sum(prod(shape) for shape in shapes if len(shape) == 2)
