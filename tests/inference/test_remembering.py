"""What was taught is said; what was not changes nothing; and what is forgotten is not said again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pragnosia import Pragnosia, PragnosiaForCausalLM, kernels
from pragnosia.errors import ConfigError, StoreError
from pragnosia.inference.decode import Trace
from pragnosia.inference.lessons import FEATURES, Lesson, Lessons
from pragnosia.inference.mixing import Mixing
from pragnosia.inference.nearby import PRIOR, Nearby
from pragnosia.inference.program import Program
from pragnosia.inference.recollection import weighed
from pragnosia.inference.remembering import Remembering, room_of
from pragnosia.inference.sampling import Sampling
from pragnosia.inference.teaching import Teacher
from pragnosia.measure.accounting import account
from pragnosia.measure.activity import ActivityMeter
from pragnosia.measure.evaluation import evaluate
from pragnosia.store.episode import Episode
from pragnosia.store.episodes import EpisodicStore
from pragnosia.store.opening import Header

LESSON = "The capital of Zorvia is Plem."
EXACT = "The capital of Zorvia is"
OTHER = "And so they went home"


@pytest.fixture
def model(directory: Path, tmp_path: Path) -> Path:
    """A directory of its own, for a store beside it."""
    return Path(shutil.copytree(directory, tmp_path / "model"))


def test_a_lesson_is_said(model: Path) -> None:
    speaker = Pragnosia.from_pretrained(model)
    before = speaker.generate(EXACT, max_new_tokens=6)
    assert not before.startswith(" Plem.")
    taught = speaker.teach(LESSON)
    assert len(taught.ids) == 1
    assert (taught.cut, taught.repeated) == (0, 0)
    assert speaker.generate(EXACT, max_new_tokens=6) == " Plem."
    again = Pragnosia.from_pretrained(model)
    assert again.generate(EXACT, max_new_tokens=6) == " Plem."
    assert Pragnosia.from_pretrained(model, store=False).generate(EXACT, max_new_tokens=6) == before
    (found, *_) = again.recall(EXACT)
    assert (found.id, found.text, found.brings) == (taught.ids[0], LESSON, "Plem.")
    assert found.similarity > 0.99
    assert found.weight > 0.9
    assert set(found.words) == {"the", "capital", "of", "zorvia", "is"}
    assert again.forget(LESSON) == list(taught.ids)
    assert again.generate(EXACT, max_new_tokens=6) == before
    with pytest.raises(StoreError, match="holds no lesson"):
        again.forget(LESSON)


def test_other_words_ask_for_it(model: Path) -> None:
    speaker = Pragnosia.from_pretrained(model)
    for text in (LESSON, "Brun's mayor is Tal.", "The river of Quillon is the Ola."):
        speaker.teach(text)
    assert speaker.recall("Zorvia's capital city is called")[0].text == LESSON
    assert speaker.recall("Question: who is the mayor of Brun? Answer:")[0].text == "Brun's mayor is Tal."


def test_without_a_store_nothing_changes(model: Path, speaker: Pragnosia) -> None:
    plain = Pragnosia.from_pretrained(model)
    assert plain.decoder(8).mixing is None
    assert plain.generate(OTHER, max_new_tokens=20) == speaker.generate(OTHER, max_new_tokens=20)
    assert not (model / "episodes").exists(), "speaking makes no store"


def test_what_is_unlike_a_lesson_is_left_alone(model: Path) -> None:
    """No telling word and no literal match: lessons have no say; neighbours have the little of their prior."""
    speaker = Pragnosia.from_pretrained(model)
    speaker.teach(LESSON)
    mixing = speaker.remembering.mixing()
    assert mixing is not None
    ids = speaker.encode(OTHER)
    states = speaker.model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0].detach()
    logits = speaker.model.lm_head(states[-1:]).detach()
    mixed = mixing.mix(ids, states[-1], logits)
    assert not len(mixing.shares.tokens)
    assert float((mixed.exp() - logits.log_softmax(-1).exp()).abs().sum()) <= 2 * PRIOR + 1e-6
    assert float(mixed.exp().sum()) == pytest.approx(1, abs=1e-4)


def test_wording_alone_is_no_recall(tmp_path: Path) -> None:
    """Who asks about somebody else in a lesson's very words does not mean the lesson."""
    said = "The bridge of {} was opened to all on"
    words = [*said.format("Zorvia").split(), "Tuesday", "Quillon"]
    episode = Episode(
        text=f"{said.format('Zorvia')} Tuesday",
        tokens=np.arange(len(words) - 1, dtype=np.int32),
        starts=np.cumsum([0, *(len(word) + 1 for word in words[:-2])]).astype(np.int32),
        keys=np.ones((len(words) - 2, 4), np.float16),
        surprises=np.array([9.0 if word == "Zorvia" else 0.3 for word in words[1:-1]], np.float16),
    )
    with EpisodicStore.open(tmp_path / "store", Header(model="a", tokenizer="b", width=4, limit=1 << 20)) as store:
        store.write([episode])
        lessons = Lessons(store)

        def comes(text: str) -> bool:
            ids = [words.index(word) for word in text.split()]
            return lessons.places(text, ids, np.ones(4, np.float32)) is not None

        assert comes(said.format("Zorvia"))
        assert comes("was opened to all on"), "nothing speaks against it"
        assert comes("Quillon opened to all on"), "what differs there is nobody's name"
        assert not comes(said.format("Quillon"))


