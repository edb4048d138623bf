"""What a token costs that is decoded alone, from what woke while a text was read at once.

    operations = sum over layers of  p (2 W + 4 H K S) + 2 A U + (1 - p) 2 R        + 2 n V D
    bytes      = the weights of the same, each read once, and keys and values

p the share of tokens that pass a layer (they have not left, and its gate lets them), W its matrices that are always
awake, A the units a token wakes and U one's matrices, S the keys a token looks at, n how often the head is asked. R is
what remembering costs a layer that a token does not pass: its keys' and values' matrices. At p = n = 1 this is the
account of the model (accounting.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

from pragnosia.measure.accounting import Account, bytes_of
from pragnosia.measure.evaluation import Evaluation
from pragnosia.model.setting import Setting


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Of one token."""

    operations: float
    num_bytes: float
    layers_used: float
    units_awake: float
    """In a layer that has units, mean over layers; 0 where none has."""


def decoded(account: Account, read: Evaluation, setting: Setting, seen: float) -> Decoded:
    """One token behind `seen - 1` others; `account` is the whole model's, `read` a text at `setting`.

    Where layers remember exactly who left, they are passed in the end by everybody: later, and with others.
    """
    frozen = bool(setting.leave) and setting.memory == "propagated"
    everybody = (1.0,) * len(account.layers)
    stayed = read.passed if frozen else everybody
    passed = [one * let for one, let in zip(stayed, read.gates or everybody, strict=True)]
    operations = 2.0 * account.head_matrix_parameters * read.heads_per_token
    weights = min(account.embedding_parameters, account.hidden_size) + account.head_parameters * read.heads_per_token
    keys = 0.0
    for layer, share, awake in zip(account.layers, passed, read.awake_per_token, strict=True):
        looked = seen if layer.window is None else min(seen, layer.window)
        remembering = (1 - share) * 2 * layer.key_width * account.hidden_size
        operations += share * (layer.operations(0, looked) - 2 * layer.asleep_parameters)
        operations += 2 * (awake * layer.unit_matrix_parameters + remembering)
        weights += share * (layer.parameters - layer.silent_parameters - layer.asleep_parameters)
        weights += awake * layer.unit_parameters + remembering
        keys += 2 * layer.key_width * (share * looked + 1) + layer.slot_width
    units = [awake for layer, awake in zip(account.layers, read.awake_per_token, strict=True) if layer.num_units]
    return Decoded(
        operations=operations,
        num_bytes=bytes_of(weights, account.precision) + bytes_of(keys, account.cache_precision),
        layers_used=read.layers_per_token,
        units_awake=mean(units) if units else 0.0,
    )
