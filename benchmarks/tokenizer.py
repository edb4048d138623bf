"""How many bytes of Korean and of English does a token of our tokenizers stand for?

Tokenizers are trained on equal parts of Korean and English Wikipedia and measured on articles held out; GPT-2's stands
beside them. Korean syllables take three bytes, so equal bytes are not equal text: characters per token stand there too.

    python benchmarks/tokenizer.py [MIB OF EACH LANGUAGE]
"""

from __future__ import annotations

import json
import lzma
import os
import sys
import tempfile
from pathlib import Path

from _bench import publish
from tokenizers import Tokenizer, models, pre_tokenizers

from pragnosia.data import documents, load_tokenizer, train_tokenizer
from pragnosia.data.tokenizers import count_tokens, plain_encoder
from pragnosia.units import MIB

LANGUAGES = {"Korean": "text_ko/kowiki", "English": "text_en/enwiki_new"}
GPT2 = "checkpoints/gpt2_encoder.json.xz", "checkpoints/gpt2_vocab.bpe.xz"
SIZES = 2048, 16384


def gpt2(shared: Path) -> Tokenizer:
    """GPT-2's tokenizer, from its two files."""
    vocabulary, merges = (lzma.decompress((shared / name).read_bytes()).decode() for name in GPT2)
    pairs = [(left, right) for left, right in (line.split() for line in merges.splitlines()[1:] if line)]
    engine = Tokenizer(models.BPE(json.loads(vocabulary), pairs))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return engine


def main(mib: int) -> None:
    """Train, measure, keep the numbers."""
    shared = Path(os.environ.get("PRAGNOSIA_DATA", "data"))
    if not all(
        (shared / f"{name}.{part}.txt.xz").is_file() for name in LANGUAGES.values() for part in ("train", "valid")
    ):
        print(f"skipped: PRAGNOSIA_DATA names no folder with {' and '.join(LANGUAGES.values())}")
        return
    held_out = {name: list(documents(shared / f"{file}.valid.txt.xz")) for name, file in LANGUAGES.items()}
    engines = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            trained = [shared / f"{file}.train.txt.xz" for file in LANGUAGES.values()]
            train_tokenizer(trained, size, Path(folder) / str(size), max_bytes=2 * mib * MIB)
            engines[f"ours, {size}"] = plain_encoder(load_tokenizer(Path(folder) / str(size)))
    if all((shared / name).is_file() for name in GPT2):
        engines["GPT-2, 50257"] = gpt2(shared)
    rows, values = [], {}
    for name, engine in engines.items():
        row, found = [name], {}
        for language, texts in held_out.items():
            num_bytes, num_tokens = count_tokens(engine, texts)
            characters = sum(map(len, texts)) / num_tokens
            found[language] = {"bytes_per_token": num_bytes / num_tokens, "characters_per_token": characters}
            row += [f"{num_bytes / num_tokens:.2f}", f"{characters:.2f}"]
        rows.append(row)
        values[name] = found
    header = ["tokenizer", *(f"{language} {unit}" for language in LANGUAGES for unit in ("bytes/token", "chars/token"))]
    measured = {name: sum(len(text.encode()) for text in texts) for name, texts in held_out.items()}
    publish("What a token stands for, on articles held out", header, rows,
            {"tokenizers": values, "trained_mib_of_each": mib, "held_out_bytes": measured}, __file__)  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
