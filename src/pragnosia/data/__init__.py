"""Data: sources of text, tokenizers, packed shards, and the batches a model is trained on.

Names load when first used: whether a text exists can be said without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pragnosia.data.batches import Batches, Place, shorten, validation_batches
    from pragnosia.data.conversations import Dialogue, Document, Message, read_conversations
    from pragnosia.data.corpus import Corpus, build_corpus
    from pragnosia.data.curriculum import MEASURES, Curriculum, Pace, window_count
    from pragnosia.data.mixture import DataSpec, Mixture
    from pragnosia.data.packing import PackingOptions, tokenize
    from pragnosia.data.recipes import RECIPES, Recipe
    from pragnosia.data.shards import TokenShards, TokenStream
    from pragnosia.data.sources import Joined, Source, Texts
    from pragnosia.data.specs import Spec, documents, resolve
    from pragnosia.data.tokenizer_training import TokenizerReport, train_tokenizer
    from pragnosia.data.tokenizers import (
        bytes_per_token,
        check_vocabulary,
        fingerprint,
        load_tokenizer,
        save_tokenizer,
        vocabulary_size,
    )
    from pragnosia.data.tuning_batches import TuningBatch, TuningBatches, segment_mask
    from pragnosia.data.tuning_examples import TuningExamples, tokenize_conversations
    from pragnosia.data.vocabulary import vocabulary_digest

__all__ = [
    "MEASURES",
    "RECIPES",
    "Batches",
    "Corpus",
    "Curriculum",
    "DataSpec",
    "Dialogue",
    "Document",
    "Joined",
    "Message",
    "Mixture",
    "Pace",
    "PackingOptions",
    "Place",
    "Recipe",
    "Source",
    "Spec",
    "Texts",
    "TokenShards",
    "TokenStream",
    "TokenizerReport",
    "TuningBatch",
    "TuningBatches",
    "TuningExamples",
    "build_corpus",
    "bytes_per_token",
    "check_vocabulary",
    "documents",
    "fingerprint",
    "load_tokenizer",
    "read_conversations",
    "resolve",
    "save_tokenizer",
    "segment_mask",
    "shorten",
    "tokenize",
    "tokenize_conversations",
    "train_tokenizer",
    "validation_batches",
    "vocabulary_digest",
    "vocabulary_size",
    "window_count",
]

_HOMES = {
    "batches": ("Batches", "Place", "shorten", "validation_batches"),
    "conversations": ("Dialogue", "Document", "Message", "read_conversations"),
    "corpus": ("Corpus", "build_corpus"),
    "curriculum": ("MEASURES", "Curriculum", "Pace", "window_count"),
    "mixture": ("DataSpec", "Mixture"),
    "packing": ("PackingOptions", "tokenize"),
    "recipes": ("RECIPES", "Recipe"),
    "shards": ("TokenShards", "TokenStream"),
    "sources": ("Joined", "Source", "Texts"),
    "specs": ("Spec", "documents", "resolve"),
    "tokenizer_training": ("TokenizerReport", "train_tokenizer"),
    "tokenizers": (
        "bytes_per_token", "check_vocabulary", "fingerprint", "load_tokenizer", "save_tokenizer", "vocabulary_size",
    ),
    "tuning_batches": ("TuningBatch", "TuningBatches", "segment_mask"),
    "tuning_examples": ("TuningExamples", "tokenize_conversations"),
    "vocabulary": ("vocabulary_digest",),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
