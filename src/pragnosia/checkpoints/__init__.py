"""Other families' weights in and out: safetensors directories and llama2.c files to models of ours, and back."""

from __future__ import annotations

from pragnosia.checkpoints.exporting import ExportReport, export_model
from pragnosia.checkpoints.families import FAMILIES, read_family
from pragnosia.checkpoints.importing import ImportReport, import_model

__all__ = ["FAMILIES", "ExportReport", "ImportReport", "export_model", "import_model", "read_family"]
