"""Other families' weights in and out: safetensors directories and llama2.c files to models of ours, and back.

Names load when first used: whether a source exists can be said without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pragnosia.checkpoints.admission import FAMILIES
    from pragnosia.checkpoints.exporting import ExportReport, export_model
    from pragnosia.checkpoints.families import read_family
    from pragnosia.checkpoints.importing import ImportReport, import_model

__all__ = ["FAMILIES", "ExportReport", "ImportReport", "export_model", "import_model", "read_family"]

_HOMES = {
    "FAMILIES": "admission",
    "ExportReport": "exporting",
    "ImportReport": "importing",
    "export_model": "exporting",
    "import_model": "importing",
    "read_family": "families",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
