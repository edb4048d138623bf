"""What is learned of a conversation, read back as text from the tokens that are learned."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pragnosia.data import Dialogue, Document, Message, TuningExamples, tokenize_conversations
from pragnosia.data.tokenizer_training import CHAT_TEMPLATE
from pragnosia.errors import DataError

SPECIAL = [
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|endoftext|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
]
CORPUS = [
    "The quick brown fox jumps over the lazy dog. User: Hello.\nAssistant: Good day!\n\nassistant user system",
    "다람쥐 헌 쳇바퀴에 타고파. 안녕하세요! 서울은 어디에 있나요?\n 👋👩‍👩‍👧 좋아요.\n",
] * 20

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set said = messages[1:] %}"
    "{% set before = messages[0].content + '\n\n' %}{% else %}{% set said = messages %}{% set before = '' %}{% endif %}"
    "{% for m in said %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate.\nReally.') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ before if loop.first else '' }}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
# Answers before the last lose what was thought, as those of reasoning models do.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# No token says where an answer ends.
ENDLESS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
LAST_END = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if loop.last and m.role == 'assistant' %}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

SYSTEM = Message("system", "짧게 답해라.")
TALK = (
    SYSTEM,
    Message("user", "Where is Seoul? 🗺️"),
    Message("assistant", "In Korea. 한국에 있어요!"),
    Message("user", "고마워 👋"),
    Message("assistant", "Good day! 👩‍👩‍👧"),
)
SAID = [TALK[2].content, TALK[4].content]


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's and Llama 3's: bytes, and a post-processor that opens with <s> and trims offsets."""
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(CORPUS, trainer)
    opening = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
    engine.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), opening])
    return PreTrainedTokenizerFast(tokenizer_object=engine, bos_token="<s>", eos_token="</s>")