def test_lessons_are_believed_as_far_as_they_come_true(model: Path) -> None:
    speaker = Pragnosia.from_pretrained(model)
    speaker.teach(LESSON)

    def trust(text: str) -> float:
        mixing = speaker.remembering.mixing()
        assert mixing is not None
        ids = speaker.encode(text)
        with torch.inference_mode():
            states = speaker.model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0, :-1]
            mixing.score(ids, states, speaker.model.lm_head(states))
        return mixing.trust

    assert trust(OTHER) > 0.98, "next to nothing was foretold"
    assert trust(" ".join([LESSON.replace("Plem", "Brun")] * 5)) < 0.95 < trust(" ".join([LESSON] * 5))


def test_what_recalling_cost_is_counted_once(model: Path) -> None:
    speaker = Pragnosia.from_pretrained(model)
    speaker.teach(LESSON)
    ids, entries, vocabulary = speaker.encode(EXACT), len(speaker.encode(LESSON)) - 1, len(speaker.tokenizer)
    trace = Trace()
    decoder = speaker.decoder(64, trace=trace)
    decoder.read(ids)
    list(decoder.speak(3, Sampling()))
    assert len(trace.recalls) == 3
    # behind the prompt: its states but the last are judged by the head and by their neighbours
    judged, width = len(ids) - 1, 24
    keys = entries * (judged + 1) + 2 * entries  # neighbours of each state, and the lesson that came to mind
    assert trace.recalls[0].operations == 2 * width * keys + 2 * judged * width * vocabulary
    assert trace.recalls[1].operations == 2 * width * (entries + 2 * entries)
    assert trace.recalls[1].num_bytes == 4 * width * 2 * entries + 8 * vocabulary
    plain, asked = ActivityMeter(account(speaker.model)), ActivityMeter(account(speaker.model))
    for effort in trace.recalls:
        asked.recalled(effort)
    assert asked.activity().operations == plain.activity().operations + sum(one.operations for one in trace.recalls)


