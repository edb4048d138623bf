"""What actually woke: operations, bytes and joules of a run, from the routings it left behind.

    operations = sum over tokens and layers of (always awake + units this token woke + keys it looked at)
    bytes      = sum over forward passes of (always awake + units anybody woke, once + keys and values)

A forward pass over many tokens (a prompt) reads each woken unit once for all of them; decoding reads it anew
for every token. An account says what a model costs when all goes as configured; this says what it cost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.inference.effort import Effort
from pragnosia.inference.ladder import Climb
from pragnosia.measure.accounting import Account, bytes_of
from pragnosia.measure.energy import Energy, EnergyModel
from pragnosia.model.thalamus import Routing, sparse

# Passes whose units are kept before they are counted: counting each would make the CPU wait for the GPU.
_PASSES_KEPT = 256


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What a run did."""

    tokens: int
    awake_per_token: tuple[float, ...]
    """Units woken, mean over tokens, for each layer; 0 where a layer has none."""
    operations: float
    num_bytes: float
    precision: str
    passed: tuple[float, ...] = ()
    """For each layer, the share of the tokens that its gate let pass; 1 where it has none."""

    @property
    def operations_per_token(self) -> float:
        """Mean over tokens."""
        return self.operations / max(self.tokens, 1)

    @property
    def bytes_per_token(self) -> float:
        """Mean over tokens."""
        return self.num_bytes / max(self.tokens, 1)

    def energy(self, model: EnergyModel, measured: Energy | None = None) -> Energy:
        """Joules of the whole run: `measured` where a counter saw it, else by the model."""
        return measured or model.estimate(self.operations, self.num_bytes, self.precision)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Share:
    """Some layers of an account."""

    start: int
    operations: float
    """Of a token, of what is always awake."""
    num_bytes: float
    widths: dict[int | None, tuple[int, int]]
    """By window: queries and keys, of the layers without a gate."""
    sparse: tuple[int, ...]
    """The layers that route."""
    gated: tuple[int, ...]
    """The layers with a gate, and the width of their keys together."""
    gated_keys: int


