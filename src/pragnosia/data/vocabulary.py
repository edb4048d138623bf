"""Vocabulary: what the rows of a model stand for, as a digest that a tokenizer's file can be held against.

Only pieces and merges count: libraries rewrite the rest of a tokenizer.json when they save it again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def vocabulary_digest(folder: Path | str) -> str | None:
    """Of the pieces, their ids and the merges in `folder`'s tokenizer.json; None where it has none that can be read."""
    try:
        held = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
        content = [_pieces(held["model"]["vocab"]), [_pair(merge) for merge in held["model"].get("merges") or ()]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # whoever loads it will say what is wrong
        return None
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _pieces(vocabulary: Any) -> list[Any]:
    """In the order of their ids; a list, as Unigram's with its scores, is in order."""
    return sorted(vocabulary.items(), key=lambda entry: entry[1]) if isinstance(vocabulary, dict) else vocabulary


def _pair(merge: Any) -> list[str]:
    """Files write `a b` or [a, b]."""
    return merge.split(" ") if isinstance(merge, str) else list(merge)
