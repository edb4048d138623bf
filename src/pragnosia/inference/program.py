"""A program: a model written out once with every address filled in, so that a token is one compiled call.

`forward` in model/cortex.py says what a model computes; a program computes the same for the next single token of one
text on the CPU, without visiting a module. It is written anew each time somebody begins to speak, and there is none
where anything stands in the model that it cannot write down (a mixer of one's own, a hook, an adapter): then the
modules run, as ever.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pragnosia import kernels
from pragnosia.errors import CheckpointError
from pragnosia.inference.far_table import RowsOnDisk
from pragnosia.inference.layers import OnDisk, coming_and_going
from pragnosia.inference.stream import StreamedBank, far_rows, pool_of
from pragnosia.inference.table import TableOnDisk
from pragnosia.kernels import step as steps
from pragnosia.kernels.awake import lies_by_input
from pragnosia.kernels.formats import Format, plain_format
from pragnosia.kernels.step import Step, StepDendrites, StepFeedForward, StepLinear, StepMixer, StepRecall, Stored
from pragnosia.model.attention import Attention, RotaryPositions
from pragnosia.model.awake_linear import AwakeLinear
from pragnosia.model.bank import Bank, Table
from pragnosia.model.columns import Columns
from pragnosia.model.cortex import Cortex, CortexLayer, CortexStack
from pragnosia.model.dendrites import Dendrites, DendriticAttention, Hearing, Speaking
from pragnosia.model.experts import Experts
from pragnosia.model.feed_forward import FeedForward
from pragnosia.model.gates import TokenGate, routing_of_scores
from pragnosia.model.hippocampus import Hippocampus
from pragnosia.model.linear import Linear
from pragnosia.model.norm import RMSNorm
from pragnosia.model.setting import WHOLE, Setting
from pragnosia.model.sparse import SparseFeedForward
from pragnosia.model.state import KeyValues, State
from pragnosia.model.thalamus import Routing, SigmoidThalamus, SoftmaxThalamus, ThresholdThalamus
from pragnosia.quantisation.layers import PackedEmbedding, PackedLinear, PackedTable

_ROUTERS: dict[type, str] = {SoftmaxThalamus: "softmax", SigmoidThalamus: "sigmoid", ThresholdThalamus: "threshold"}
_WRITABLE = {
    *(nn.ModuleList, nn.Embedding, nn.Identity, Linear, AwakeLinear, RMSNorm),
    *(Attention, DendriticAttention, Hearing, Speaking, RotaryPositions, TokenGate),
    *(FeedForward, Experts, Columns, Bank, Hippocampus, Table, *_ROUTERS),
    *(StreamedBank, PackedLinear, PackedEmbedding, PackedTable, TableOnDisk, RowsOnDisk, OnDisk),
}

_PATH = (Cortex, CortexStack, CortexLayer)
# The plain model's and transformers' are asked for by where they are made, since transformers' may not be imported yet.
_HOMES = {"pragnosia.model.cortex", "pragnosia.model.modeling"}


class Program:
    """One text's next tokens, one at a time.

    if writable(model, state):
        program = Program(model, state, setting)
        likeliest = program(token)      # program.logits and program.routings() follow
        program.length += 1             # and program.state
    """

    def __init__(self, model: Cortex, state: State, setting: Setting = WHOLE, *, tells: bool = False) -> None:
        """`tells`: the state behind each token is wanted, too, in `hidden`."""
        memories: Any = state.layers
        self._layers: tuple[KeyValues, ...] = memories
        self.length = state.length
        self.room = min(memory.keys.shape[2] for memory in self._layers)
        self.logits = torch.empty(1, model.config.vocab_size)
        self._positions, self._table = model.model.positions, model.model.embed_tokens
        self._pen = Pen(model, self._layers, setting)
        self._step = self._pen.step
        self._step.logits = self.logits.data_ptr()
        self.hidden = torch.empty(1, model.config.hidden_size if tells else 0)
        if tells:
            self._step.hidden = self.hidden.data_ptr()

    def __call__(self, token: int) -> int:
        """Read `token`, for which there must be room; the likeliest next one. It counts once `length` is raised."""
        if self._positions.stretches:
            frequencies, self._step.rotation_scale = self._positions.frequencies(self.length + 1)
            self._pen.frequencies.copy_(frequencies)
        if self._pen.row is not None:
            self._table.row(token, self._pen.row[0])
            token = 0
        try:
            return steps.run(self._step, token, self.length)
        except steps.UnitUnreadableError:
            raise CheckpointError(self._pen.failure()) from None

    @property
    def state(self) -> State:
        """All that was read so far."""
        return State(tuple(replace(memory, length=self.length) for memory in self._layers), self.length)

    def routings(self) -> tuple[Routing | None, ...]:
        """Who woke for the last token, layer by layer."""
        return self._pen.routings()


def writable(model: Cortex, state: State) -> bool:
    """Whether a program can be written: our own modules, untouched, in numbers the compiled code reads, on the CPU."""
    if kernels.native_library() is None or torch.is_autocast_enabled("cpu"):
        return False
    if not all(isinstance(m, KeyValues) and _readable(m.keys) and m.keys.shape[0] == 1 for m in state.layers):
        return False
    for module in model.modules():
        touched = module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
        ours = type(module) in _WRITABLE or (isinstance(module, _PATH) and type(module).__module__ in _HOMES)
        if touched or not ours:
            return False
    away = coming_and_going(model)
    if not all(weights.in_reach for weights in away):
        return False
    tensors = (*model.parameters(), *model.buffers())
    # the types of matrices that lie on disk are known, and they lie there in order
    return all(_readable(tensor) or (away and tensor.is_meta and tensor.dtype in steps.STORED) for tensor in tensors)


def _readable(tensor: Tensor) -> bool:
    """Plain numbers or packed rows, in order; a matrix may lie input by input."""
    lies = tensor.is_contiguous() or lies_by_input(tensor)
    return tensor.is_cpu and tensor.dtype in (*steps.STORED, torch.uint8) and lies


class Pen:
    """Writes the structures, and holds on to every tensor whose address stands in them."""

    def __init__(self, model: Cortex, memories: tuple[KeyValues, ...], setting: Setting, tokens: int = 1) -> None:
        self.held: list[Tensor] = []
        self.pool, self.far = pool_of(model), far_rows(model)
        self.bytes_read, self.has_bf16, self.has_packed = 0, False, False
        layers, table = list[Any](model.model.layers), model.model.hippocampus
        self.shapes = [_shape(layer.feed_forward, setting.awake) for layer in layers]
        self.slots, self.units = (sum(shape[i] for shape in self.shapes if shape) for i in (0, 1))
        whole = torch.empty(tokens, self.slots, dtype=torch.long)
        self.told = whole, torch.empty(tokens, self.slots), torch.empty(tokens, self.units)
        self.row: Tensor | None = None
        """Of a table on disk: the one row that is here."""
        self.gates = {
            number: at for at, number in enumerate(n for n, layer in enumerate(layers) if layer.gate is not None)
        }
        """The gated layers, and where they tell their scores."""
        self.scored = torch.empty(tokens, len(self.gates))
        self.cutoffs: dict[int, float] = {}
        self.frequencies = model.model.positions.inv_freq.float().clone()
        mixers, feed_forwards = [], []
        slot = unit = 0
        passing = len(layers)
        for number, (layer, memory, shape) in enumerate(zip(layers, memories, self.shapes, strict=True)):
            organ, norm = layer.feed_forward, self.stored(layer.feed_forward_norm.weight)
            if isinstance(organ, OnDisk):  # the whole layer is
                if not organ.weights.stays:
                    passing = min(passing, number)
                piece: Any = organ.piece
                with organ.weights.outlined():
                    mixers.append(self._gated(number, layer, layer.mixer.piece, memory, setting))
                    always = self._always(piece, table)
                feed_forwards.append(StepFeedForward(norm=norm, pool_layer=-1, **always))
                continue
            mixers.append(self._gated(number, layer, layer.mixer, memory, setting))
            if isinstance(organ, Hippocampus):
                feed_forwards.append(StepFeedForward(norm=norm, pool_layer=-1, recall=self._recall(organ, table)))
            elif shape is None:
                feed_forwards.append(StepFeedForward(norm=norm, pool_layer=-1, **self._always(organ)))
            else:
                told = [self.told[0][0, slot:], self.told[1][0, slot:], self.told[2][0, unit:]]
                feed_forwards.append(StepFeedForward(norm=norm, **self._experts(organ, setting.awake, told)))
                slot, unit = slot + shape[0], unit + shape[1]
        head, embedding = self.linear(model.lm_head), self._table(model.model.embed_tokens)
        self.step = Step(
            width=model.config.hidden_size,
            layers=len(layers),
            threads=steps.threads_for(self.bytes_read),
            has_bf16=self.has_bf16,
            has_packed=self.has_packed,
            embedding=embedding,
            norm=self.stored(model.model.norm.weight),
            head=head,
            eps=model.config.rms_norm_eps,
            rotation_scale=model.model.positions.scaling,
            frequencies=self.address(self.frequencies),
            pool=None if self.pool is None else self.pool.address,
            passing=passing,
            mixers=(StepMixer * len(mixers))(*mixers),
            feed_forwards=(StepFeedForward * len(feed_forwards))(*feed_forwards),
        )

    def routings(self, count: int = 1) -> tuple[Routing | None, ...]:
        """Who woke for the `count` tokens that were told of last, layer by layer."""
        units, strengths, scores = (told[:count].clone() for told in self.told)
        routings: list[Routing | None] = []
        slot = unit = 0
        for number, shape in enumerate(self.shapes):
            gate = None
            if number in self.gates:
                at = self.gates[number]
                gate = routing_of_scores(self.scored[:count, at : at + 1].clone(), self.cutoffs[number])
            if shape is None and gate is None:
                routings.append(None)
                continue
            awake, num_units = shape or (0, 0)
            some = slice(slot, slot + awake)
            routings.append(Routing(units[:, some], strengths[:, some], scores[:, unit : unit + num_units], gate))
            slot, unit = slot + awake, unit + num_units
        return tuple(routings)

    def failure(self) -> str:
        """What could not be read from disk, in words."""
        return (self.far.failure() if self.far else "") or (self.pool.failure() if self.pool else "")

    def address(self, tensor: Tensor) -> int:
        """Of a tensor that is kept alive."""
        self.held.append(tensor)
        return tensor.data_ptr()

    def stored(self, tensor: Tensor | None) -> Stored:
        """A tensor of whichever type, or none."""
        if tensor is not None:
            self.held.append(tensor)
        return Stored.of(tensor)

    def linear(self, layer: Any) -> StepLinear:
        """A linear layer, or a router's scores."""
        if isinstance(layer, PackedLinear):
            self.held += [tensor for tensor in (layer.rows, layer.bias) if tensor is not None]
            self.bytes_read += layer.rows.nbytes
            self._note(layer.entry)
            return StepLinear.packed(layer.rows, layer.entry, layer.in_features, layer.bias)
        self.held += [tensor for tensor in (layer.weight, layer.bias) if tensor is not None]
        self.bytes_read += layer.weight.nbytes
        if lies_by_input(layer.weight):
            return StepLinear.inputwise(layer.weight, layer.bias, getattr(layer, "threshold", 0.0))
        self._note(plain_format(layer.weight.dtype))
        return StepLinear.of(layer.weight, layer.bias)

    def _table(self, table: Any) -> StepLinear:
        """The tokens' rows, of which one is read."""
        if isinstance(table, TableOnDisk):
            self.row = torch.empty(1, table.row_bytes, dtype=torch.uint8)
            return StepLinear.packed(self.row, table.entry, table.width)
        if isinstance(table, PackedEmbedding):
            self.held.append(table.rows)
            return StepLinear.packed(table.rows, table.entry, table.width)
        self.held.append(table.weight)
        return StepLinear.of(table.weight)

    def _note(self, entry: Format) -> None:
        """A matrix of this format is read: vectors must be laid out for it."""
        self.has_bf16 = self.has_bf16 or entry.name == "bf16"
        self.has_packed = self.has_packed or (entry.plain_dtype is None and not entry.pruned)

    def _gated(self, number: int, layer: Any, mixer: Any, memory: KeyValues, setting: Setting) -> StepMixer:
        """A layer's mixer, and its gate where it has one."""
        heads: Attention = mixer.attention if isinstance(mixer, DendriticAttention) else mixer
        written = self._mixer(layer.mixer_norm, heads, memory)
        if layer.gate is not None:
            self.cutoffs[number] = written.cutoff = float(layer.gate.threshold(setting.gates))
            written.gate = self.stored(layer.gate.weight)
            written.out_gate = self.scored[0, self.gates[number] :].data_ptr()
        return written

    def _mixer(self, norm: RMSNorm, mixer: Attention, memory: KeyValues) -> StepMixer:
        self.held += [memory.keys, memory.values]
        return StepMixer(
            norm=self.stored(norm.weight),
            query=self.linear(mixer.q_proj),
            key=self.linear(mixer.k_proj),
            **self._linear_or_dendrites("value", "hearing", mixer.v_proj),
            **self._linear_or_dendrites("out", "speaking", mixer.o_proj),
            query_norm=self.stored(getattr(mixer.q_norm, "weight", None)),
            key_norm=self.stored(getattr(mixer.k_norm, "weight", None)),
            sinks=self.stored(mixer.sinks),
            heads=mixer.q_proj.out_features // mixer.head_dim,
            key_heads=mixer.k_proj.out_features // mixer.head_dim,
            head_dim=mixer.head_dim,
            norm_heads=mixer.norm_heads,
            window=mixer.window or 0,
            clip=mixer.clip or 0.0,
            keys=memory.keys.data_ptr(),
            values=memory.values.data_ptr(),
            memory_is_bf16=memory.keys.dtype is torch.bfloat16,
            room=memory.keys.shape[2],
            fading=self._fading(mixer, memory.keys.shape[2]),
        )

    def _fading(self, mixer: Attention, room: int) -> int | None:
        """What is taken from a key's score, by its age."""
        return None if mixer.fading is None else self.address(mixer.fading.of_ages(torch.arange(room)))

    def _linear_or_dendrites(self, plain: str, driven: str, organ: nn.Module) -> dict[str, Any]:
        """One matrix for every token, or those of the dendrites that are driven most."""
        if not isinstance(organ, Dendrites):
            return {plain: self.linear(organ)}
        weight, gate = self.stored(organ.weight), self.linear(organ.gate)
        self.bytes_read += organ.weight.nbytes * organ.num_awake // organ.each
        self._note(plain_format(organ.weight.dtype))
        shape = organ.heads, organ.each, organ.num_awake, *organ.weight.shape[1:]
        return {driven: StepDendrites(gate, weight, *shape)}

    def _always(self, layer: FeedForward | Hippocampus | None, table: Any = None) -> dict[str, Any]:
        """Who never sleeps; in a layer on disk also what recalls."""
        if layer is None or isinstance(layer, Hippocampus):
            return {} if layer is None else {"recall": self._recall(layer, table)}
        return {
            "always_up": self.linear(layer.up),
            "always_down": self.linear(layer.down),
            "always_activation": layer.activation.code,
        }

    def _recall(self, organ: Hippocampus, table: Table | PackedTable | RowsOnDisk) -> StepRecall:
        """Long-term memory."""
        entry = plain_format(table.rows.dtype) if isinstance(table, Table) else table.entry
        row_bytes = entry.bank_row_bytes(organ.query.in_features)
        base = None if isinstance(table, RowsOnDisk) else self.address(table.rows)
        self.bytes_read += organ.keys.nbytes + organ.recalled * row_bytes
        return StepRecall(
            asks=self.linear(organ.query),
            center=self.address(organ.center.float()),
            spread=self.address(organ.spread.float()),
            keys=self.stored(organ.keys),
            table=Stored(base, entry.code),
            heads=organ.organ.num_heads,
            side=organ.organ.side,
            awake=organ.organ.num_awake,
            row_bytes=row_bytes,
            far=None if self.far is None else self.far.address,
        )

    def _experts(self, experts: SparseFeedForward, awake: float, told: list[Tensor]) -> dict[str, Any]:
        bank: Any = experts.bank
        thalamus, organ = experts.thalamus, experts.thalamus.organ
        slots = _awake(experts, awake)
        balance, cutoffs = getattr(thalamus, "balance", None), None
        if isinstance(thalamus, ThresholdThalamus):
            cutoffs = thalamus.threshold(awake)
        return {
            "router": steps.ROUTERS[_ROUTERS[type(thalamus)]],
            "activation": kernels.ACTIVATIONS[bank.activation].code,
            "scores": self.linear(thalamus),
            "gist": self.linear(thalamus.gist) if isinstance(thalamus.gist, Linear) else StepLinear(),
            "most": bank.num_speaking or 0,
            "steering": self.stored(thalamus.steering),
            "balance": None if balance is None else self.address(balance.float()),
            "cutoffs": None if cutoffs is None else self.address(cutoffs.float()),
            "slots": slots,
            "renormalise": organ.renormalise,
            "scale": organ.scale,
            "up_bias": self.stored(bank.up_bias),
            "down_bias": self.stored(bank.down_bias),
            **(self._streamed(bank, slots) if isinstance(bank, StreamedBank) else self._resident(bank, slots)),
            "out_units": told[0].data_ptr(),
            "out_strengths": told[1].data_ptr(),
            "out_scores": told[2].data_ptr(),
            **self._always(experts.shared),
        }

    def _resident(self, bank: Bank, awake: int) -> dict[str, Any]:
        """Units that lie in memory."""
        self.bytes_read += awake * (bank.up.nbytes + bank.down.nbytes) // bank.num_units
        self._note(plain_format(bank.up.dtype))
        return {
            "up": self.stored(bank.up),
            "down": self.stored(bank.down),
            "unit_width": bank.down.shape[2],
            "up_row_bytes": bank.up.shape[2] * bank.up.itemsize,
            "down_row_bytes": bank.down.shape[2] * bank.down.itemsize,
            "pool_layer": -1,
        }

    def _streamed(self, bank: StreamedBank, awake: int) -> dict[str, Any]:
        """Units that lie on disk: only their format is known beforehand."""
        pooled = bank.bank
        self.bytes_read += awake * pooled.pool.record_bytes
        self._note(pooled.format)
        kind = Stored(None, pooled.format.code)
        up_row_bytes, down_row_bytes = pooled.row_bytes
        return {
            "up": kind,
            "down": kind,
            "unit_width": pooled.unit_width,
            "up_row_bytes": up_row_bytes,
            "down_row_bytes": down_row_bytes,
            "pool_layer": pooled.layer,
        }


def _awake(experts: SparseFeedForward, awake: float) -> int:
    """Slots of a routing: the most units that may wake."""
    thalamus = experts.thalamus
    return thalamus.max_awake if isinstance(thalamus, ThresholdThalamus) else thalamus.num_awake(awake)


def _shape(organ: SparseFeedForward | FeedForward, awake: float) -> tuple[int, int] | None:
    return (_awake(organ, awake), organ.bank.num_units) if isinstance(organ, SparseFeedForward) else None
