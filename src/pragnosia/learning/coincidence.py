"""One-pass learning: a text is read once, and known.

    tree      a Huffman code of how often each token stands in the text (Huffman 1952): common tokens, few decisions
    learn     each token is predicted, then learned by the delta rule, then read; no back-propagation

The model and its limits stand in model/coincidence.py, the arithmetic in kernels/coincidence.py. What was said of each
token before it was learned is a fair measure of the text so far: its mean is the code length of the whole.
"""

from __future__ import annotations

import heapq
import unicodedata
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Int
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pragnosia.errors import DataError
from pragnosia.kernels.coincidence import LETTER, NEWLINE, OTHER, SPACE
from pragnosia.model.coincidence import CoincidenceConfig, CoincidenceForCausalLM


class Bytes:
    """Text to ids and back for a byte-level tokenizer without merges, at the speed of a table.

    Raises DataError for a tokenizer whose pieces are more than bytes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        vocabulary = tokenizer.get_vocab()
        self.num_tokens = max(vocabulary.values()) + 1
        self.ids = np.full(256, -1, np.int64)
        for value, piece in enumerate(byte_pieces()):
            self.ids[value] = vocabulary.get(piece, -1)
        special = set(tokenizer.all_special_ids)
        if (self.ids < 0).any() or set(vocabulary.values()) - set(self.ids.tolist()) - special:
            raise DataError(
                "a coincidence learner reads bytes, and the tokenizer has other pieces; train it without one"
            )

    def encode(self, text: str) -> Int[Tensor, " T"]:
        """Ids of the text, composed as the tokenizer would (NFC)."""
        data = unicodedata.normalize("NFC", text).encode()
        return torch.from_numpy(self.ids[np.frombuffer(data, np.uint8)])

    def kinds(self) -> tuple[Int[Tensor, " V"], Int[Tensor, " V"]]:
        """Of each id: letter, line end, space or other; and the id it counts as in a word, small for capital."""
        kinds = torch.full((self.num_tokens,), OTHER, dtype=torch.int32)
        folds = torch.arange(self.num_tokens, dtype=torch.int32)
        for value, token in enumerate(self.ids.tolist()):
            character = chr(value)
            if value >= 128 or character.isalpha() or character == "'":  # beyond ASCII nearly all is letters
                kinds[token] = LETTER
            elif character in "\n ":
                kinds[token] = NEWLINE if character == "\n" else SPACE
            if value < 128:
                folds[token] = int(self.ids[ord(character.lower())])
        return kinds, folds


def sprout(config: CoincidenceConfig, alphabet: Bytes, texts: Iterable[Int[Tensor, " T"]]) -> CoincidenceForCausalLM:
    """A model that knows how often each token stands in the texts, and nothing else."""
    counts = torch.zeros(config.vocab_size, dtype=torch.int64)
    for ids in texts:
        counts += torch.bincount(ids, minlength=config.vocab_size)
    model = CoincidenceForCausalLM(config)
    model.plant(huffman(counts))
    model.kinds.copy_(alphabet.kinds()[0])  # type: ignore[operator]
    model.folds.copy_(alphabet.kinds()[1])  # type: ignore[operator]
    model.train(False)
    return model


def huffman(counts: Int[Tensor, " V"]) -> Int[Tensor, "V-1 2"]:
    """Children of each decision, the root first, a leaf as -1 - token; a token never seen counts as half a one."""
    waiting = [(max(float(count), 0.5), token, -1 - token) for token, count in enumerate(counts.tolist())]
    heapq.heapify(waiting)
    pairs: list[tuple[int, int]] = []
    while len(waiting) > 1:
        (one, _, left), (other, _, right) = heapq.heappop(waiting), heapq.heappop(waiting)
        pairs.append((left, right))
        heapq.heappush(waiting, (one + other, len(counts) + len(pairs), len(pairs) - 1))
    last = len(pairs) - 1  # made last, the root stands first
    flipped = [[child if child < 0 else last - child for child in pair] for pair in reversed(pairs)]
    return torch.tensor(flipped, dtype=torch.int32)


def learn_text(
    model: CoincidenceForCausalLM, ids: Int[Tensor, " T"], state: Int[Tensor, 64] | None = None
) -> tuple[Float[Tensor, " T"], Int[Tensor, 64]]:
    """Learn a text, from its beginning or from `state` on: what was said of each token [nats] before it was learned."""
    said, _, state = model.read(ids, model.opening() if state is None else state, learn=True)
    return said, state


def score_text(model: CoincidenceForCausalLM, ids: Int[Tensor, " T"]) -> Float[Tensor, " T"]:
    """Log p [nats] of each token of a text; the model stays as it is."""
    return model.read(ids, model.opening())[0]


def byte_pieces() -> list[str]:
    """The character by which a byte-level vocabulary writes each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    odd = [value for value in range(256) if value not in plain]
    names = {value: chr(value) for value in plain} | {value: chr(256 + n) for n, value in enumerate(odd)}
    assert set(names.values()) == set(pre_tokenizers.ByteLevel.alphabet())
    return [names[value] for value in range(256)]
