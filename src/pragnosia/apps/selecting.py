"""`select`: which texts of a pool a model should learn from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.apps.budgeting import bar, open_speaker
from pragnosia.units import format_count

if TYPE_CHECKING:
    from pragnosia.measure.pool import Piece
    from pragnosia.measure.selection import Choice

_SHOWN, _PREVIEW = 5, 60
_SEPARATOR = "<|endoftext|>"


@answering
def select(
    model: Annotated[Path, typer.Argument(help="A model directory or a GGUF file.", metavar="MODEL")],
    pool: Annotated[
        list[str], typer.Option("--pool", help="Texts to choose from: files, directories, recipes; repeatable.")
    ],
    budget: Annotated[int, typer.Option(min=1, help="Tokens to choose, in this model's.")],
    by: Annotated[str, typer.Option(help="loss, disagreement, diversity, coverage or random.")] = "diversity",
    against: Annotated[
        Path | None, typer.Option(help="For disagreement: a second model; default exits, or half of the units.")
    ] = None,
    piece: Annotated[
        int | None, typer.Option(min=2, help="Longer texts are cut into pieces of so many tokens; default 256.")
    ] = None,
    seed: Annotated[int, typer.Option(help="For what is drawn by chance.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Where what was chosen goes: .jsonl, or text for `train --data`.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Choose the texts that are worth learning: by the model's loss, a committee's disagreement, or variety.

    `random` is what any other way has to beat: benchmarks/memory/choosing.py says when it does.
    """
    _check(model, pool, by, against, out)
    from pragnosia.data import Mixture
    from pragnosia.measure.passages import start_token
    from pragnosia.measure.pool import PIECE, Member, committee, look, pieces_of
    from pragnosia.measure.selection import select as choose

    quiet = as_json
    speaker = open_speaker(model, None, None, quiet=quiet, speculate=False, store=False)
    limit = int(speaker.model.config.max_position_embeddings)
    if piece is not None and piece > limit:
        from pragnosia.errors import ConfigError

        raise ConfigError(f"--piece is {piece}, the model holds {limit} tokens; lower it")
    called, members = "", list[Member]()
    if by == "disagreement":
        other = (
            None if against is None else open_speaker(against, None, None, quiet=quiet, speculate=False, store=False)
        )
        if other is not None:
            _check_same_words(speaker.tokenizer, other.tokenizer, against)
        called, members = committee(speaker.model, None if other is None else other.model)
    documents = Mixture.parse(pool).documents()
    texts = pieces_of(speaker.tokenizer, int(speaker.model.config.vocab_size), documents, piece or min(PIECE, limit))
    start = start_token(speaker.tokenizer)
    with bar("reading", quiet=quiet, counts=True) as told:
        views = look(speaker.model, texts, start, members, told)
    choice = choose(by, [len(one.tokens) for one in texts], budget, views, seed)
    found = _Found(texts, choice, views.loss.tolist())
    if out is not None:
        _write(out, [texts[number] for number in choice.numbers])
    values = {"model": str(model), "pool": pool, "by": by, "committee": called or None, "seed": seed, "budget": budget}
    return Answer(values | found.values() | {"out": None if out is None else str(out)}, found.lines(by, called, out))


@dataclass(frozen=True)
class _Found:
    texts: Sequence[Piece]
    choice: Choice
    losses: list[float]

    def values(self) -> dict[str, Any]:
        chosen = [
            {
                "document": self.texts[number].document,
                "start": self.texts[number].start,
                "tokens": len(self.texts[number].tokens),
                "score": score,
                "loss": self.losses[number],
                "text": self.texts[number].text,
            }
            for number, score in zip(self.choice.numbers, self.choice.scores, strict=True)
        ]
        return {
            "pool_texts": len(self.texts),
            "pool_tokens": sum(len(one.tokens) for one in self.texts),
            "pool_loss": sum(self.losses) / len(self.losses),
            "texts": len(chosen),
            "tokens": self.choice.tokens,
            "loss": sum(self.losses[number] for number in self.choice.numbers) / len(chosen),
            "chosen": chosen,
        }

    def lines(self, by: str, called: str, out: Path | None) -> list[str]:
        values = self.values()
        rows = [
            ("by", by if not called else f"{by} of {called}"),
            ("pool", f"{values['pool_texts']} texts, {format_count(values['pool_tokens'])} tokens"),
            ("chosen", f"{values['texts']} texts, {format_count(values['tokens'])} tokens"),
            ("loss", f"{values['loss']:.3f} nats per token chosen, {values['pool_loss']:.3f} in the pool"),
        ]
        shown = []
        for one in values["chosen"][:_SHOWN]:
            text = " ".join(one["text"].split())
            text = text if len(text) <= _PREVIEW else text[: _PREVIEW - 1] + "…"
            shown.append(f"{one['score']:>9.3f}  {one['tokens']:>5}  {text!r}")
        last = ("written", str(out)) if out is not None else ("written", "nothing; --out FILE keeps what was chosen")
        return [*aligned([*rows, last]), "    score  tokens  the first of them", *shown]


def _check(model: Path, pool: list[str], by: str, against: Path | None, out: Path | None) -> None:
    """What can be said before torch is loaded. Raises UserErrors."""
    from pragnosia.data.mixture import Mixture
    from pragnosia.errors import ConfigError, unknown_name
    from pragnosia.inference.directory import check_speaker

    if by not in WAYS:
        raise ConfigError(unknown_name("way to select", by, WAYS))
    if against is not None and by != "disagreement":
        raise ConfigError(f"--against names who disagrees, and --by is {by}; choose --by disagreement, or leave it out")
    for folder in (model, *([] if against is None else [against])):
        check_speaker(folder)
    if any(weight != 1 for weight in Mixture.parse(pool).weights):
        raise ConfigError("a pool has no weights, since all of it is looked at; leave out what follows @")
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise ConfigError(
            f"--out {out}: {'that is a folder' if out.is_dir() else 'its folder is missing'}; name a file"
        )


WAYS = ("loss", "disagreement", "diversity", "coverage", "random")


def _check_same_words(mine: Any, other: Any, against: Path | None) -> None:
    if mine.get_vocab() != other.get_vocab():
        from pragnosia.errors import ConfigError

        raise ConfigError(f"{against} has another tokenizer; two models can only disagree about the same tokens")


def _write(out: Path, chosen: Sequence[Piece]) -> None:
    """Whole or not at all."""
    from pragnosia.training.checkpoint import write_whole

    if out.suffix == ".jsonl":
        lines = [json.dumps({"text": one.text, "document": one.document}, ensure_ascii=False) for one in chosen]
        write_whole(out, "\n".join(lines) + "\n")
    else:
        write_whole(out, f"\n{_SEPARATOR}\n".join(one.text for one in chosen) + "\n")
