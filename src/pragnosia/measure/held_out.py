"""Bits per byte of a model on windows of tokens that were held out: before a change, and after it.

bits per byte = nats / (ln 2 bytes)          of each window all tokens but the first, and their bytes
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pragnosia.errors import CheckpointError
from pragnosia.measure.scoring import score
from pragnosia.model.cortex import Cortex


@torch.inference_mode()
def bits_per_byte(model: Cortex, tokenizer: PreTrainedTokenizerBase, windows: Sequence[Tensor]) -> float:
    """Each window read by itself, in evaluation mode. Raises CheckpointError where the model computes no numbers."""
    nats, size = 0.0, 0
    for window in windows:
        hidden = model.model(window[None, :-1].to(model.device), use_cache=False).last_hidden_state[0]
        scored = score(hidden, model.lm_head, window[1:].to(model.device)).log_probabilities
        nats -= float(scored.double().sum())
        size += _bytes(tokenizer, window) - _bytes(tokenizer, window[:1])
    if not math.isfinite(nats):
        raise CheckpointError(f"the model's loss on the text is {nats}; its weights are damaged")
    return nats / (math.log(2) * max(size, 1))


def _bytes(tokenizer: PreTrainedTokenizerBase, tokens: Tensor) -> int:
    return len(str(tokenizer.decode(tokens.tolist(), clean_up_tokenization_spaces=False)).encode())
