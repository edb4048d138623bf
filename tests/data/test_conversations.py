"""Conversations are read in the forms people have, and what is none of them is refused by its line."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from pragnosia.data import Dialogue, Document, Message, read_conversations
from pragnosia.data.conversations import conversation
from pragnosia.errors import DataError

USER, ASSISTANT = Message("user", "안녕? 👋"), Message("assistant", "안녕하세요!\n👩‍👩‍👧")
HELLO = {"role": "user", "content": USER.content}
ANSWER = {"role": "assistant", "content": ASSISTANT.content}
SYSTEM = Message("system", "Be kind.")

FORMS: dict[str, tuple[dict[str, Any], tuple[Message, ...]]] = {
    "messages": ({"messages": [HELLO, ANSWER]}, (USER, ASSISTANT)),
    "developer": (
        {"messages": [{"role": "developer", "content": "Be kind."}, HELLO, ANSWER]},
        (SYSTEM, USER, ASSISTANT),
    ),
    "text parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "안녕? "}, {"text": "👋"}]}, ANSWER]},
        (USER, ASSISTANT),
    ),
    "sharegpt": (
        {
            "id": 7,
            "conversations": [
                {"from": "system", "value": "Be kind."},
                {"from": "human", "value": USER.content},
                {"from": "gpt", "value": ASSISTANT.content},
            ],
        },
        (SYSTEM, USER, ASSISTANT),
    ),
    "sharegpt, system apart": (
        {"system": "Be kind.", "conversations": [{"from": "human", "value": USER.content}, ANSWER]},
        (SYSTEM, USER, ASSISTANT),
    ),
    "completion": ({"prompt": USER.content, "completion": ASSISTANT.content}, (USER, ASSISTANT)),
    "completion of messages": (
        {"prompt": [HELLO, ANSWER, HELLO], "completion": [ANSWER]},
        (USER, Message("assistant", ASSISTANT.content, learned=False), USER, ASSISTANT),
    ),
    "alpaca": ({"instruction": USER.content, "input": "", "output": ASSISTANT.content}, (USER, ASSISTANT)),
    "alpaca with input": (
        {"instruction": "더해라", "input": "1 2", "output": "3", "text": "all of it once more"},
        (Message("user", "더해라\n\n1 2"), Message("assistant", "3")),
    ),
    "weights": (
        {"messages": [HELLO, {**ANSWER, "weight": 0}, {**HELLO, "train": False}, {**ANSWER, "weight": 1}]},
        (USER, Message("assistant", ASSISTANT.content, learned=False), USER, ASSISTANT),
    ),
    "nulls": (
        {"messages": [{**HELLO, "tool_calls": None, "weight": None}, ANSWER], "conversations": None, "text": None},
        (USER, ASSISTANT),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    row, expected = FORMS[form]
    read = conversation(row, "here")
    assert isinstance(read, Dialogue)
    assert read.where == "here"
    # Of the user's messages `learned` says nothing.
    assert [(m.role, m.content, m.is_target) for m in read.messages] == [
        (m.role, m.content, m.is_target) for m in expected
    ]


def test_plain_rows_are_documents() -> None:
    assert conversation({"text": "가나다"}, "here") == Document("가나다", "here")


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".jsonl.xz", ".jsonl.gz", ".json", ".parquet"])
def test_files(tmp_path: Path, suffix: str) -> None:
    rows = [row for row, _ in (FORMS["messages"], FORMS["sharegpt"], FORMS["alpaca"])] + [{"text": "plain"}]
    path = tmp_path / f"chat{suffix}"
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    if suffix == ".parquet":
        columns = {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
        parquet.write_table(pa.table(columns), path)
    elif suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_bytes({".xz": lzma.compress, ".gz": gzip.compress}.get(path.suffix, bytes)(lines))
    read = list(read_conversations(path))
    assert [getattr(teaching, "messages", None) for teaching in read] == [
        (USER, ASSISTANT),
        (SYSTEM, USER, ASSISTANT),
        (USER, ASSISTANT),
        None,
    ]
    assert isinstance(read[3], Document)
    assert read[3].text == "plain"
    numbers = [1, 3, 5, 7] if "json" in suffix and suffix != ".json" else [0, 1, 2, 3]
    word = "line" if "json" in suffix and suffix != ".json" else "row"
    assert [teaching.where for teaching in read] == [f"{path}, {word} {number}" for number in numbers]


def test_text_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n<|endoftext|>\n둘\n")
    (tmp_path / "b.jsonl").write_text('{"text": " "}\n' + json.dumps(FORMS["messages"][0]))
    one, two, talk = read_conversations(tmp_path)
    assert (one, two) == (Document("one", f"{tmp_path}/a.txt"), Document("둘\n", f"{tmp_path}/a.txt"))
    assert talk == Dialogue((USER, ASSISTANT), f"{tmp_path}/b.jsonl, line 2")
    assert [*read_conversations([tmp_path / "b.jsonl", str(tmp_path / "a.txt")])] == [talk, one, two]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no form": (
        {"question": "a", "answer": "b"},
        r"a row with answer, question is no conversation; expected messages;",
    ),
    "empty row": ({}, "a row with nothing is no conversation"),
    "half a form": ({"prompt": "a", "completion": None}, "a row with prompt is no conversation"),
    "no list": ({"messages": "hello"}, "'messages' holds str, expected a list of messages"),
    "empty list": ({"conversations": []}, "'conversations' holds an empty list, expected a list of messages"),
    "no object": ({"messages": [HELLO, "hi"]}, "message 2 is str, expected an object with role and content"),
    "no role": ({"messages": [{"content": "a"}]}, r"message 1 has no role; expected 'role' \(or 'from'\), got content"),
    "no content": ({"messages": [{"role": "user"}]}, r"message 1 has no content; expected 'content' \(or 'value'\)"),
    "unknown role": (
        {"messages": [HELLO, {"role": "asistant", "content": "a"}]},
        "message 2: unknown role 'asistant'. Did you mean 'assistant'",
    ),
    "tools": ({"messages": [HELLO, {"role": "tool", "content": "{}"}]}, "message 2: unknown role 'tool'"),
    "calls": ({"messages": [HELLO, {**ANSWER, "tool_calls": [{}]}]}, "message 2 has 'tool_calls', which is not"),
    "thinking": ({"messages": [HELLO, {**ANSWER, "reasoning_content": "hm"}]}, "message 2 has 'reasoning_content'"),
    "pictures": (
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, ANSWER]},
        "message 1: the content has parts that are no text",
    ),
    "number": ({"messages": [HELLO, {"role": "assistant", "content": 3}]}, "message 2: 'content' holds int"),
    "empty answer": ({"messages": [HELLO, {**ANSWER, "content": " \n"}]}, "message 2, the assistant's, is empty"),
    "empty output": ({"instruction": "a", "output": ""}, "message 2, the assistant's, is empty"),
    "empty completion": ({"prompt": "a", "completion": ""}, "message 2, the assistant's, is empty"),
    "no answer": ({"messages": [HELLO]}, "no answer to learn"),
    "nothing learned": ({"messages": [HELLO, {**ANSWER, "weight": 0}]}, "no answer to learn"),
    "answer first": ({"messages": [ANSWER, HELLO]}, "the first message is the assistant's, expected the user's"),
    "odd weight": ({"messages": [HELLO, {**ANSWER, "weight": 0.5}]}, "message 2: 'weight' is 0.5, expected 0"),
    "odd train": ({"messages": [HELLO, {**ANSWER, "train": "no"}]}, "message 2: 'train' is 'no', expected 0"),
    "text of numbers": ({"text": 3}, "'text' holds int, expected a text"),
    "prompt of numbers": ({"prompt": 3, "completion": "a"}, "'prompt' holds int, expected a list of messages"),
    "instruction": ({"instruction": ["a"], "output": "b"}, "'instruction' holds list, expected a text"),
    "system": ({"system": 1, "prompt": "a", "completion": "b"}, "'system' holds int, expected a text"),
    "half a character": ({"prompt": "a", "completion": "\ud83d"}, "half a surrogate pair at character 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named(name: str, tmp_path: Path) -> None:
    row, match = BAD[name]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(FORMS["messages"][0]) + "\n\n" + json.dumps(row))
    with pytest.raises(DataError, match=match) as caught:
        list(read_conversations(path))
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.jsonl", "", "is empty: it holds no conversation"),
        ("a.jsonl", '{"text": ""}', "is empty: it holds no conversation"),
        ("a.jsonl", '{"messages": [', "line 1 is not JSON"),
        ("a.jsonl", "[]", "line 1 holds list, expected a JSON object"),
        ("a.json", '{"messages": []}', "holds dict, expected an array of objects"),
        ("a.json", '[{"text": "a"}, 3]', "row 1 holds int, expected a JSON object"),
        ("a.json", "[", "a.json is not JSON"),
        ("a.csv", "prompt,completion\na,b", "unknown suffix '.csv'; expected .jsonl"),
        ("a.parquet", "PAR1", "as Parquet"),
        ("a.jsonl.gz", "no archive", r"cannot read .*a\.jsonl\.gz"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str, match: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=match) as caught:
        list(read_conversations(tmp_path / name))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        list(read_conversations(tmp_path / "none.jsonl"))
