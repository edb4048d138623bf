"""The tokenizer that a GGUF file describes, as transformers makes it of the metadata; with the file's chat template.

transformers adds the unknown token of the class it borrows where the file has none of that name; a model has no row for
it, so what lies beyond the file's own vocabulary is taken out again.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pragnosia.checkpoints.gguf_header import KIND, TOKENS, Header, has_vocabulary, read_header
from pragnosia.errors import CheckpointError

# Where a file says nothing else, these begin with the first token, and take a word of the vocabulary whole: llama.cpp,
# src/llama-vocab.cpp.
_LIKE_LLAMA3 = ("llama3", "llama-v3", "llama-bpe", "pixtral", "tekken")
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer. Raises CheckpointError where there is none, or of a kind that transformers does not know."""
    header = read_header(path)
    if not has_vocabulary(header):
        raise CheckpointError(f"{path} holds no tokenizer; give token ids from Python (Pragnosia.generate_tokens)")
    held = logging.getLogger("transformers").level
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        made: Any = PreTrainedTokenizerFast.from_pretrained(path.absolute().parent, gguf_file=path.name)
        return _own_words_only(made, header)
    except Exception as error:  # the tokenizers library raises bare Exception
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"cannot make a tokenizer of the metadata in {path} (kind {header.metadata[KIND]!r}): {reason}"
        ) from error
    finally:
        logging.getLogger("transformers").setLevel(held)


def _own_words_only(made: Any, header: Header) -> PreTrainedTokenizerBase:
    """The same without tokens that have no row."""
    listed = header.metadata[TOKENS]
    count = listed if isinstance(listed, int) else len(listed)
    backend = made.backend_tokenizer
    content = json.loads(backend.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < count]
    if content["model"].get("unk_token") not in (content["model"].get("vocab") or {}):
        content["model"]["unk_token"] = None
    specials = {
        name: made.convert_ids_to_tokens(header.metadata[f"tokenizer.ggml.{key}_token_id"])
        for name, key in _SPECIAL.items()
        if header.metadata.get(f"tokenizer.ggml.{key}_token_id") is not None
    }
    adds = {
        f"add_{end}_token": header.metadata[f"tokenizer.ggml.add_{end}_token"]
        for end in ("bos", "eos")
        if f"tokenizer.ggml.add_{end}_token" in header.metadata
    }
    like_llama3 = header.metadata.get("tokenizer.ggml.pre") in _LIKE_LLAMA3
    if like_llama3 and content["model"]["type"] == "BPE":
        content["model"]["ignore_merges"] = True
    if like_llama3 or header.metadata[KIND] == "llama":
        adds.setdefault("add_bos_token", True)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        chat_template=header.metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **specials,
        **adds,
    )