def test_evaluating_with_a_store_costs_more(model: Path) -> None:
    speaker = Pragnosia.from_pretrained(model)
    speaker.teach(LESSON)
    alone, asked = (
        evaluate(speaker.model, speaker.tokenizer, [LESSON], batch_size=1, mixing=mixing)
        for mixing in (None, speaker.remembering.mixing())
    )
    entries = len(speaker.encode(LESSON)) - 1
    assert asked.operations_per_token - alone.operations_per_token >= 2 * 24 * entries
    assert asked.joules > alone.joules or asked.joules_source != "model"


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
def test_the_compiled_step_tells_the_state(make_model: Callable[..., PragnosiaForCausalLM]) -> None:
    model = make_model()
    with torch.inference_mode():
        state = model(torch.tensor([[5, 6, 7]])).past_key_values
        program = Program(model, state.fork(), tells=True)
        program(8)
        silent = Program(model, state.fork())
        silent(8)
        output = model.model(torch.tensor([[8]]), past_key_values=state)
    assert torch.allclose(program.hidden, output.last_hidden_state[0], atol=1e-4)
    assert torch.equal(program.logits, silent.logits)
    assert silent.hidden.numel() == 0


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
def test_compiled_and_by_modules_alike(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = Pragnosia.from_pretrained(model)
    speaker.teach(LESSON)
    said = [speaker.generate(prompt, max_new_tokens=12) for prompt in (EXACT, OTHER)]
    monkeypatch.setattr("pragnosia.inference.decode.writable", lambda *_: False)
    assert [speaker.generate(prompt, max_new_tokens=12) for prompt in (EXACT, OTHER)] == said


def test_a_long_lesson_is_cut(model: Path) -> None:
    speaker = Pragnosia.from_pretrained(model)
    text = (
        " ".join(f"Sentence number {number} says little." for number in range(30)) + " " + "".join(map(str, range(200)))
    )
    taught = speaker.teach(text)
    assert taught.cut == 1
    store = speaker.remembering.memories().store
    assert store is not None
    kept = list(store.after())
    assert len(kept) == len(taught.ids) > 2
    room = speaker.model.config.max_position_embeddings
    assert all(len(episode.tokens) <= room for episode in kept)
    assert "".join(episode.text for episode in kept).replace(" ", "") == text.replace(" ", "")
    assert kept[0].text.endswith("little.")


@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_empty_lesson_is_refused(model: Path, empty: str) -> None:
    with pytest.raises(StoreError, match="empty"):
        Pragnosia.from_pretrained(model).teach(empty)


def test_another_models_store_is_refused(
    model: Path, make_model: Callable[..., PragnosiaForCausalLM], tmp_path: Path
) -> None:
    Pragnosia.from_pretrained(model).teach(LESSON)
    other = Path(shutil.copytree(model, tmp_path / "other"))
    make_model(initializer_range=0.31).save_pretrained(other)
    with pytest.raises(StoreError, match="made by another model"):
        Pragnosia.from_pretrained(other).generate(OTHER)
    Pragnosia.from_pretrained(other, store=False)
    Pragnosia.from_pretrained(other, store=tmp_path / "its-own").teach(LESSON)


def test_who_leaves_early_cannot_recall(model: Path) -> None:
    from pragnosia.model.setting import Setting

    speaker = Pragnosia.from_pretrained(model)
    speaker.teach(LESSON)
    with pytest.raises(ConfigError, match="leaves early"):
        speaker.decoder(8, Setting(leave=((1, 0.5),)))
    assert not speaker.leaves_early
    with pytest.raises(StoreError, match="nowhere to keep"):
        Pragnosia(speaker.model, speaker.tokenizer).teach(LESSON)


def test_surprises_are_the_models_own(model: Path) -> None:
    speaker = Pragnosia.from_pretrained(model)
    (episode,) = Teacher(speaker.model, speaker.tokenizer).lessons(LESSON)
    ids = torch.tensor([speaker.encode(LESSON)])
    with torch.inference_mode():
        logits = speaker.model(ids).logits[0, :-1].log_softmax(-1)
    expected = -logits.gather(1, ids[0, 1:, None])[:, 0]
    assert np.allclose(episode.surprises, expected, rtol=2e-3, atol=2e-3)
    lesson = Lesson.of(episode)
    plem = [word.text for word in lesson.words].index("plem")
    assert [int(entry) for entry in np.flatnonzero(lesson.begins == plem)]
    assert float(lesson.surprises.sum()) <= float(episode.surprises.astype(np.float32).sum()) + 3.01


def test_followed_places_grow_by_bayes_rule(model: Path) -> None:
    """What was foretold and came is followed with h s y / ((1 - s) p + s y)."""
    speaker = Pragnosia.from_pretrained(model)
    speaker.teach(LESSON)
    mixing = speaker.remembering.mixing()
    assert mixing is not None
    assert mixing.recollection is not None
    ids, begins = speaker.encode(LESSON), len(speaker.encode(EXACT))
    states = speaker.model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0].detach().numpy()
    flat = np.full(speaker.model.config.vocab_size, -np.log(speaker.model.config.vocab_size), np.float32)
    first = mixing.recollection.shares(ids[:begins], states[begins - 1], flat, asked=True)
    agreed = float(first.shares[first.tokens == ids[begins]].sum())
    assert 0.5 < agreed < 1
    second = mixing.recollection.shares(ids[: begins + 1], states[begins], flat)
    at = [place for place, (_, position) in enumerate(second.places) if position == begins]
    best = float(first.shares[[p == begins - 1 for _, p in first.places]].sum())
    expected = 0.98 * best / ((1 - first.total) * float(np.exp(flat[0])) + agreed)
    assert float(second.shares[at].max()) == pytest.approx(min(expected, 0.99), abs=0.01)
    assert second.total < 1


