from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from pragnosia.data import RECIPES, Joined, Texts, documents, resolve
from pragnosia.data.hub import HubDataset
from pragnosia.data.standard_library import StandardLibrary
from pragnosia.errors import DataError


def test_paths_and_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "one"}')
    assert list(documents(f"{path}#body")) == ["one"]
    odd = tmp_path / "b#c.txt"
    odd.write_text("two")
    assert list(documents(str(odd))) == ["two"]
    assert list(documents(odd)) == ["two"]


def test_sources_pass_through() -> None:
    texts = Texts(["a", " ", "b"])
    assert resolve(texts) is texts
    assert list(documents(Joined((texts, texts)))) == ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("nowhere/at/all.txt", "no such file or folder: nowhere"),
        ("tinystorys", "Did you mean 'tinystories'"),
        ("", "an empty name"),
        ("hf:", "expected hf:NAME"),
        ("hf:a:b:c:d", "expected hf:NAME"),
        ("tinystories:ko", "takes no option"),
        ("wikitext-2=nowhere", "no such file or folder: nowhere"),
    ],
)
def test_unknown(spec: str, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        resolve(spec)
    assert "\n" not in str(caught.value)


def test_a_folder_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one")
    monkeypatch.setenv("MY_TEXTS", str(tmp_path))
    for spec in ("$MY_TEXTS/a.txt", "${MY_TEXTS}/a.txt", "$MY_TEXTS", "tinystories=$MY_TEXTS/a.txt"):
        assert list(documents(spec)) == ["one"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$NOBODY").write_text("that is its name")
    assert list(documents("$NOBODY")) == ["that is its name"]


def test_a_folder_that_the_environment_does_not_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_TEXTS", raising=False)
    with pytest.raises(DataError, match=r"\$MY_TEXTS/a.txt .* MY_TEXTS, which is not set; .*--data") as caught:
        resolve("$MY_TEXTS/a.txt")
    assert "\n" not in str(caught.value)


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.train.txt", "a.train.txt", "a.valid.txt", ".c.train.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "odd[1].txt").write_text("its name")
    assert list(documents(f"{tmp_path}/*.train.txt")) == ["a.train.txt", "b.train.txt"]
    assert list(documents(str(tmp_path / "odd[1].txt"))) == ["its name"], "no pattern where such a file is"
    monkeypatch.chdir(tmp_path)
    assert list(documents("?.valid.*")) == ["a.valid.txt"]
    with pytest.raises(DataError, match=r"no file matches .*nothing-\*"):
        resolve("nothing-*")


def test_every_recipe_resolves() -> None:
    for name, recipe in RECIPES.items():
        source = resolve(name)
        assert isinstance(source, HubDataset)
        assert source.path == recipe.path
        assert recipe.licence
        assert recipe.citation
        assert f"{name}=PATH" in source.offline


def test_recipe_options() -> None:
    korean = resolve("wikipedia:ko")
    assert isinstance(korean, HubDataset)
    assert korean.config == "20231101.ko"
    english = resolve("wikipedia")
    assert isinstance(english, HubDataset)
    assert english.config == "20231101.en"


def test_recipe_from_a_local_copy(tmp_path: Path) -> None:
    lines = [" = One = \n", "text\n", " = Two = \n", "text\n"]
    parquet.write_table(pa.table({"text": lines}), tmp_path / "train.parquet")
    assert len(list(documents(f"wikitext-2={tmp_path}"))) == 2


def test_hub_specs() -> None:
    source = resolve("hf:owner/name:config:test#body")
    assert isinstance(source, HubDataset)
    assert (source.path, source.config, source.split, source.rows.column) == ("owner/name", "config", "test", "body")


def test_default_is_the_standard_library() -> None:
    source = resolve("default")
    assert isinstance(source, StandardLibrary)
    small = StandardLibrary(max_bytes=900_000)
    texts = list(small.documents())
    assert texts == list(small.documents())
    assert 700_000 < sum(len(text.encode()) for text in texts) <= 900_000
    assert any("comparison" in text.lower() for text in texts[:50])  # a documentation topic
    assert any(text.startswith(('"""', "#", "import", "from")) for text in texts)  # a module
    assert not any("site-packages" in str(p) for p in Path(sysconfig.get_path("stdlib")).glob("*.py"))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt", "folder"])
def test_datasets_on_local_files(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    texts = ["하나", "two\nlines", "three"]
    if kind == "parquet":
        parquet.write_table(pa.table({"text": texts}), folder / "a.parquet")
    elif kind == "txt":
        (folder / "a.txt").write_text(texts[1], encoding="utf-8")
    else:
        (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    spec = f"hf:{folder}" if kind == "folder" else f"hf:{folder / ('a.' + kind)}"
    assert list(documents(spec)) == ([texts[1]] if kind == "txt" else texts)
    if kind != "txt":
        with pytest.raises(DataError, match=r"unknown column 'txt'\. Did you mean 'text'"):
            list(documents(spec + "#txt"))


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    from huggingface_hub import HfApi

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr(HfApi, "dataset_info", fail)
    with pytest.raises(DataError, match=r"cannot reach Salesforce/wikitext .*wikitext-2=PATH") as caught:
        list(documents("wikitext-2"))
    assert "\n" not in str(caught.value)


def test_no_such_split(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    with pytest.raises(DataError, match="cannot read hf:"):
        list(HubDataset(path=str(tmp_path / "a.jsonl"), split="nothing").documents())
