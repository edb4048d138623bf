"""How much memory a model needs: to run, to tune, to train. Estimates from shapes, meant to err upwards.

    run     weights + keys and values of the whole context + the widest layer while a prompt is read
    tune    frozen weights + (4 + 4 + 8) bytes x adapter parameters + activations
    train   (4 + 4 + 4 m) bytes x parameters + activations + the head's gradient twice

Training keeps weights, gradients and m moments in fp32 (AdamW 2, in 8 bits 1/2, Muon 1); tuning puts LoRA of rank r
on the attention projections (Hu et al. 2021, arXiv 2106.09685). Activations are what the backward pass keeps per token:
of each layer 8 D + 2 H K + 2 (key width), the latter twice where queries and keys are normed, and the awake
feed-forward activations; with gradient checkpointing D of each layer and everything of the widest. To each comes
the interpreter with its libraries.
"""

from __future__ import annotations

from dataclasses import dataclass

from pragnosia.errors import ConfigError
from pragnosia.measure.accounting import Account, LayerAccount, bytes_of
from pragnosia.units import MIB

# Resident size of a Python that has imported torch, transformers and this package (torch 2.13, Linux).
INTERPRETER_BYTES = 400 * MIB


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes by what holds them."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        """All of them together."""
        return sum(self.parts.values())


def memory_needs(account: Account, *, tokens: int | None = None) -> dict[str, Memory]:
    """`train`, `tune` and `run` side by side; training sees `tokens` at once (default: the account's context)."""
    tokens = account.context if tokens is None else tokens
    return {
        "train": memory_to_train(account, tokens=tokens),
        "tune": memory_to_tune(account, tokens=tokens),
        "run": memory_to_run(account),
    }


def memory_to_run(account: Account, *, context: int | None = None, batch: int = 1) -> Memory:
    """To generate with `batch` sequences that fill `context` tokens (default: the account's)."""
    context = _positive("context", account.context if context is None else context)
    tokens = context * _positive("batch", batch)
    widest = max((_kept(account, layer) for layer in account.layers), default=0)
    working = bytes_of(tokens * widest, account.cache_precision) + 4 * batch * account.vocab_size
    return Memory(
        parts={
            "weights": round(bytes_of(account.total_parameters, account.precision)),
            "cache": account.cache_bytes(context, batch),
            "working": round(working),
            "interpreter": INTERPRETER_BYTES,
        }
    )


def memory_to_tune(
    account: Account, *, tokens: int, rank: int = 16, checkpointing: bool = True, precision: str = "bfloat16"
) -> Memory:
    """To train low-rank adapters on every attention projection; `tokens` are batch x sequence."""
    _positive("rank", rank)
    adapters = sum(
        rank * (4 * account.hidden_size + 2 * layer.query_width + 2 * layer.key_width) for layer in account.layers
    )
    return Memory(
        parts={
            "weights": round(bytes_of(account.total_parameters, precision)),
            "adapters": 16 * adapters,
            "activations": _activations(account, tokens, checkpointing, precision),
            "interpreter": INTERPRETER_BYTES,
        }
    )


def memory_to_train(account: Account, *, tokens: int, checkpointing: bool = False, moments: float = 2) -> Memory:
    """To train every weight in fp32; `tokens` are batch x sequence of one backward pass, a moment has four bytes."""
    weights = 4 * account.total_parameters
    head = 4 * account.vocab_size * account.hidden_size
    return Memory(
        parts={
            "weights": weights,
            "gradients": weights,
            "optimiser": round(moments * weights),
            # The loss forms the head's gradient while it reads the logits, and scales a copy of it later.
            "activations": _activations(account, tokens, checkpointing, "float32") + 2 * head,
            "interpreter": INTERPRETER_BYTES,
        }
    )


def _activations(account: Account, tokens: int, checkpointing: bool, precision: str) -> int:
    _positive("tokens", tokens)
    kept = [_kept(account, layer) for layer in account.layers]
    # The stream before the final norm, its normalised copy, and the gradient the loss leaves.
    after = 4 * account.hidden_size
    per_token = len(kept) * account.hidden_size + max(kept, default=0) if checkpointing else sum(kept)
    return round(bytes_of(tokens * (per_token + after), precision))


def _kept(account: Account, layer: LayerAccount) -> int:
    """Numbers per token one layer keeps for its backward pass."""
    attention = (4 if layer.norms_queries else 2) * (layer.query_width + layer.key_width)
    thought = layer.hidden + layer.num_awake * layer.unit_hidden + layer.num_units
    return 8 * account.hidden_size + attention + thought + layer.slot_hidden


def _positive(name: str, value: int) -> int:
    if value <= 0:
        raise ConfigError(f"{name} is {value}; it must be greater than 0")
    return value
