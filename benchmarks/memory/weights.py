"""How much should each sign that a lesson is meant weigh? The weights of inference/weights.py, by maximum likelihood.

Stores of 1, 40 and 400 made-up facts (relations and questions that facts.py does not test); read are their lessons'
beginnings with answers, questions with answers, questions about subjects that were never taught, sentences that only
name a subject, and text about other things. Maximised is the mean log-probability of each next token under the mixture
(inference/recollection.py), that of answers ASKED times. Prints the numbers to put there.

    python benchmarks/memory/weights.py MODEL [--asked 5]
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _facts import REHEARSED, Fact, facts

from pragnosia import Pragnosia
from pragnosia.data import documents
from pragnosia.inference.lessons import FEATURES, RECENT, Lessons
from pragnosia.inference.remembering import header_of
from pragnosia.inference.teaching import Teacher
from pragnosia.store.episodes import EpisodicStore

SIZES = (1, 40, 400)
ABOUT = (
    "Nobody in {} spoke of it, since the weather was bad that week and the roads were closed.",
    "I met a friend near {} who had a book about birds, and we read it in the garden.",
    "They say that {} is nice in spring. The trees are green and the people sing.",
)
CUT = 0.15
"""Of the places in other text, where a prompt could have ended."""


@dataclass
class Step:
    """One next token."""

    kind: str
    features: Any
    right: Any
    """Of each place, whether its token came."""
    chance: float
    """ln p by the model."""
    weight: float


def texts(
    taught: list[Fact], unknown: list[Fact], other: list[str], chance: random.Random
) -> Iterator[tuple[str, str, str]]:
    """Kind, prompt and how it goes on."""
    for fact in chance.sample(taught, min(30, len(taught))):
        for question in (fact.exact, *fact.paraphrases):
            yield "taught", question, f" {fact.answer}."
        subject = max((w for w in fact.exact.split() if w[0].isupper() and w != "The"), key=len)
        yield "about", "", chance.choice(ABOUT).format(subject)
    for fact in chance.sample(unknown, 30):
        yield "unknown", chance.choice((fact.exact, *fact.paraphrases)), f" {fact.answer}."
    for text in other:
        yield "other", "", text


def steps(
    speaker: Pragnosia, lessons: Lessons, kind: str, prompt: str, rest: str, chance: random.Random, asked: float
) -> Iterator[Step]:
    """Every next token of one text at which something comes to mind."""
    ids, begins = speaker.encode(prompt + rest), len(speaker.encode(prompt)) if prompt else -1
    with torch.inference_mode():
        states = speaker.model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
        chances = speaker.model.lm_head(states).float().log_softmax(-1).numpy()
    for at in range(1, len(ids)):
        answers = at == begins
        recent = ids[max(0, at - RECENT) : at]
        places = lessons.places(
            speaker.tokenizer.decode(recent), recent, states[at - 1].numpy(),
            asked=answers or (not prompt and chance.random() < CUT),
        )  # fmt: skip
        if places is not None:
            weight = asked if answers else 1.0
            yield Step(kind, places.features, places.tokens == ids[at], float(chances[at - 1][ids[at]]), weight)


def gathered(speaker: Pragnosia, folder: str, asked: float) -> list[Step]:
    """From all stores."""
    teacher, found = Teacher(speaker.model, speaker.tokenizer), list[Step]()
    other = [text[:1500] for text in itertools.islice(documents("default"), 5, 400, 60)]
    prose = Path(__file__).parents[2] / "README.md"
    other += [prose.read_text("utf-8")[at : at + 1500] for at in range(0, 3000, 1500)]
    for size in SIZES:
        chance = random.Random(size)
        many = [facts(size, seed, REHEARSED) for seed in range(max(1, 8 // size))]
        for number, taught in enumerate(many[:8]):
            place = Path(folder) / f"{size}-{number}"
            store = EpisodicStore.open(place, header_of(speaker.folder or "", speaker.model.config))
            store.write(teacher.read([piece for fact in taught for piece in teacher.pieces(fact.lesson)]))
            lessons = Lessons(store)
            some = other if number == 0 else []
            for kind, prompt, rest in texts(taught, facts(60, 1000 + size, REHEARSED), some, chance):
                found += steps(speaker, lessons, kind, prompt, rest, chance, asked)
            store.close()
        print(f"{size} facts: {len(found)} tokens at which something came to mind", flush=True)
    return found


def fitted(found: list[Step]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weights, the bias, and what each token gains [nats]."""
    most = max(len(step.features) for step in found)
    features = torch.zeros(len(found), most, len(FEATURES))
    right = torch.zeros(len(found), most, dtype=torch.bool)
    absent = torch.ones(len(found), most, dtype=torch.bool)
    for number, step in enumerate(found):
        count = len(step.features)
        features[number, :count] = torch.tensor(step.features)
        right[number, :count], absent[number, :count] = torch.tensor(step.right), False
    chances = torch.tensor([step.chance for step in found])
    importance = torch.tensor([step.weight for step in found])
    weights = torch.tensor([1.0, 3.0, *[0.5] * (len(FEATURES) - 2)], requires_grad=True)
    bias = torch.tensor(8.0, requires_grad=True)

    def gains() -> torch.Tensor:
        scores = (features @ weights).masked_fill(absent, -1e9)
        whole = torch.logsumexp(torch.cat([scores, bias.expand(len(found), 1)], 1), 1)
        told = torch.logsumexp(scores.masked_fill(~right, -1e9), 1)
        return torch.logaddexp(told, bias + chances) - whole - chances

    solver = torch.optim.LBFGS([weights, bias], lr=0.5, max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = -(importance * gains()).sum() / importance.sum() + 1e-4 * (weights**2).sum()
        loss.backward()
        return loss

    for _ in range(4):
        solver.step(closure)
    return weights.detach(), bias.detach(), gains().detach()


def main() -> None:
    """Print the weights, and what they are worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--asked", type=float, default=5.0)
    asked = parser.parse_args()
    speaker = Pragnosia.from_pretrained(asked.model, store=False)
    with tempfile.TemporaryDirectory() as folder:
        found = gathered(speaker, folder, asked.asked)
    weights, bias, gains = fitted(found)
    for name, weight in zip(FEATURES, weights.tolist(), strict=True):
        print(f"{name:<20} {weight:6.2f}")
    print(f"{'bias':<20} {float(bias):6.2f}")
    for kind in ("taught", "about", "unknown", "other"):
        of_kind = torch.tensor([step.kind == kind for step in found])
        answers = torch.tensor(np.array([step.weight > 1 for step in found])) & of_kind
        told = f", answers {float(gains[answers].mean()):+.3f}" if answers.any() else ""
        print(f"{kind:<8} {int(of_kind.sum()):>6} tokens, {float(gains[of_kind].mean()):+.4f} nats each{told}")


if __name__ == "__main__":
    main()
