"""Domains: labels from names before `=`, or from the entries of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pragnosia.data.domains import as_mixture, read_domains
from pragnosia.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = tmp_path / "texts"
    (texts / "maths").mkdir(parents=True)
    (texts / "maths" / "one.txt").write_text("1 + 1 = 2")
    (texts / "maths" / "two.txt").write_text("2 + 2 = 4")
    (texts / "stories.part.txt").write_text("Once upon a time")
    (texts / ".hidden").write_text("nothing")
    return texts


def test_a_folder_names_its_domains(folder: Path) -> None:
    domains = read_domains([str(folder)])
    assert list(domains) == ["maths", "stories"]
    assert list(domains["maths"].documents()) == ["1 + 1 = 2", "2 + 2 = 4"]
    mixture = as_mixture(domains)
    assert mixture.weights == (0.5, 0.5)
    assert [source.identity() for source in mixture.sources] == [source.identity() for source in domains.values()]


def test_labels_before_the_equals_sign(folder: Path) -> None:
    story = folder / "stories.part.txt"
    domains = read_domains([f"b={story}", f"a={folder / 'maths'}", f"b={folder / 'maths' / 'one.txt'}"])
    assert list(domains) == ["b", "a"]
    assert list(domains["b"].documents()) == ["Once upon a time", "1 + 1 = 2"]


def test_what_names_no_domains(folder: Path) -> None:
    with pytest.raises(DataError, match="names no domain; write domain=PATH"):
        read_domains([str(folder / "stories.part.txt"), f"a={folder}"])
    with pytest.raises(DataError, match="the data name one domain, 'a'; lobes take two or more"):
        read_domains([f"a={folder}"])
    with pytest.raises(DataError, match="nowhere"):
        read_domains(["a=nowhere", f"b={folder}"])
    (folder / "stories.part.txt").unlink()
    with pytest.raises(DataError, match="texts holds one domain, 'maths'"):
        read_domains([str(folder)])
    with pytest.raises(DataError, match="equal shares"):
        read_domains({"a=x": 0.5})
