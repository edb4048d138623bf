"""Conversations: a turn reads only what is new, whatever the form, and no answer leaves them broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pragnosia import Pragnosia, PragnosiaForCausalLM
from pragnosia.errors import PromptError
from pragnosia.inference import chat
from pragnosia.inference.chat import Conversation
from pragnosia.inference.decode import Decoder, Trace
from pragnosia.inference.sampler import Sampling
from pragnosia.model.setting import Setting

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}<assistant>{{ m.content }}<end>"
    "{% elif m.role == 'user' %}<user>{{ m.content }}"
    "{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TRIMMING = TEMPLATE.replace("<assistant>{{ m.content }}<end>", "<assistant>{{ m.content | trim }}<end>")
SHOUTING = TEMPLATE.replace("<assistant>{{ m.content }}<end>", "<assistant>{{ m.content | upper }}<end>")
FUSSY = "{% if messages | length > 1 %}{{ raise_exception('Only one turn.\nReally.') }}{% endif %}<user>"
FORMS: dict[str, str | None] = {"plain": None, "template": TEMPLATE, "trimming": TRIMMING, "shouting": SHOUTING}


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[Trace]:
    """What every decoder a conversation makes has read, oldest first."""
    made: list[Trace] = []

    def tracing(model: PragnosiaForCausalLM, room: int, setting: Setting, draft: None, planned: int | None) -> Decoder:
        made.append(Trace())
        return Decoder(model, room, setting, made[-1], draft=draft, planned=planned)

    monkeypatch.setattr(chat, "Decoder", tracing)
    return made


class Scripted:
    """Stands where the model's choice would: the answers are given, tokens are read as ever."""

    is_argmax, reads_text = False, True

    def __init__(self, speaker: Pragnosia, monkeypatch: pytest.MonkeyPatch) -> None:
        self.speaker, self.answers = speaker, list[str]()
        monkeypatch.setattr("pragnosia.inference.decode.Sampler", lambda sampling, device: self)

    def will_say(self, *answers: str) -> None:
        self.answers = list(answers)
        self.tokens: Iterator[int] = iter(())

    def __call__(self, seen: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        token = next(self.tokens, None)
        if token is None:
            self.tokens = iter(self.speaker.tokenizer(self.answers.pop(0))["input_ids"])
            token = next(self.tokens)
        return torch.tensor([[token]])


@pytest.fixture
def script(speaker: Pragnosia, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    return Scripted(speaker, monkeypatch)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, speaker: Pragnosia, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(speaker.tokenizer, "chat_template", FORMS[request.param])
    return str(request.param)


def held(conversation: Conversation) -> str:
    """The text of the tokens the decoder holds."""
    ids = conversation.decoder.tokens[0].tolist()
    return str(conversation.speaker.tokenizer.decode(ids, skip_special_tokens=False))


def ends(form: str) -> str:
    """How a scripted answer ends in this form."""
    return "\nUser:" if form == "plain" else "<end>"


def test_a_talk_of_three_turns(form: str, speaker: Pragnosia, script: Scripted, traces: list[Trace]) -> None:
    end = ends(form)
    script.will_say(f" Good day.{end}", f" 안녕!{end}", f" Bye.{end}")
    talk = Conversation(speaker, max_new_tokens=40)
    answers = ["".join(talk.say(text)) for text in ("Hello", "In Korean?", "Thanks")]
    assert answers == [" Good day.", " 안녕!", " Bye."]
    assert [message["content"] for message in talk.messages] == [
        *("Hello", " Good day.", "In Korean?", " 안녕!", "Thanks", " Bye.")
    ]
    kept: dict[str, Callable[[str], str]] = {"trimming": str.strip, "shouting": str.upper}
    said = kept.get(form, str)
    user, assistant = ("User: ", "\nAssistant:") if form == "plain" else ("<user>", "<assistant>")
    between = "\n" if form == "plain" else "<end>"
    assert held(talk) == (
        f"{user}Hello{assistant}{said(' Good day.')}{between}{user}In Korean?{assistant}{said(' 안녕!')}{between}"
        f"{user}Thanks{assistant} Bye.{end}"
    ), "the model hears exactly what the form says"
    if form in ("plain", "template"):
        (trace,) = traces
        assert sum(trace.num_tokens) == talk.decoder.tokens.shape[1] - 1, "nothing is read again"


@pytest.mark.parametrize("form", ["plain", "template"], indirect=True)
def test_the_state_is_that_of_the_whole_text(form: str, speaker: Pragnosia, script: Scripted) -> None:
    """What the model would say next is what it would say had it read all at once."""
    script.will_say(*(f" Yes, the {word}.{ends(form)}" for word in ("one", "other", "third")))
    talk = Conversation(speaker, max_new_tokens=40)
    for text in ("Hello", "And you?", "The end"):
        list(talk.say(text))
        tokens, state = talk.decoder.tokens, talk.decoder.state.fork()
        unread = tokens[:, state.length :]
        assert 0 < unread.shape[1] < 3
        torch.testing.assert_close(
            speaker.model(unread, past_key_values=state).logits[:, -1],
            speaker.model(tokens).logits[:, -1],
            rtol=1e-4,
            atol=1e-5,
        )


def test_real_answers_are_as_in_one_text(speaker: Pragnosia, monkeypatch: pytest.MonkeyPatch) -> None:
    """No script: each turn's answer is what the model says after the same tokens read at once."""
    prompts: list[list[int]] = []
    speak = Decoder.speak

    def overheard(decoder: Decoder, *options: Any) -> Iterator[int]:
        prompts.append(decoder.tokens[0].tolist())
        return speak(decoder, *options)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "speak", overheard)
        talk = Conversation(speaker, max_new_tokens=12)
        answers = ["".join(talk.say(text)) for text in ("Hello there", "the the the", "한국어")]
    assert len(prompts) == 3
    for prompt, answer in zip(prompts, answers, strict=True):
        alone = Decoder(speaker.model, 300)
        alone.read(prompt)
        spoken = alone.speak(12, Sampling(), speaker.stop_tokens)
        assert "".join(speaker.pieces(spoken, talk.stop, after=prompt)) == answer


def test_a_system_message_stays(form: str, speaker: Pragnosia, script: Scripted) -> None:
    script.will_say(f" a{ends(form)}")
    talk = Conversation(speaker, system="Be brief.", max_new_tokens=20)
    list(talk.say("Hi"))
    assert held(talk).startswith({"plain": "Be brief.\nUser: Hi\n"}.get(form, "Be brief.<user>Hi"))


@pytest.mark.parametrize("pieces", [0, 1, 3])
def test_an_interrupted_answer(form: str, pieces: int, speaker: Pragnosia, script: Scripted) -> None:
    script.will_say(f"abcdef{ends(form)}", f"xyz{ends(form)}")
    talk = Conversation(speaker, max_new_tokens=20)
    answer = talk.say("Hello")
    said = "".join(next(answer) for _ in range(pieces))
    answer.close()
    if pieces == 0:
        assert talk.messages == [], "nothing was asked yet"
        return
    assert said == "abc"[:pieces]
    assert talk.messages[-1] == {"role": "assistant", "content": said}
    script.will_say(f"xyz{ends(form)}")
    assert "".join(talk.say("Go on")) == "xyz"
    heard = said.upper() if form == "shouting" else said
    expected = {"plain": f"Assistant:{said}\nUser: Go on"}.get(form, f"<assistant>{heard}<end><user>Go on")
    assert expected in held(talk)


def test_a_keyboard_interrupt_in_the_middle_of_a_step(
    speaker: Pragnosia, script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.will_say("abcdef\nUser:", "xyz\nUser:")
    talk = Conversation(speaker, max_new_tokens=20)
    answer = talk.say("Hello")
    said = next(answer) + next(answer)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(speaker.model, "forward", interrupted)
        patch.setattr("pragnosia.inference.program.Program.__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(answer)
    script.will_say("xyz\nUser:")
    assert "".join(talk.say("Go on")) == "xyz"
    assert held(talk) == f"User: Hello\nAssistant:{said}\nUser: Go on\nAssistant:xyz\nUser:"


def test_an_interrupt_while_the_turn_is_read(
    speaker: Pragnosia, script: Scripted, traces: list[Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    script.will_say("one\nUser:", "two\nUser:")
    talk = Conversation(speaker, max_new_tokens=20)
    list(talk.say("Hello"))

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(speaker.model, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(talk.say("What"))
    script.tokens = iter(())
    assert "".join(talk.say("Once more")) == "two"
    assert held(talk) == "User: Hello\nAssistant:one\nUser: What\nAssistant:\nUser: Once more\nAssistant:two\nUser:"
    (trace,) = traces
    assert sum(trace.num_tokens) == talk.decoder.tokens.shape[1] - 1, "nothing is read again"


def test_asking_again_ends_the_answer_before(speaker: Pragnosia, script: Scripted) -> None:
    script.will_say("abcdef\nUser:")
    talk = Conversation(speaker, max_new_tokens=20)
    first = talk.say("Hello")
    next(first)
    script.will_say("xyz\nUser:")
    assert "".join(talk.say("Next")) == "xyz"
    assert list(first) == []
    assert [message["content"] for message in talk.messages] == ["Hello", "a", "Next", "xyz"]


def test_an_answer_cut_by_its_length(form: str, speaker: Pragnosia, script: Scripted) -> None:
    script.will_say("안녕하세요", f"b{ends(form)}")
    talk = Conversation(speaker, max_new_tokens=4)
    answer = "".join(talk.say("Hi"))
    assert "안녕하세요".startswith(answer)
    assert "�" not in answer
    script.will_say(f"b{ends(form)}")
    talk.max_new_tokens = 20
    assert "".join(talk.say("Hi")) == "b"
    assert "�" not in held(talk), "half a character is taken back"


def test_the_oldest_turns_go_when_the_context_is_full(
    form: str, speaker: Pragnosia, script: Scripted, traces: list[Trace]
) -> None:
    script.will_say(*(f"answer {turn}{ends(form)}" for turn in range(12)))
    talk = Conversation(speaker, system="SYSTEM", max_new_tokens=30)
    for turn in range(12):
        script.tokens = iter(())
        assert "".join(talk.say(f"question {turn}")) == f"answer {turn}"
        assert held(talk).startswith("SYSTEM")
        assert talk.decoder.tokens.shape[1] <= speaker.model.config.max_position_embeddings
    assert talk.messages[0]["content"] == "SYSTEM"
    assert 3 <= len(talk.messages) < 24
    assert [m["role"] for m in talk.messages[1:]] == ["user", "assistant"] * (len(talk.messages) // 2)
    heard = {"shouting": "ANSWER 10"}.get(form, "answer 10")
    assert heard in held(talk)
    assert "question 0" not in held(talk)
    (trace,) = traces
    again = [tokens for tokens in trace.num_tokens if tokens > 60]
    assert 1 <= len(again) < 10, "read again only when something was dropped"


def test_a_text_that_never_fits(form: str, speaker: Pragnosia, script: Scripted) -> None:
    script.will_say(f"one{ends(form)}", f"two{ends(form)}")
    talk = Conversation(speaker, max_new_tokens=30)
    list(talk.say("Hi"))
    before = list(talk.messages)
    with pytest.raises(PromptError, match="the model's context holds 192"):
        list(talk.say("x" * 500))
    assert talk.messages == before, "refused and forgotten, older turns kept"
    script.tokens = iter(())
    assert "".join(talk.say("Hi again")) == "two"
    assert "one" in held(talk).lower()


def test_a_template_that_refuses(speaker: Pragnosia, script: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speaker.tokenizer, "chat_template", FUSSY)
    script.will_say("one<end>")
    talk = Conversation(speaker, max_new_tokens=30)
    list(talk.say("Hi"))
    with pytest.raises(PromptError, match="refuses this conversation: Only one turn") as caught:
        list(talk.say("Hi"))
    assert "\n" not in str(caught.value)
    assert len(talk.messages) == 2


def test_stop_texts_of_ones_own(speaker: Pragnosia, script: Scripted) -> None:
    script.will_say("one. two. three\nUser:")
    talk = Conversation(speaker, sampling=Sampling(stop=(". t",)), max_new_tokens=30)
    assert "".join(talk.say("Count")) == "one"
    script.will_say("ok\nUser:")
    list(talk.say("On"))
    assert held(talk) == "User: Count\nAssistant:one\nUser: On\nAssistant:ok\nUser:"


def test_setting_and_seed_reach_the_model(speaker: Pragnosia, traces: list[Trace]) -> None:
    def talk() -> Iterator[str]:
        sampling = Sampling(temperature=1.0, seed=3)
        return Conversation(speaker, sampling=sampling, max_new_tokens=8, setting=Setting(awake=0.5)).say("Hello")

    assert "".join(talk()) == "".join(talk())
    assert all(r is not None and r.units.shape[1] == 2 for step, _ in traces[0].steps() for r in step)


def test_a_model_without_a_tokenizer(make_model: Callable[..., PragnosiaForCausalLM]) -> None:
    with pytest.raises(ValueError, match="no tokenizer"):
        Conversation(Pragnosia(make_model()))
