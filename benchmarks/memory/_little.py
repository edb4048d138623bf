"""What the benchmarks of learning from little share: sources of text, a small model, how it is trained and judged."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM
from pragnosia.data import Texts, documents, load_tokenizer, train_tokenizer
from pragnosia.measure.pool import Piece, look, pieces_of

SOURCES = {
    "dialogue": "text_en/sgd_dialogue.train.txt.xz",
    "encyclopedia": "text_en/enwiki_new.train.txt.xz",
    "proposals": "text_en/python_peps.train.txt.xz",
    "tales": "text_en/fairytale_stories.train.txt.xz",
}
VOCABULARY, LENGTH, BATCH = 2048, 128, 16
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "max_position_embeddings": 2 * LENGTH,
    "attention": {"num_heads": 4, "num_key_value_heads": 4, "head_dim": 32, "qk_norm": "head"},
    "feed_forward": {"width": 512, "activation": "relu2"},
}


def missing() -> str | None:
    """What keeps a benchmark from running, in words."""
    root = os.environ.get("PRAGNOSIA_DATA")
    for path in SOURCES.values():
        if not root or not (Path(root) / path).is_file():
            return f"skipped: PRAGNOSIA_DATA names no folder with {path}"
    return None


def texts(name: str, count: int, first: int = 0) -> list[str]:
    """Documents of a source."""
    return list(islice(documents(str(Path(os.environ["PRAGNOSIA_DATA"]) / SOURCES[name])), first, first + count))


def tokenizer_of(some: Sequence[str]) -> Any:
    """Trained on these texts."""
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(Texts(list(some), "texts"), VOCABULARY, Path(folder))
        return load_tokenizer(folder)


def cut(tokenizer: Any, some: Sequence[str], length: int = LENGTH) -> list[Piece]:
    """Whole pieces of equal length."""
    return [piece for piece in pieces_of(tokenizer, VOCABULARY, some, length) if len(piece.tokens) == length]


def fresh(seed: int) -> PragnosiaForCausalLM:
    """The small model before it learns."""
    torch.manual_seed(seed)
    return PragnosiaForCausalLM(PragnosiaConfig(**SHAPE))


def rows_of(pieces: Sequence[Piece]) -> Tensor:
    """(N, T)."""
    return torch.stack([piece.tokens for piece in pieces])


def train(model: PragnosiaForCausalLM, rows: Tensor, *, steps: int, rate: float, seed: int) -> PragnosiaForCausalLM:
    """AdamW over shuffled epochs of `rows`, warm-up and cosine."""
    chance = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: (
            min(1.0, (step + 1) / warm)
            * (0.02 + 0.98 * (1 + torch.cos(torch.tensor(step / steps * 3.1416)).item()) / 2)
        ),
    )
    model.train()
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < BATCH:
            order = torch.cat((order, torch.randperm(len(rows), generator=chance)))
        batch, order = rows[order[:BATCH]], order[BATCH:]
        optimiser.zero_grad()
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval()


def judged(model: PragnosiaForCausalLM, pieces: Sequence[Piece]) -> float:
    """Mean loss [nats per token]."""
    return float(look(model, pieces, None).loss.mean())


def told(values: Sequence[float]) -> str:
    """Mean and spread over seeds."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} +- {spread:.4f}"
