"""A few questions that a tiny model can learn to answer, and where it gets its words from."""

from __future__ import annotations

import json
from pathlib import Path

ANSWERS = {"Who slept?": "The old cat slept.", "Who sees snow?": "The red king sees snow.", "Where?": "In Rome."}


def write_chat(path: Path) -> Path:
    """Prompts and completions, a line each."""
    rows = [{"prompt": question, "completion": answer} for question, answer in ANSWERS.items()] * 6
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def with_tokenizer(folder: Path, corner: Path) -> Path:
    """The corner's tokenizer beside a model."""
    for file in (corner / "tokenizer").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
