"""Data: sources of text, tokenizers, packed shards, and the batches a model is trained on."""

from __future__ import annotations

from pragnosia.data.batches import Batches, Place, shorten, validation_batches
from pragnosia.data.mixture import Corpus, DataSpec, Mixture, build_corpus
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

__all__ = [
    "RECIPES",
    "Batches",
    "Corpus",
    "DataSpec",
    "Joined",
    "Mixture",
    "PackingOptions",
    "Place",
    "Recipe",
    "Source",
    "Spec",
    "Texts",
    "TokenShards",
    "TokenStream",
    "TokenizerReport",
    "build_corpus",
    "bytes_per_token",
    "check_vocabulary",
    "documents",
    "fingerprint",
    "load_tokenizer",
    "resolve",
    "save_tokenizer",
    "shorten",
    "tokenize",
    "train_tokenizer",
    "validation_batches",
    "vocabulary_size",
]
