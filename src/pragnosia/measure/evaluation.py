"""How well a model predicts text: bits per byte and perplexity by strided sliding windows.

    bits per byte = nats / (ln 2 bytes)        perplexity = exp(nats / tokens)        nats = - sum_i ln p(t_i | before)

A document is tokenised whole, without special tokens, and stands behind the token documents begin with (else the one
they end with), so that all of its tokens, and so all of its bytes, are scored; the end is not. A tokenizer with neither
leaves each document's first token unscored, and the bytes of the characters that token begins are not counted.

Window k reads tokens k S to k S + C of its document (context C, stride S) and scores those that window k - 1 has not:
each token once, with C - S or more tokens before it as far as the document has them, whatever comes after it.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pragnosia.data.sources import Source
from pragnosia.errors import CheckpointError, ConfigError, DataError
from pragnosia.measure.accounting import DEFAULT_CONTEXT, account
from pragnosia.measure.activity import ActivityMeter
from pragnosia.measure.energy import energy_model
from pragnosia.measure.meter import EnergyMeter
from pragnosia.measure.passages import Passage, passages
from pragnosia.measure.scoring import listening, score
from pragnosia.model.modeling import PragnosiaForCausalLM

# Tokens of one forward pass, and of the windows that wait for others of their length.
_BATCH_TOKENS = 8192
_WAITING_TOKENS = 1024**2

Progress = Callable[[int], None]