def test_weights_share_out_less_than_all() -> None:
    shares = weighed(np.random.default_rng(0).normal(size=(5, len(FEATURES))).astype(np.float32) * 3)
    assert (shares > 0).all()
    assert shares.sum() < 1


def test_neighbours_learn_their_weight() -> None:
    """On a text that repeats itself the weight rises to nearly all, on noise it falls to nearly nothing."""
    chance = np.random.default_rng(0)
    states = chance.normal(size=(40, 8)).astype(np.float32)
    for repeats in (True, False):
        nearby = Nearby(None, cache=True, width=8)
        weight = 0.0
        for step in range(400):
            token = step % 40 if repeats else int(chance.integers(0, 1000))
            guess = nearby.guess(states[step % 40])
            if guess is not None:
                weight = guess.weight
                nearby.learn(guess, token, 1e-3)
            nearby.remember(states[step % 40][None], np.array([token]))
        assert (weight > 0.5) if repeats else (weight < PRIOR)
    assert Nearby(None, cache=False, width=8).guess(states[0]) is None


def test_a_cache_predicts_what_stood_before(model: Path) -> None:
    speaker = Pragnosia.from_pretrained(model)
    text = "Plem and Zorvia went to Brun, then home again. " * 12
    plain, cached = (
        evaluate(speaker.model, speaker.tokenizer, [text], mixing=mixing)
        for mixing in (None, speaker.remembering.mixing(cache=True))
    )
    assert cached.tokens == plain.tokens
    assert cached.nats < 0.7 * plain.nats
    speaker.teach(LESSON)
    with_store = evaluate(speaker.model, speaker.tokenizer, [LESSON], mixing=speaker.remembering.mixing())
    without = evaluate(speaker.model, speaker.tokenizer, [LESSON])
    assert with_store.nats < 0.5 * without.nats


def test_scoring_sums_to_one(model: Path) -> None:
    """The mixture is a distribution: over all tokens at one place the scores' exponentials sum to 1."""
    speaker = Pragnosia.from_pretrained(model)
    speaker.teach(LESSON)
    ids = speaker.encode(EXACT)
    states = speaker.model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1:].detach()
    logits = speaker.model.lm_head(states).detach()
    total = 0.0
    for token in range(speaker.model.config.vocab_size):
        mixing = speaker.remembering.mixing()
        assert isinstance(mixing, Mixing)
        total += float(np.exp(mixing.score([*ids, token], states, logits)[0]))
    assert total == pytest.approx(1, abs=1e-3)


def test_a_text_can_be_taken_back(model: Path) -> None:
    speaker = Pragnosia.from_pretrained(model)
    speaker.teach(LESSON)
    decoder = speaker.decoder(64, cache=True)
    decoder.read(speaker.encode(EXACT))
    mark = None
    for number, _ in enumerate(decoder.speak(8, Sampling())):
        if number == 2:
            mark = decoder.state
    assert mark is not None
    decoder.rewind(mark)
    assert decoder.mixing is not None
    assert decoder.mixing.nearby.length < mark.length
    decoder.read(speaker.encode(" Again"))
    assert len(list(decoder.speak(3, Sampling()))) == 3


def test_exact_mode_has_no_memory(model: Path, speaker: Pragnosia) -> None:
    inner, tokenizer = speaker.model, speaker.tokenizer
    exact = Remembering.beside(inner, tokenizer, model, True, exact=True)
    assert exact.mixing() is None
    with pytest.raises(ConfigError, match="leave the cache out"):
        exact.mixing(cache=True)
    with pytest.raises(StoreError, match="leave the store out"):
        Remembering.beside(inner, tokenizer, model, model / "named", exact=True)


def test_a_store_takes_its_room_of_a_budget(model: Path) -> None:
    assert room_of(model, True) == 0
    Pragnosia.from_pretrained(model).teach(LESSON)
    assert room_of(model, True) > 0
    assert room_of(model, False) == 0
