"""Small corpora and one small tokenizer for the tests of the data room."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from pragnosia.data import Texts, TokenizerReport, load_tokenizer, train_tokenizer

ENGLISH = "The quick brown fox jumps over the lazy dog, and the dog sleeps on under the tree.\n"
KOREAN = "다람쥐 헌 쳇바퀴에 타고파. 빠른 갈색 여우가 게으른 개를 뛰어넘는다.\n"


@pytest.fixture(scope="session")
def texts() -> Texts:
    """200 documents, no two alike."""
    return Texts([f"Story {i}. " + ENGLISH * (1 + i % 3) + KOREAN * (i % 2) for i in range(200)], name="stories")


@pytest.fixture(scope="session")
def report(texts: Texts, tmp_path_factory: pytest.TempPathFactory) -> TokenizerReport:
    return train_tokenizer(texts, 400, tmp_path_factory.mktemp("tokenizer") / "small")


@pytest.fixture(scope="session")
def tokenizer(report: TokenizerReport) -> PreTrainedTokenizerFast:
    return load_tokenizer(report.out)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """One long document in a plain file."""
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Chapter {i}. {ENGLISH}" for i in range(300)), encoding="utf-8")
    return path
