"""Why an answer ended: as many tokens as asked for, a full context, a stop token or a stop text."""

from __future__ import annotations

import pytest

from pragnosia import Pragnosia
from pragnosia.inference.chat import Conversation
from pragnosia.inference.ending import Spoken
from pragnosia.inference.sampling import Sampling


def spoken(speaker: Pragnosia, ids: list[int], most: int, stop_tokens: set[int] | None = None) -> Spoken:
    decoder = speaker.decoder(len(ids) + most)
    decoder.read(ids)
    return Spoken(decoder, most, Sampling(), stop_tokens or set())


@pytest.mark.parametrize(
    ("given", "most", "why", "number"), [(2, 5, "length", 5), (190, 50, "context", 2), (190, 2, "length", 2)]
)
def test_length_and_context(speaker: Pragnosia, given: int, most: int, why: str, number: int) -> None:
    words = spoken(speaker, [1] * given, most)
    assert len(list(words)) == number
    assert words.stopped == why


def test_a_stop_token_at_the_very_end(speaker: Pragnosia) -> None:
    ids = speaker.encode("the user")
    last = speaker.generate_tokens(ids, max_new_tokens=4)[-1]
    words = spoken(speaker, ids, 4, {last})
    list(words)
    assert words.stopped == "stop"


def test_a_stop_text_at_the_very_end(speaker: Pragnosia) -> None:
    ids = speaker.encode("the user")
    said = "".join(speaker.pieces(iter(speaker.generate_tokens(ids, max_new_tokens=6)), after=ids))
    words = spoken(speaker, ids, 6)
    assert said.startswith("".join(speaker.pieces(iter(words), (said[-1],), after=ids)))
    assert words.stopped == "stop"


def test_a_conversation_says_it_too(speaker: Pragnosia) -> None:
    limit = speaker.model.config.max_position_embeddings
    talk = Conversation(speaker, max_new_tokens=limit)
    assert talk.stopped == "stop"
    "".join(talk.say("the"))
    assert talk.stopped == ("context" if len(talk.decoder.ids) == limit else "stop")
    short = Conversation(speaker, max_new_tokens=1)
    "".join(short.say("the"))
    assert short.stopped == "length"