def pieces() -> PreTrainedTokenizerFast:
    """As Mistral's: ▁ for spaces, one before the text, bytes for what has no piece."""
    engine = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=90,
        show_progress=False,
    )
    engine.train_from_iterator([word for text in CORPUS for word in text.split(" ")], trainer)
    engine.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    engine.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    held = json.loads(engine.to_str())  # bytes are pieces like others, not special tokens
    held["added_tokens"] = [token for token in held["added_tokens"] if not token["content"].startswith("<0x")]
    engine = Tokenizer.from_str(json.dumps(held))
    return PreTrainedTokenizerFast(tokenizer_object=engine, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {"byte level": byte_level(), "pieces": pieces()}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return with_template(TOKENIZERS[request.param], None)


def with_template(tokenizer: PreTrainedTokenizerFast, template: str | None) -> PreTrainedTokenizerFast:
    """The same tokenizer, which writes conversations in this form."""
    tokenizer.chat_template = template
    return tokenizer


def examples(tokenizer: PreTrainedTokenizerFast, *messages: Message, **options: Any) -> TuningExamples:
    return tokenize_conversations([Dialogue(messages, "line 1")], tokenizer, **options)


def example(made: TuningExamples, number: int) -> tuple[np.ndarray, np.ndarray]:
    at = slice(made.offsets[number], made.offsets[number + 1])
    return made.ids[at], made.labels[at]


def learned(made: TuningExamples, tokenizer: PreTrainedTokenizerFast, number: int = 0) -> list[str]:
    """The texts of each run of learned tokens."""
    _, labels = example(made, number)
    places = np.flatnonzero(labels >= 0)
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    return [tokenizer.decode(labels[run]) for run in runs]


def text(made: TuningExamples, tokenizer: PreTrainedTokenizerFast, number: int = 0) -> str:
    return str(tokenizer.decode(example(made, number)[0]))


TEMPLATES = {
    "chatml": (CHATML, "{}<|im_end|>"),
    "llama 3": (LLAMA3, "{}<|eot_id|>"),
    "mistral": (MISTRAL, " {}</s>"),
    "marked": (MARKED, "{}<|im_end|>"),
    "ours": (CHAT_TEMPLATE, "{}<|endoftext|>"),
}


@pytest.mark.parametrize("form", TEMPLATES)
def test_answers_are_learned_and_nothing_else(form: str, tokenizer: PreTrainedTokenizerFast) -> None:
    template, answer = TEMPLATES[form]
    made = examples(with_template(tokenizer, template), *TALK)
    assert len(made) == 1
    assert learned(made, tokenizer) == [answer.format(said) for said in SAID]
    conversation = [{"role": m.role, "content": m.content} for m in TALK]
    whole = tokenizer.apply_chat_template(conversation, return_dict=True)["input_ids"]
    ids, labels = example(made, 0)
    assert ids.tolist() == whole[: len(ids)], "the tokens are those of the whole text"
    assert tokenizer.decode(whole[len(ids) :]).strip() == "", "only a line end is left out at the end"
    assert ((labels == ids) | (labels == -100)).all()


@pytest.mark.parametrize("form", ["chatml", "llama 3", "mistral", "ours"])
def test_what_stands_before_an_answer_is_what_a_chat_asks_with(form: str, tokenizer: PreTrainedTokenizerFast) -> None:
    made = examples(with_template(tokenizer, TEMPLATES[form][0]), *TALK[:3])
    ids, labels = example(made, 0)
    asked = [{"role": m.role, "content": m.content} for m in TALK[:2]]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids[: np.flatnonzero(labels >= 0)[0]].tolist() == prompt


def test_marked_answers_are_those_of_transformers() -> None:
    """The mask that transformers makes of the template's own marks."""
    tokenizer = with_template(TOKENIZERS["byte level"], MARKED)
    made = examples(tokenizer, *TALK)
    conversation = [{"role": m.role, "content": m.content} for m in TALK]
    theirs = tokenizer.apply_chat_template(conversation, return_dict=True, return_assistant_tokens_mask=True)
    ids, labels = example(made, 0)
    assert (labels >= 0).astype(int).tolist() == theirs["assistant_masks"][: len(ids)]
    assert not any(theirs["assistant_masks"][len(ids) :])


def test_the_plain_form(tokenizer: PreTrainedTokenizerFast) -> None:
    """As a chat writes it: the end token is what to say behind an answer, and never stands in the history."""
    made = examples(tokenizer, *TALK)
    ids, labels = example(made, 0)
    assert learned(made, tokenizer) == [f" {said}</s>" for said in SAID]
    assert tokenizer.eos_token_id not in ids[:-1].tolist()
    assert ids[-1] == labels[-1] == tokenizer.eos_token_id
    lead = "<s> " if tokenizer is TOKENIZERS["pieces"] else "<s>"
    read = text(made, tokenizer).replace(" \nUser", "\nUser")  # `pieces` begins every text with a space
    assert read == (
        f"{lead}짧게 답해라.\nUser: Where is Seoul? 🗺️\nAssistant: {SAID[0]}\nUser: 고마워 👋\nAssistant: {SAID[1]}</s>"
    )
    prompt = tokenizer("짧게 답해라.\nUser: Where is Seoul? 🗺️\nAssistant:")["input_ids"]
    assert ids[: np.flatnonzero(labels >= 0)[0]].tolist() == prompt, "as a chat reads the first question"


def test_answers_that_are_not_to_be_learned(tokenizer: PreTrainedTokenizerFast) -> None:
    first = Message("assistant", SAID[0], learned=False)
    for template, answer in [*TEMPLATES.values(), (None, " {}</s>")]:
        made = examples(with_template(tokenizer, template), *TALK[:2], first, *TALK[3:])
        assert learned(made, tokenizer) == [answer.format(SAID[1])], template
        assert SAID[0] in text(made, tokenizer), "read, not learned"


def test_what_follows_the_last_answer_is_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    for template in (CHATML, None):
        made = examples(with_template(tokenizer, template), *TALK[:4])
        assert "고마워" not in text(made, tokenizer)
        assert len(learned(made, tokenizer)) == 1


def test_thoughts_of_earlier_turns(tokenizer: PreTrainedTokenizerFast) -> None:
    """The template drops them from the history: each answer is an example as the model will meet it."""
    thought = [Message("assistant", f"<think>음…</think>{said}") for said in SAID]
    made = examples(with_template(tokenizer, THINKING), *TALK[:2], thought[0], TALK[3], thought[1])
    assert made.origins.tolist() == [0, 0]
    assert [learned(made, tokenizer, i) for i in (0, 1)] == [[f"{m.content}<|im_end|>"] for m in thought]
    assert text(made, tokenizer, 1).count("<think>") == 1
    assert SAID[0] in text(made, tokenizer, 1)
    without = examples(tokenizer, *TALK)
    assert len(without) == 1, "where nothing is dropped, one example holds both"


def test_an_end_after_the_last_turn_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    made = examples(with_template(tokenizer, LAST_END), *TALK)
    assert [learned(made, tokenizer, i) for i in range(len(made))] == [[f"{said}</s>"] for said in SAID]


def test_a_template_without_an_end(tokenizer: PreTrainedTokenizerFast) -> None:
    """The model has to stop somewhere: its end token follows each answer, though the text goes on."""
    made = examples(with_template(tokenizer, ENDLESS), *TALK)
    assert learned(made, tokenizer) == [f" {said}\n</s>" for said in SAID]
    assert f"{SAID[0]}\nuser: 고마워" in text(made, tokenizer)


def test_spaces_count_as_characters(tokenizer: PreTrainedTokenizerFast) -> None:
    """A post-processor may trim spaces off a token's place in the text; they are learned all the same."""
    made = examples(with_template(tokenizer, ENDLESS.replace("\n", "  ")), *TALK[:3])
    assert learned(made, tokenizer) == [f" {SAID[0]}  </s>"]


def test_learning_prompts_too(tokenizer: PreTrainedTokenizerFast) -> None:
    for template, end in ((CHATML, "<|im_end|>"), (ENDLESS, "</s>"), (MARKED, "<|im_end|>"), (None, "</s>")):
        made = examples(with_template(tokenizer, template), *TALK, learn_prompts=True)
        _, labels = example(made, 0)
        assert (labels[1:] >= 0).all()
        (said,) = learned(made, tokenizer)
        assert said.lstrip().removeprefix("<|im_start|>system\n").removeprefix("system: ").startswith("짧게 답해라.")
        assert said.endswith(end)
        assert "고마워" in said


def test_documents(tokenizer: PreTrainedTokenizerFast) -> None:
    made = tokenize_conversations([Document("안녕 world 👋\n"), Document("B</s>")], tokenizer)
    for number, expected in enumerate(("안녕 world 👋\n</s>", "B</s>")):
        ids, labels = example(made, number)
        assert ids[0] == tokenizer.bos_token_id
        assert labels[0] == -100
        assert labels[1:].tolist() == ids[1:].tolist()
        assert tokenizer.decode(ids[1:]).lstrip() == expected


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (MISTRAL, "line 1: the chat template refuses this conversation: Roles must alternate"),
        ("{{ messages | nothing }}", "line 1: the chat template refuses this conversation: No filter named"),
        (
            CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif"),
            "message 2: the chat template asks for",
        ),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            "leaves the answer out",
        ),
        ("{{ messages[0].content }}{% generation %}{% endgeneration %}", "marks no answer"),
    ],
)
def test_templates_that_cannot_be_used(template: str, match: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=match) as caught:
        examples(with_template(tokenizer, template), *TALK[1:3], TALK[2])
    assert str(caught.value).startswith("line 1: ")
    assert "\n" not in str(caught.value)


