"""Tokenizers: loaded from a model directory, checked against a model, measured on text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from pragnosia.data.whole import whole_folder
from pragnosia.errors import DataError

_BATCH_CHARS = 4 * 1024**2


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerFast:
    """The tokenizer saved in `folder`: its tokenizer.json is the truth, no code of the folder is run.

    Raises:
        DataError: the folder or the tokenizer is missing or corrupt.
    """
    folder = Path(folder)
    file = folder / "tokenizer.json"
    if not file.is_file():
        what = "no tokenizer.json in" if folder.is_dir() else "no such tokenizer folder:"
        raise DataError(f"{what} {folder}; make one with `pragnosia tokenizer train FILES --vocab-size N --out DIR`")
    try:
        Tokenizer.from_file(str(file))
        loaded = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the library raises bare Exception for a damaged file
        raise DataError(f"the tokenizer in {folder} is corrupt: {str(error).splitlines()[0]}") from error
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path | str) -> None:
    """Write `tokenizer` into `folder` (a model directory, say), all its files or none."""
    with whole_folder(Path(folder)) as partial:
        tokenizer.save_pretrained(str(partial))


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Rows an embedding needs for it: the largest id and one, which holes in the ids make more than its length."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> None:
    """Raise DataError where `tokenizer` makes ids that a model of `vocab_size` has no row for."""
    needed = vocabulary_size(tokenizer)
    if needed > vocab_size:
        raise DataError(
            f"the tokenizer has {needed} ids, the model's vocabulary has {vocab_size}; "
            f"use the tokenizer the model was made with, or set vocab_size to {needed} or more"
        )


def separator(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id that ends a document in packed text: the end-of-sequence token, or the begin token where there is none."""
    for candidate in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if isinstance(candidate, int):
            return candidate
    raise DataError("the tokenizer has no end-of-sequence token to separate documents; set its eos_token")


def plain_encoder(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the engine inside that neither truncates nor pads, whatever the tokenizer's file says."""
    engine = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    engine.no_truncation()
    engine.no_padding()
    return engine


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """A digest that two tokenizers share when they turn every text into the same ids."""
    return hashlib.sha256(plain_encoder(tokenizer).to_str().encode()).hexdigest()


def count_tokens(engine: Tokenizer, texts: Iterable[str]) -> tuple[int, int]:
    """(bytes, tokens) of `texts`, special tokens not added."""
    num_bytes = num_tokens = chars = 0
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        num_bytes += len(text.encode())
        chars += len(text)
        if chars >= _BATCH_CHARS:
            num_tokens += _encoded_length(engine, batch)
            batch, chars = [], 0
    return num_bytes, num_tokens + _encoded_length(engine, batch)


def bytes_per_token(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> float:
    """UTF-8 bytes of `texts` for each token they become. Raises DataError for no text at all."""
    num_bytes, num_tokens = count_tokens(plain_encoder(tokenizer), texts)
    if num_tokens == 0:
        raise DataError("no text to measure bytes per token on")
    return num_bytes / num_tokens


def _encoded_length(engine: Tokenizer, texts: list[str]) -> int:
    return sum(len(encoding) for encoding in engine.encode_batch_fast(texts, add_special_tokens=False))