class ActivityMeter:
    """Adds up forward passes.

    meter = ActivityMeter(account(model))
    meter.add(output.routings, tokens=new, past=tokens already remembered)
    meter.activity()
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._tokens = 0
        self._operations = 0.0
        self._bytes = 0.0
        self._awake = [0] * len(account.layers)
        self._passed = [0] * len(account.layers)
        # by who is told of and for how many tokens of a sequence: on top of how many others, and the units
        self._pending: dict[tuple[_Share, tuple[torch.Size, ...], int], list[tuple[int, Tensor]]] = defaultdict(list)
        self._num_pending = 0
        self._shares: dict[tuple[int, int], _Share] = {}

    def add(
        self,
        routings: Sequence[Routing | None],
        *,
        tokens: int,
        past: int = 0,
        sequences: int = 1,
        logits: int | None = None,
        layers: tuple[int, int] | None = None,
    ) -> None:
        """One forward pass of `tokens` new tokens in each of `sequences`, on top of `past` tokens remembered.

        `logits` is for how many of them the head was asked, in each sequence; None is all. `layers` [start, end) are
        those that were passed, None all; tokens of a part are no tokens of the text until `said` counts them.
        """
        account, asked = self._account, tokens if logits is None else logits
        share = self._share(*(layers or (0, len(account.layers))))
        units = [routing.units for routing in sparse(routings)]
        gates = [routing.gate.units for routing in routings if routing is not None and routing.gate is not None]
        for told, known, do in ((units, share.sparse, "routed"), (gates, share.gated, "had gates")):
            if len(told) != len(known):
                raise ConfigError(
                    f"{len(told)} layers {do}, the account has {len(known)} that do; "
                    "make the account from the model that ran"
                )
        if tokens * sequences == 1 and layers is None:  # the weights of inputs that sleep are left unread
            self._operations -= 2 * account.asleep_parameters
            self._bytes -= bytes_of(account.asleep_parameters, account.precision)
        self._tokens += tokens * sequences if layers is None else 0
        self._operations += share.operations * tokens * sequences
        self._operations += 2 * account.head_matrix_parameters * asked * sequences
        row = 0 if share.start else min(account.embedding_parameters, account.hidden_size)
        head = bytes_of(account.head_parameters, account.precision) if asked else 0
        self._bytes += share.num_bytes + head + bytes_of(row * tokens * sequences, account.precision)
        for window, (query, key) in share.widths.items():
            self._operations += 4 * query * pairs(tokens, past, window) * sequences
            # A pass reads keys and values once for all its queries, and writes the new ones.
            reach = past + tokens if window is None else min(past + tokens, window + tokens - 1)
            self._bytes += bytes_of(2 * key * (reach + tokens) * sequences, account.cache_precision)
        self._bytes += bytes_of(2 * share.gated_keys * tokens * sequences, account.cache_precision)
        if units or gates:
            # Copied by cat: a decode loop may reuse the buffer it shows us.
            told = units + gates
            shapes, where = tuple(part.shape for part in told), told[0].device  # of two, where a model is split
            kept = torch.cat([part.flatten().to(where) for part in told])
            self._pending[share, shapes, tokens].append((past, kept))
            self._num_pending += 1
        if self._num_pending >= _PASSES_KEPT:
            self._count()

    def climbed(self, climb: Climb) -> None:
        """A pass of some layers alone, as speaking with fewer layers makes (inference/ladder.py)."""
        if not climb.only_remembers:
            layers = climb.start, climb.end
            self.add(climb.routings, tokens=climb.tokens, past=climb.past, logits=climb.heads, layers=layers)
            return
        account = self._account
        keys = sum(2 * layer.key_width for layer in account.layers[climb.start : climb.end])
        self._operations += 2 * keys * account.hidden_size * climb.tokens
        self._bytes += bytes_of(keys * account.hidden_size, account.precision)
        self._bytes += bytes_of(keys * climb.tokens, account.cache_precision)

    def recalled(self, effort: Effort) -> None:
        """A store, or the text so far, was asked; counted with what the model did."""
        self._operations += effort.operations
        self._bytes += effort.num_bytes

    def said(self, tokens: int) -> None:
        """So many tokens of the text came of passes of some layers alone."""
        self._tokens += tokens

    def activity(self) -> Activity:
        """What all passes so far did."""
        self._count()
        return Activity(
            tokens=self._tokens,
            awake_per_token=tuple(count / max(self._tokens, 1) for count in self._awake),
            operations=self._operations,
            num_bytes=self._bytes,
            precision=self._account.arithmetic,
            passed=tuple(
                count / max(self._tokens, 1) if layer.heard_parameters else 1.0
                for count, layer in zip(self._passed, self._account.layers, strict=True)
            ),
        )

    def _share(self, start: int, end: int) -> _Share:
        """What is the same in every pass of these layers, so that adding a token costs little beside speaking it."""
        found = self._shares.get((start, end))
        if found is None:
            account, some = self._account, self._account.layers[start:end]
            widths: dict[int | None, tuple[int, int]] = {}
            always = [layer for layer in some if not layer.heard_parameters]
            gated = [layer for layer in some if layer.heard_parameters]
            for layer in always:
                query, key = widths.get(layer.window, (0, 0))
                widths[layer.window] = (query + layer.query_width, key + layer.key_width)
            found = self._shares[start, end] = _Share(
                start=start,
                operations=sum(layer.operations(0, 0) for layer in always)
                + sum(2 * layer.heard_matrix_parameters for layer in gated),
                num_bytes=bytes_of(
                    sum(layer.parameters for layer in always) + sum(layer.heard_parameters for layer in gated),
                    account.precision,
                )
                + bytes_of(sum(layer.slot_width for layer in some), account.cache_precision),
                widths=widths,
                sparse=tuple(start + index for index, layer in enumerate(some) if layer.num_units),
                gated=tuple(start + index for index, layer in enumerate(some) if layer.heard_parameters),
                gated_keys=sum(layer.key_width for layer in gated),
            )
        return found

    def _count(self) -> None:
        """Turn the pending units into counts."""
        for (share, shapes, tokens), passes in self._pending.items():
            grid = torch.stack([told for _, told in passes]).cpu()  # (passes, slots of all layers)
            parts = grid.split([shape.numel() for shape in shapes], dim=1)
            past, routed = torch.tensor([past for past, _ in passes]), len(share.sparse)
            for index, part in zip(share.gated, parts[routed:], strict=True):
                self._count_gate(index, (part >= 0).view(len(past), -1, tokens), past)
            for index, part in zip(share.sparse, parts[:routed], strict=True):
                layer, awake = self._account.layers[index], int((part >= 0).sum())
                self._awake[index] += awake
                self._operations += 2 * layer.unit_matrix_parameters * awake
                self._bytes += bytes_of(layer.unit_parameters * _distinct(part), self._account.precision)
        self._pending.clear()
        self._num_pending = 0

    def _count_gate(self, index: int, passed: Tensor, past: Tensor) -> None:
        """What passing a gated layer costs beside being heard there; `passed` is (passes, sequences, tokens)."""
        layer, precision, tokens = self._account.layers[index], self._account.precision, passed.shape[2]
        seen = past[:, None] + torch.arange(1, tokens + 1)
        reach = past + tokens
        if layer.window is not None:
            seen, reach = seen.clamp_max(layer.window), reach.clamp_max(layer.window + tokens - 1)
        count, pairs = int(passed.sum()), int((passed * seen[:, None]).sum())
        self._passed[index] += count
        self._operations += 2 * (layer.matrix_parameters - layer.heard_matrix_parameters) * count
        self._operations += 4 * layer.query_width * pairs
        rest = (layer.parameters - layer.heard_parameters) * int(passed.any(2).any(1).sum())
        self._bytes += bytes_of(rest, precision)
        keys = int((passed.any(2) * reach[:, None]).sum())
        self._bytes += bytes_of(2 * layer.key_width * keys, self._account.cache_precision)


def pairs(tokens: int, past: int, window: int | None) -> int:
    """Keys looked at by `tokens` new tokens together: sum of min(past + p, window) over p = 1 .. tokens."""
    growing = tokens if window is None else min(tokens, max(0, window - past))
    grown = growing * past + growing * (growing + 1) // 2
    return grown + (tokens - growing) * (window or 0)


def _distinct(units: Tensor) -> int:
    """Different units awake in each row, summed over rows."""
    ordered = units.sort(dim=1).values
    fresh = (ordered[:, 1:] != ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    return int(fresh.sum() + (ordered[:, :1] >= 0).sum())


def activity(routings: Sequence[Routing | None], account: Account) -> Activity:
    """Of one forward pass over one sequence from its beginning."""
    tokens = next((routing.units.shape[0] for routing in routings if routing is not None), None)
    if tokens is None:
        raise ConfigError("no layer routed: use ActivityMeter.add with the number of tokens")
    meter = ActivityMeter(account)
    meter.add(routings, tokens=tokens)
    return meter.activity()
