"""The small files that travel with the weights both ways: tokenizer, chat template, generation, licence."""

from __future__ import annotations

import shutil
from pathlib import Path

from pragnosia.checkpoints.gguf_header import gguf_in, has_vocabulary, read_header

TRAVELLERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
)
TEMPLATES = "additional_chat_templates"


def carry(source: Path, out: Path) -> list[str]:
    """Copy what there is of them, of a GGUF file the tokenizer it describes; the names of what was copied."""
    file = gguf_in(source)
    if file is not None:
        if not has_vocabulary(read_header(file)):
            return []
        from pragnosia.checkpoints.gguf_tokenizer import gguf_tokenizer

        return [Path(name).name for name in gguf_tokenizer(file).save_pretrained(out)]
    carried = [name for name in TRAVELLERS if (source / name).is_file()]
    for name in carried:
        shutil.copyfile(source / name, out / name)
    if (source / TEMPLATES).is_dir():
        shutil.copytree(source / TEMPLATES, out / TEMPLATES)
        carried.append(TEMPLATES)
    return carried
