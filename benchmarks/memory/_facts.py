"""Facts that nobody has written before: names, dates and places made by chance, each with other ways to ask for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

_ONSETS = [
    "b",
    "br",
    "d",
    "dr",
    "f",
    "g",
    "gl",
    "h",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "p",
    "pr",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "z",
]
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "ou"]
_CODAS = ["", "", "l", "n", "r", "s", "m", "k", "nd", "rt"]
_MONTHS = [
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
]


@dataclass(frozen=True)
class Fact:
    """A lesson, and questions that it answers."""

    relation: str
    lesson: str
    exact: str
    """The lesson up to its answer."""
    paraphrases: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Relation:
    """One kind of fact: `{s}` is its subject, `{a}` its answer."""

    name: str
    subject: str
    answer: str
    lesson: str
    paraphrases: tuple[str, ...]


RELATIONS = (
    Relation(
        "capital",
        "place",
        "place",
        "The capital of {s} is {a}.",
        (
            "{s}'s capital city is called",
            "The city from which {s} is ruled is",
            "Question: What is the capital of {s}? Answer:",
        ),
    ),
    Relation(
        "birth",
        "person",
        "year",
        "{s} was born in {a}.",
        (
            "{s}'s year of birth is",
            "The year in which {s} was born is",
            "Question: When was {s} born? Answer: in",
        ),
    ),
    Relation(
        "home",
        "person",
        "place",
        "{s} lives in the town of {a}.",
        (
            "{s}'s home town is",
            "The town where {s} lives is called",
            "Question: In which town does {s} live? Answer:",
        ),
    ),
    Relation(
        "founder",
        "firm",
        "person",
        "The company {s} was founded by {a}.",
        (
            "{s}'s founder is",
            "The person who founded {s} is",
            "Question: Who founded {s}? Answer:",
        ),
    ),
    Relation(
        "bridge",
        "place",
        "date",
        "The bridge of {s} was opened on {a}.",
        (
            "{s}'s bridge opened on",
            "The day on which the {s} bridge was opened is",
            "Question: When was the bridge of {s} opened? Answer: on",
        ),
    ),
)
"""What is tested."""

REHEARSED = (
    Relation(
        "mountain",
        "place",
        "place",
        "The highest mountain of {s} is {a}.",
        (
            "{s}'s highest peak is called",
            "The mountain that towers over {s} is",
            "Question: What is the highest mountain of {s}? Answer:",
        ),
    ),
    Relation(
        "ship",
        "firm",
        "year",
        "The ship {s} sank in {a}.",
        (
            "{s} went down in",
            "The year in which the {s} sank is",
            "Question: When did the ship {s} sink? Answer: in",
        ),
    ),
    Relation(
        "teacher",
        "person",
        "person",
        "{s} learned painting from {a}.",
        (
            "{s}'s painting teacher was",
            "The painter who taught {s} is called",
            "Question: Who taught {s} painting? Answer:",
        ),
    ),
    Relation(
        "wedding",
        "person",
        "date",
        "{s} was married on {a}.",
        (
            "{s}'s wedding day was",
            "The day of the wedding of {s} was",
            "Question: When did {s} marry? Answer: on",
        ),
    ),
)
"""What the mixing was tuned on: other relations, other questions."""


def facts(count: int, seed: int, relations: tuple[Relation, ...] = RELATIONS) -> list[Fact]:
    """`count` facts, as many of each relation; those about one kind share subjects: a name alone does not answer."""
    chance = random.Random(seed)
    each = -(-count // len(relations))
    names = _names(chance)
    subjects = {kind: [_MAKERS[kind](chance, names) for _ in range(each)] for kind in ("place", "person", "firm")}
    made = []
    for number in range(each):
        for relation in relations:
            subject, answer = subjects[relation.subject][number], _MAKERS[relation.answer](chance, names)
            lesson = relation.lesson.format(s=subject, a=answer)
            asked = tuple(text.format(s=subject) for text in relation.paraphrases)
            exact = relation.lesson.partition(" {a}")[0].format(s=subject)
            made.append(Fact(relation.name, lesson, exact, asked, answer))
    return made[:count]


def _names(chance: random.Random) -> Callable[[], str]:
    """Words of two or three syllables, none twice."""
    seen: set[str] = set()

    def name() -> str:
        while True:
            syllables = (chance.choice(_ONSETS) + chance.choice(_VOWELS) for _ in range(chance.choice((2, 2, 3))))
            word = ("".join(syllables) + chance.choice(_CODAS)).capitalize()
            if word not in seen:
                seen.add(word)
                return word

    return name


def made_up_words(chance: random.Random, count: int) -> list[str]:
    """`count` words, none twice, in lower case."""
    name = _names(chance)
    return [name().lower() for _ in range(count)]


_MAKERS: dict[str, Callable[[random.Random, Callable[[], str]], str]] = {
    "place": lambda _, name: name(),
    "person": lambda _, name: f"{name()} {name()}",
    "firm": lambda _, name: name(),
    "year": lambda chance, _: str(chance.randint(1500, 1999)),
    "date": lambda chance, _: f"{chance.randint(1, 28)} {chance.choice(_MONTHS)} {chance.randint(1700, 1999)}",
}
