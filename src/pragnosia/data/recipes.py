"""Recipes: open corpora by name, with what it takes to read them and what their makers ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pragnosia.data.files import Files
from pragnosia.data.hub import HubDataset
from pragnosia.data.rows import PLAIN, Rows
from pragnosia.data.sources import Source
from pragnosia.errors import DataError

_PERMISSIVE = (
    "mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "cc0-1.0",
)  # fmt: skip
# wikitext holds one paragraph a row; ` = Title = ` begins an article and ` = = Section = = ` does not.
_ARTICLES = Rows(begins=r" ?= [^=].* = ?")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An open corpus: where it is, how it is read, whose it is."""

    path: str
    licence: str
    citation: str
    config: str | None = None  # {option} stands for what follows the colon in NAME:OPTION
    option: str | None = None  # the option when none is given; None: the recipe takes none
    split: str = "train"
    rows: Rows = PLAIN


RECIPES: dict[str, Recipe] = {
    "fineweb-edu": Recipe(
        path="HuggingFaceFW/fineweb-edu",
        config="{option}",
        option="sample-10BT",
        licence="ODC-By 1.0",
        citation="Penedo et al. 2024, arXiv:2406.17557",
    ),
    "openwebmath": Recipe(
        path="open-web-math/open-web-math",
        licence="ODC-By 1.0",
        citation="Paster et al. 2023, arXiv:2310.06786",
    ),
    "wikipedia": Recipe(
        path="wikimedia/wikipedia",
        config="20231101.{option}",
        option="en",
        licence="CC BY-SA 3.0 and GFDL",
        citation="Wikimedia Foundation, dumps of 1 November 2023",
    ),
    "tinystories": Recipe(
        path="roneneldan/TinyStories",
        licence="CDLA-Sharing-1.0",
        citation="Eldan and Li 2023, arXiv:2305.07759",
    ),
    "wikitext-2": Recipe(
        path="Salesforce/wikitext",
        config="wikitext-2-raw-v1",
        rows=_ARTICLES,
        licence="CC BY-SA 3.0 and GFDL",
        citation="Merity et al. 2016, arXiv:1609.07843",
    ),
    "wikitext-103": Recipe(
        path="Salesforce/wikitext",
        config="wikitext-103-raw-v1",
        rows=_ARTICLES,
        licence="CC BY-SA 3.0 and GFDL",
        citation="Merity et al. 2016, arXiv:1609.07843",
    ),
    "code": Recipe(
        path="codeparrot/codeparrot-clean",
        rows=Rows(column="content", only={"license": _PERMISSIVE}),
        licence=f"per file: only {', '.join(_PERMISSIVE)} are read",
        citation="Tunstall, von Werra and Wolf 2022, Natural Language Processing with Transformers, ch. 10",
    ),
}


def named(spec: str) -> Source | None:
    """The source of `NAME`, `NAME:OPTION` or `NAME=LOCAL_COPY`, or None where NAME is no recipe."""
    head, _, copy = spec.partition("=")
    name, _, option = head.partition(":")
    recipe = RECIPES.get(name)
    if recipe is None:
        return None
    if copy:
        files = Files(Path(copy).expanduser(), recipe.rows)
        files.paths()  # fails here, before any work
        return files
    if option and recipe.option is None:
        raise DataError(f"the recipe {name!r} takes no option, got {option!r}; write {name}")
    return HubDataset(
        path=recipe.path,
        config=recipe.config and recipe.config.format(option=option or recipe.option),
        split=recipe.split,
        rows=recipe.rows,
        offline=f"offline, pass a local copy: {name}=PATH",
    )