def test_marks_that_do_not_tell_answers_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    with_template(tokenizer, "{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}{% endgeneration %}")
    with pytest.raises(DataError, match="marks 1 of 2 answers"):
        examples(tokenizer, TALK[1], Message("assistant", "a", learned=False), *TALK[3:])


def test_nothing_to_learn_from_and_no_end(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="no conversations to learn from"):
        tokenize_conversations([], tokenizer)
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(DataError, match="no end-of-sequence token"):
        examples(bare, *TALK)
    assert learned(examples(with_template(bare, CHATML), *TALK), bare) == [f"{said}<|im_end|>" for said in SAID]


def test_padding_is_the_tokenizers(tokenizer: PreTrainedTokenizerFast) -> None:
    assert examples(tokenizer, *TALK).pad_id == tokenizer.eos_token_id
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<|endoftext|>")
    bare.chat_template = CHATML
    assert examples(bare, *TALK).pad_id == bare.pad_token_id
    assert (
        examples(with_template(PreTrainedTokenizerFast(tokenizer_object=bare.backend_tokenizer), CHATML), *TALK).pad_id
        == 0
    )


WORDS = st.text(st.sampled_from("a .\n가힣요👋‍👩é\t"), min_size=1, max_size=12).filter(str.strip)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), st.sampled_from(sorted(TOKENIZERS)))
def test_any_text_comes_back(turns: list[tuple[str, str]], name: str) -> None:
    """Whatever is said, each answer comes back whole, with its end and no more than a line end of its prompt."""
    talk = [Message(role, said) for turn in turns for role, said in zip(("user", "assistant"), turn, strict=True)]
    for template, end in ((CHATML, "<|im_end|>"), (None, "</s>")):
        tokenizer = with_template(TOKENIZERS[name], template)
        read = learned(examples(tokenizer, *talk), tokenizer)
        assert len(read) == len(turns)
        for got, (_, answer) in zip(read, turns, strict=True):
            expected = answer if template else f" {answer.strip()}"
            assert got in (f"{expected}{end}", f"\n{expected}{end}")
