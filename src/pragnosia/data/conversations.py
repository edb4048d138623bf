"""Conversations to learn from, in the forms people have them: one row, one conversation.

{"messages": [{"role": "user", "content": "…"}, …]}                 OpenAI, Hugging Face
{"conversations": [{"from": "human", "value": "…"}, …]}             ShareGPT
{"prompt": text or messages, "completion": text or messages}        of messages, only the completion's are learned
{"instruction": "…", "input": "…", "output": "…"}                   Alpaca; the input may be missing
{"text": "…"}                                                       no conversation: every token is learned

So is every token of a plain text file. A message with "weight": 0 or "train": false is read and not learned.
A row with keys of several forms has the first of them in this order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pragnosia.data.files import Files, Row
from pragnosia.data.rows import check_encodable
from pragnosia.errors import DataError, unknown_name

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant"),
}
# What a message may carry that none of our forms can show the model: better refused than lost unseen.
_UNSEEN = ("tool_calls", "function_call", "reasoning_content", "thinking")
_WEIGHTS = ("weight", "train")
_EXPECTED = (
    "messages; conversations; prompt and completion; instruction and output; or text "
    '(for example {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]})'
)


@dataclass(frozen=True)
class Message:
    """What one side says; `learned` counts for the assistant's."""

    role: str  # system, user or assistant
    content: str
    learned: bool = True

    @property
    def is_target(self) -> bool:
        """Whether this is an answer to learn."""
        return self.learned and self.role == "assistant"


@dataclass(frozen=True)
class Dialogue:
    """Messages with at least one answer to learn; `where` they were read, for errors."""

    messages: tuple[Message, ...]
    where: str = "the conversation"


@dataclass(frozen=True)
class Document:
    """Text of which every token is learned."""

    text: str
    where: str = "the text"


Teaching: TypeAlias = "Dialogue | Document"


def read_conversations(spec: Path | str | Sequence[Path | str]) -> Iterator[Teaching]:
    """All that a file, the files of a folder, or several of these teach, in order.

    Reads .jsonl, .ndjson, .json (an array), .parquet and plain text, also .xz, .gz or .bz2.

    Raises:
        DataError: a place that cannot be read or is empty; a row of no known form, with its file and line.
    """
    for path in [spec] if isinstance(spec, (str, Path)) else spec:
        empty = True
        for where, record in Files(Path(path).expanduser()).records():
            teaching = Document(record, where) if isinstance(record, str) else conversation(record, where)
            if isinstance(teaching, Dialogue) or teaching.text.strip():
                empty = False
                yield teaching
        if empty:
            raise DataError(f"{path} is empty: it holds no conversation; expected rows of {_EXPECTED}")


def conversation(row: Row, where: str = "the row") -> Teaching:
    """What one row teaches. Raises DataError, beginning with `where`, for a row of no known form."""
    held = {key for key, value in row.items() if value is not None}  # a table writes null where a row has no such key
    for keys, read in _FORMS:
        if held.issuperset(keys):
            return read(row, where)
    got = ", ".join(sorted(held)) or "nothing"
    raise DataError(f"{where}: a row with {got} is no conversation; expected {_EXPECTED}")


def _from_messages(row: Row, where: str) -> Dialogue:
    return _dialogue(_messages(row["messages"], where, "messages"), where)


def _from_turns(row: Row, where: str) -> Dialogue:
    return _dialogue([*_system(row, where), *_messages(row["conversations"], where, "conversations")], where)


def _from_completion(row: Row, where: str) -> Dialogue:
    prompt, completion = (
        [Message(role, _checked(value, where))] if isinstance(value, str) else _messages(value, where, key)
        for key, role, value in (
            ("prompt", "user", row["prompt"]),
            ("completion", "assistant", row["completion"]),
        )
    )
    asked = [Message(message.role, message.content, learned=False) for message in prompt]
    return _dialogue([*_system(row, where), *asked, *completion], where)


def _from_instruction(row: Row, where: str) -> Dialogue:
    texts = [_text(row.get(key), where, key) for key in ("instruction", "input", "output") if row.get(key) is not None]
    asked = "\n\n".join(text for text in texts[:-1] if text)
    return _dialogue([*_system(row, where), Message("user", asked), Message("assistant", texts[-1])], where)


def _from_text(row: Row, where: str) -> Document:
    return Document(_text(row["text"], where, "text"), where)


_FORMS: tuple[tuple[tuple[str, ...], Callable[[Row, str], Teaching]], ...] = (
    (("messages",), _from_messages),
    (("conversations",), _from_turns),
    (("prompt", "completion"), _from_completion),
    (("instruction", "output"), _from_instruction),
    (("text",), _from_text),
)


def _dialogue(messages: Sequence[Message], where: str) -> Dialogue:
    """Raise DataError where there is no answer to learn, or one is empty or nobody asked for it."""
    targets = [number for number, message in enumerate(messages) if message.is_target]
    if not targets:
        raise DataError(f"{where}: no answer to learn; expected a message of the assistant (of weight 1)")
    if targets[0] == 0:
        raise DataError(
            f"{where}: the first message is the assistant's, expected the user's; "
            'remove it, or give it "weight": 0 where your chat template allows that'
        )
    for number in targets:
        if not messages[number].content.strip():
            raise DataError(f"{where}: message {number + 1}, the assistant's, is empty; expected an answer")
    return Dialogue(tuple(messages), where)


def _system(row: Row, where: str) -> list[Message]:
    """What some tables hold in a column of its own."""
    text = row.get("system")
    return [Message("system", _text(text, where, "system"))] if text else []


def _messages(value: object, where: str, key: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        got = "an empty list" if isinstance(value, list) else type(value).__name__
        raise DataError(f"{where}: {key!r} holds {got}, expected a list of messages")
    return [_message(entry, f"{where}: message {number}") for number, entry in enumerate(value, 1)]


def _message(entry: object, where: str) -> Message:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {type(entry).__name__}, expected an object with role and content")
    for key in _UNSEEN:
        if entry.get(key):
            raise DataError(f"{where} has {key!r}, which is not learned from; write it into the content, or remove it")
    role, content = _either(entry, "role", "from", where), _either(entry, "content", "value", where)
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(f"{where}: {unknown_name('role', str(role), _ROLES)}")
    return Message(_ROLES[role], _content(content, where), learned=_learned(entry, where))


def _either(entry: Mapping[str, Any], key: str, other: str, where: str) -> Any:
    for name in (key, other):
        if entry.get(name) is not None:
            return entry[name]
    keys = ", ".join(map(str, entry)) or "nothing"
    raise DataError(f"{where} has no {key}; expected {key!r} (or {other!r}), got {keys}")


def _content(content: object, where: str) -> str:
    """A text, or a list of text parts, as interfaces that also take pictures write it."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise DataError(f"{where}: the content has parts that are no text; expected text alone")
        content = "".join(map(str, parts))
    return _text(content, where, "content")


def _learned(entry: Mapping[str, Any], where: str) -> bool:
    for key in _WEIGHTS:
        value = entry.get(key)
        if value is not None and value not in (0, 1):
            raise DataError(f"{where}: {key!r} is {value!r}, expected 0 (read only) or 1 (learned)")
        if value is not None and not value:
            return False
    return True


def _text(value: object, where: str, key: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {key!r} holds {type(value).__name__}, expected a text")
    return _checked(value, where)


def _checked(text: str, where: str) -> str:
    check_encodable(text, where)
    return text
