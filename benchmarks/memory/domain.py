"""What does having read a book once give, without a gradient? Perplexity on books the model has never seen.

The second half of each book is predicted, window by window: by the model alone; with a cache of the text so far; with
the first half taught to the store beforehand (`teach --file`, one reading, no gradient); with both. Held-out books of
public domain from $PRAGNOSIA_DATA; the model is whichever is named (`make demo`'s knows Python's documentation, so a
book is another domain altogether; --train trains one of the same shape on other books first). JSON beside this file.

    PRAGNOSIA_DATA=… python benchmarks/memory/domain.py [MODEL] [--train] [--books 3] [--bytes 40000]
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bench import publish

from pragnosia import Pragnosia
from pragnosia.apps.cli import main as pragnosia
from pragnosia.data import documents
from pragnosia.measure.evaluation import evaluate
from pragnosia.store.words import paragraphs

LEARNED, HELD_OUT = "text_en/books_pd.train.txt.xz", "text_en/books_pd.valid.txt.xz"
WAYS = ("alone", "cache", "store", "store and cache")


def main() -> None:
    """Every book, every way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=Path("runs/demo"))
    parser.add_argument("--train", action="store_true", help="train MODEL on books first, as configs/demo.yaml has it")
    parser.add_argument("--books", type=int, default=3)
    parser.add_argument("--bytes", type=int, default=40_000, help="of each book: half to read, half to predict")
    asked = parser.parse_args()
    named = os.environ.get("PRAGNOSIA_DATA")
    if not named or not (Path(named) / HELD_OUT).is_file():
        print(f"skipped: PRAGNOSIA_DATA names no folder with {HELD_OUT}")
        return
    if asked.train and not (asked.model / "config.json").is_file():
        config = str(Path(__file__).parents[2] / "configs" / "demo.yaml")
        assert pragnosia(["train", config, "--data", str(Path(named) / LEARNED), "--out", str(asked.model)]) == 0
    if not (asked.model / "config.json").is_file():
        print(f"skipped: there is no model at {asked.model}; `make demo` trains one, or --train")
        return
    books = [text for text in documents(Path(named) / HELD_OUT) if len(text) >= asked.bytes]
    perplexities = [one_book(asked.model, text[: asked.bytes]) for text in itertools.islice(books, asked.books)]
    rows = []
    for way in WAYS:
        values = [book[way] for book in perplexities]
        gains = [100 * (book[way] / book["alone"] - 1) for book in perplexities]
        mean = math.exp(statistics.mean(map(math.log, values)))
        rows.append([way, *(f"{value:.1f}" for value in values), f"{mean:.1f}", f"{statistics.mean(gains):+.1f}"])
    header = ["memory", *(f"book {number + 1}" for number in range(len(perplexities))), "mean", "change [%]"]
    values = {"model": asked.model.name, "bytes": asked.bytes, "perplexities": perplexities}
    publish("Perplexity per token on the second half of books never seen", header, rows, values, __file__)


def one_book(model: Path, text: str) -> dict[str, float]:
    """Perplexity of the second half, by what is remembered."""
    first, second = text[: len(text) // 2], text[len(text) // 2 :]
    with tempfile.TemporaryDirectory() as folder:
        speaker = Pragnosia.from_pretrained(model, store=folder)
        found = {}
        for way in WAYS:
            if way == "store":
                speaker.remembering.teach(paragraphs(first), "the first half")
            mixing = speaker.remembering.mixing(cache="cache" in way)
            found[way] = evaluate(speaker.model, speaker.tokenizer, [second], batch_size=1, mixing=mixing).perplexity
    return found


if __name__ == "__main__":
    main()
