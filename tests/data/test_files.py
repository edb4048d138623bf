from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from pragnosia.data import files
from pragnosia.data.files import Files
from pragnosia.data.rows import PLAIN, Rows
from pragnosia.errors import DataError

TEXT = "첫째 글.\nsecond line\n<|endoftext|>\nsecond document\n<|endoftext|>\n\n<|endoftext|>\nthird\n"
DOCUMENTS = ["첫째 글.\nsecond line", "second document", "third\n"]


def read(path: Path, rows: Rows = PLAIN) -> list[str]:
    return list(Files(path, rows).documents())


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress), (".bz2", bz2.compress)],
)
def test_text(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compress(TEXT.encode()))
    assert read(path) == DOCUMENTS


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    assert read(path) == DOCUMENTS


def test_the_separator_inside_a_line_is_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("say <|endoftext|> aloud\n<|endoftext|> and here")
    assert read(path) == ["say <|endoftext|> aloud\n<|endoftext|> and here"]


def test_long_texts_are_cut_at_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_DOCUMENT_CHARS", 100)
    path = tmp_path / "a.txt"
    text = "가나다 라마바\n" * 50 + "x" * 250
    path.write_text(text, encoding="utf-8")
    parts = read(path)
    assert "".join(parts) == text
    assert max(map(len, parts)) < 200
    assert all(part.endswith("\n") for part in parts[:3])


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.xz"
    rows = [{"body": "하나\u2028둘", "n": 1}, {"body": ""}, {"body": "three"}]
    content = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes(lzma.compress(content.encode()))
    assert read(path, Rows(column="body")) == ["하나\u2028둘", "three"]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"text": "a"', "line 2 is not JSON"),
        ("[1]", "line 2 holds list"),
        ('{"txt": "a"}', "unknown column 'text'. Did you mean 'txt'"),
        ('{"text": null}', "column 'text' holds NoneType"),
        ('{"text": "\\ud800"}', "half a surrogate pair"),
        ("[" * 100_000, "line 2 is not JSON"),
    ],
)
def test_bad_jsonl(tmp_path: Path, line: str, match: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(DataError, match=match) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_parquet_over_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"document {i}" for i in range(3000)]
    parquet.write_table(pa.table({"text": texts, "n": range(3000)}), path, row_group_size=700)
    assert read(path) == texts
    with pytest.raises(DataError, match=r"unknown column 'texts'\. Did you mean 'text'"):
        read(path, Rows(column="texts"))


def test_corrupt_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 nothing of the kind")
    with pytest.raises(DataError, match="as Parquet"):
        read(path)


def test_rows_by_licence() -> None:
    rows = Rows(only={"license": ("mit",)})
    table = [("0", {"text": "a", "license": "mit"}), ("1", {"text": "b", "license": "gpl-3.0"})]
    assert list(rows.documents(table)) == ["a"]


def test_rows_joined_into_articles() -> None:
    rows = Rows(begins=r" ?= [^=].* = ?")
    lines = ["", " = One = \n", " text \n", " = = Part = = \n", "more\n", " = Two = \n", "text\n"]
    table = [(str(i), {"text": line}) for i, line in enumerate(lines)]
    assert list(rows.documents(table)) == [" = One = \n text \n = = Part = = \nmore\n", " = Two = \ntext\n"]


def test_folder_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a.md", "b/1.jsonl", ".hidden/x.txt", "c/.x.txt", "c/picture.png", "c/__pycache__/y.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text('{"text": "row"}' if path.suffix == ".jsonl" else name)
    (tmp_path / "empty.txt").touch()
    assert read(tmp_path) == ["a.md", "row", "b/2.txt"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"fine\n" * 300_000 + b"\0", "NUL byte at offset 1500000"),
        (b"fine\n" * 300_000 + b"\xff rest", "invalid byte at offset 1500000"),
        ("가".encode() * 400_000 + b"\xea\xb0 x", "invalid byte at offset 1200000"),
        ("가".encode() + b"\xea\xb0", "ends inside a character"),
        (b"\x89PNG\r\n\x1a\n\0\0", "invalid byte at offset 0"),
        (b"a\0b\xff", "NUL byte at offset 1"),
    ],
)
def test_empty_and_binary(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=match) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".bz2"])
def test_damaged_archives(tmp_path: Path, suffix: str) -> None:
    compress = {".xz": lzma.compress, ".gz": gzip.compress, ".bz2": bz2.compress}[suffix]
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compress(os.urandom(5000).hex().encode())[:2000])
    with pytest.raises(DataError, match=r"cannot read .*a\.txt"):
        read(path)
    path.write_bytes(b"no archive at all")
    with pytest.raises(DataError, match=r"cannot read .*a\.txt"):
        read(path)


def test_missing_and_textless(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read(tmp_path / "nothing.txt")
    (tmp_path / "x.png").touch()
    with pytest.raises(DataError, match="no text in the folder"):
        read(tmp_path)


@pytest.mark.usefixtures("permissions_bind")
def test_no_permission(book: Path) -> None:
    book.chmod(0)
    with pytest.raises(DataError, match=r"cannot read .*book\.txt: Permission denied"):
        read(book)


def test_no_permission_whoever_runs_this(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str = "r") -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"cannot read .*book\.txt: Permission denied"):
        read(book)


def test_identity_changes_with_the_file(book: Path) -> None:
    before = Files(book).identity()
    assert before == Files(book).identity()
    os.utime(book, (1, 1))
    assert before != Files(book).identity()
