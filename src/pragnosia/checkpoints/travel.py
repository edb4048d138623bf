"""The small files that travel with the weights both ways: tokenizer, chat template, generation, licence."""

from __future__ import annotations

import shutil
from pathlib import Path

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
    """Copy what there is of them; the names of what was copied."""
    carried = [name for name in TRAVELLERS if (source / name).is_file()]
    for name in carried:
        shutil.copyfile(source / name, out / name)
    if (source / TEMPLATES).is_dir():
        shutil.copytree(source / TEMPLATES, out / TEMPLATES)
        carried.append(TEMPLATES)
    return carried
