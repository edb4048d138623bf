"""Rendering: a conversation as the text a model reads, and which of its characters the model learns to say.

With a chat template an answer is what the template writes after its generation prompt, with whatever ends the turn:

    answer i = render(messages[..i]) - render(messages[..i-1], generation prompt)

A template that marks answers itself, with {% generation %}, is taken at its word. One that writes an answer otherwise
once more turns follow (thinking that is left out, an end after the last turn alone) gives each answer a rendering of
its own, as the model will meet it. Without a template, the plain form of a chat.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from pragnosia.data.conversations import Dialogue, Message, Teaching
from pragnosia.data.plain_form import PLAIN
from pragnosia.errors import DataError

_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SHOWN = 24  # characters of a text in an error


@dataclass(frozen=True)
class Part:
    """Text that becomes tokens on its own, and the spans (begin, end) of its characters that are learned."""

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Rendering:
    """One example: parts end to end."""

    parts: tuple[Part, ...]
    where: str
    opens: bool = False  # with the tokenizer's own first token, which templates write themselves
    ends: bool = True  # the model learns its end token after a span that holds none


class Renderer:
    """What a tokenizer's models read, made of conversations; `learn_prompts` learns every token, not answers alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, learn_prompts: bool = False) -> None:
        self.tokenizer, self.learn_prompts = tokenizer, learn_prompts
        try:
            self.template = tokenizer.get_chat_template() if tokenizer.chat_template else None
        except ValueError as error:  # several, none of them the default
            raise DataError(f"cannot choose a chat template: {_first_line(error)}") from error

    def __call__(self, teaching: Teaching) -> list[Rendering]:
        """The examples of one conversation: one, or one for each answer.

        Raises:
            DataError: the template refuses the conversation, or writes an answer otherwise than it asks for it.
        """
        if not isinstance(teaching, Dialogue):
            return [Rendering((_learned(teaching.text),), teaching.where, opens=True)]
        last = max(number for number, message in enumerate(teaching.messages) if message.is_target)
        messages = teaching.messages[: last + 1]  # what follows the last answer teaches nothing
        if self.template is None:
            return [Rendering(tuple(self._plain(messages)), teaching.where, opens=True)]
        if self.learn_prompts:
            return [Rendering((_learned(self._render(messages, teaching.where)),), teaching.where)]
        if _MARK.search(self.template):
            return [Rendering((self._marked(messages, self.template, teaching.where),), teaching.where, ends=False)]
        return self._by_prefixes(messages, teaching.where)

    def _plain(self, messages: Sequence[Message]) -> list[Part]:
        """Cut behind each answer, where a chat leaves the model's end token out and reads on."""
        parts: list[Part] = []
        text = ""
        for message in messages:
            if message.role != "assistant":
                text += PLAIN[message.role].format(message.content)
                continue
            answer = f" {message.content.strip()}"
            span = (0 if self.learn_prompts else len(text), len(text) + len(answer))
            parts.append(Part(text + answer, (span,) if message.learned or self.learn_prompts else ()))
            text = PLAIN["assistant"].format("")
        return parts

    def _by_prefixes(self, messages: Sequence[Message], where: str) -> list[Rendering]:
        turns: list[tuple[int, str]] = []  # where each answer begins, and the text up to its end
        for number, message in enumerate(messages):
            if message.is_target:
                asked = self._render(messages[:number], where, add_generation_prompt=True)
                said = self._render(messages[: number + 1], where)
                _check_prefix(asked, said, f"{where}: message {number + 1}")
                turns.append((len(asked), said))
        whole = turns[-1][1]
        if all(whole.startswith(said) for _, said in turns):
            return [Rendering((Part(whole, tuple((begin, len(said)) for begin, said in turns)),), where)]
        return [Rendering((Part(said, ((begin, len(said)),)),), where) for begin, said in turns]

    def _marked(self, messages: Sequence[Message], template: str, where: str) -> Part:
        special: dict[str, Any] = dict(self.tokenizer.special_tokens_map)
        texts, marks = _tried(
            lambda: render_jinja_template(
                conversations=[_as_template_takes(messages)],
                chat_template=template,
                return_assistant_tokens_mask=True,
                **special,
            ),
            where,
        )
        spans = [(int(begin), int(end)) for begin, end in marks[0]]
        answers = [message for message in messages if message.role == "assistant"]
        if not all(message.learned for message in answers):
            if len(spans) != len(answers):
                raise DataError(
                    f"{where}: the chat template marks {len(spans)} of {len(answers)} answers, so which of them are "
                    "not learned cannot be told; remove weight and train, or mend the template"
                )
            spans = [span for span, message in zip(spans, answers, strict=True) if message.learned]
        spans = [(begin, end) for begin, end in spans if begin < end]
        if not spans:
            raise DataError(f"{where}: the chat template marks no answer; mend its generation blocks")
        return Part(texts[0], tuple(spans))

    def _render(self, messages: Sequence[Message], where: str, *, add_generation_prompt: bool = False) -> str:
        return str(
            _tried(
                lambda: self.tokenizer.apply_chat_template(
                    _as_template_takes(messages), tokenize=False, add_generation_prompt=add_generation_prompt
                ),
                where,
            )
        )


def _as_template_takes(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _learned(text: str) -> Part:
    return Part(text, ((0, len(text)),))


def _check_prefix(asked: str, said: str, where: str) -> None:
    """Raise DataError where the text with the answer does not begin with the text that asks for it."""
    if not said.startswith(asked):
        at = next((i for i, (a, b) in enumerate(zip(asked, said, strict=False)) if a != b), min(len(asked), len(said)))
        raise DataError(
            f"{where}: the chat template asks for an answer with {asked[at : at + _SHOWN]!r} and writes it with "
            f"{said[at : at + _SHOWN]!r}; mend it, or mark its answers with generation blocks"
        )
    if said == asked:
        raise DataError(f"{where}: the chat template leaves the answer out; mend it")


def _tried(render: Callable[[], Any], where: str) -> Any:
    try:
        return render()
    except Exception as error:  # a template may raise whatever its author chose
        raise DataError(f"{where}: the chat template refuses this conversation: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
