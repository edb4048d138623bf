"""How many bytes of Korean and of English does a token stand for, and who pays for a tokenizer that knows only English?

All tokenizers of one size read the same amount of text, Korean and English, in proportions set by the temperature of
the recipe (`tokenizer.temperature` in configs/braingpt-*.yaml); one reads English alone; GPT-2's stands beside them.
They are measured on Wikipedia articles held out, and on sentences that say the same in both languages: how many tokens
Korean takes for one of English (Petrov et al. 2023, arXiv 2305.15425, call it the premium). Equal bytes are not equal
text, for a Korean syllable takes three.

    python benchmarks/tokenizer.py [MIB OF TEXT]
"""

from __future__ import annotations

import json
import lzma
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from _bench import publish
from tokenizers import Tokenizer, models, pre_tokenizers

from pragnosia.data import documents, load_tokenizer, train_tokenizer
from pragnosia.data.tokenizers import count_tokens, plain_encoder
from pragnosia.units import MIB

TRAINED = {"English": "text_en/*.train.txt.xz", "Korean": "text_ko/*.train.txt.xz"}
HELD_OUT = {"English": "text_en/enwiki_new.valid.txt.xz", "Korean": "text_ko/kowiki.valid.txt.xz"}
PARALLEL = "park_news.dev", "jhe.dev", "tatoeba.test"
GPT2 = "checkpoints/gpt2_encoder.json.xz", "checkpoints/gpt2_vocab.bpe.xz"
ARMS: dict[str, tuple[int, float | None]] = {
    "English alone, 16384": (16384, None),
    "by size (temperature 1), 16384": (16384, 1.0),
    "temperature 3, 16384": (16384, 3.0),
    "as much of each, 16384": (16384, math.inf),
    "temperature 3, 2048": (2048, 3.0),
    "temperature 3, 32768": (32768, 3.0),
}


def gpt2(shared: Path) -> Tokenizer:
    """GPT-2's tokenizer, from its two files."""
    vocabulary, merges = (lzma.decompress((shared / name).read_bytes()).decode() for name in GPT2)
    pairs = [(left, right) for left, right in (line.split() for line in merges.splitlines()[1:] if line)]
    engine = Tokenizer(models.BPE(json.loads(vocabulary), pairs))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return engine


def trained(shared: Path, mib: int) -> dict[str, Tokenizer]:
    """The tokenizers of all arms."""
    engines = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (size, temperature)) in enumerate(ARMS.items()):
            languages = TRAINED.values() if temperature is not None else [TRAINED["English"]]
            sources = [f"{shared}/{pattern}" for pattern in languages]
            out = Path(folder) / str(number)
            train_tokenizer(sources, size, out, max_bytes=mib * MIB, temperature=temperature or 1.0)
            engines[name] = plain_encoder(load_tokenizer(out))
    return engines


def measured(engine: Tokenizer, held_out: dict[str, list[str]], pairs: dict[str, list[str]]) -> dict[str, Any]:
    """Bytes and characters per token of each language, and tokens of Korean for one of English."""
    found: dict[str, Any] = {}
    for language, texts in held_out.items():
        num_bytes, num_tokens = count_tokens(engine, texts)
        characters = sum(map(len, texts)) / num_tokens
        found[language] = {"bytes_per_token": num_bytes / num_tokens, "characters_per_token": characters}
    english, korean = (count_tokens(engine, pairs[language])[1] for language in ("English", "Korean"))
    return {**found, "korean_tokens_for_one_of_english": korean / english}


def sentences(shared: Path) -> dict[str, list[str]]:
    """What says the same in both languages."""
    files = [shared / f"parallel_ko_en/{name}.jsonl.xz" for name in PARALLEL]
    return {
        language: [text for file in files for text in documents(f"{file}#{column}")]
        for language, column in (("English", "en"), ("Korean", "ko"))
    }


def main(mib: int) -> None:
    """Train, measure, keep the numbers."""
    shared = Path(os.environ.get("PRAGNOSIA_DATA", "data"))
    if not all((shared / name).is_file() for name in (*HELD_OUT.values(), "text_ko/kowiki.train.txt.xz", *GPT2)):
        print(f"skipped: PRAGNOSIA_DATA names no folder with {' and '.join(HELD_OUT.values())}")
        return
    held_out = {language: list(documents(shared / name)) for language, name in HELD_OUT.items()}
    pairs = sentences(shared)
    engines = {**trained(shared, mib), "GPT-2, 50257": gpt2(shared)}
    values = {name: measured(engine, held_out, pairs) for name, engine in engines.items()}
    rows = [
        [
            name,
            *(f"{found[language]['bytes_per_token']:.2f}" for language in HELD_OUT),
            f"{found['korean_tokens_for_one_of_english']:.2f}",
        ]
        for name, found in values.items()
    ]
    header = ["tokenizer", *(f"{language}, bytes/token" for language in HELD_OUT), "Korean tokens for one of English"]
    sizes = {language: sum(len(text.encode()) for text in texts) for language, texts in held_out.items()}
    publish("What a token stands for, on text held out", header, rows,
            {"tokenizers": values, "trained_mib": mib, "held_out_bytes": sizes,
             "sentences": len(pairs["Korean"])}, __file__)  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 16)
