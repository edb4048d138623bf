"""Pragnosia: language models built like brains, large in total and small at work.

    from pragnosia import Pragnosia
    model = Pragnosia.from_pretrained("runs/demo")
    print(model.generate("The brain", max_new_tokens=40))

Importing this package is quick: names load when first used, and transformers' Auto classes learn of ours when
transformers itself is imported.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from pragnosia import _auto

if TYPE_CHECKING:
    from pragnosia.inference.speaker import Pragnosia
    from pragnosia.model.coincidence import CoincidenceConfig, CoincidenceForCausalLM
    from pragnosia.model.configuration import PragnosiaConfig
    from pragnosia.model.modeling import PragnosiaForCausalLM, PragnosiaModel
    from pragnosia.model.setting import Setting
    from pragnosia.spiking.neurogen import NeuroGenForCausalLM
    from pragnosia.spiking.neurogen_configuration import NeuroGenConfig

# MKL, which multiplies for torch, otherwise rounds by where in memory a matrix lies (seen on AMD processors), and the
# same weights read from another file would say other bits. It reads this at its first product; it costs no time.
os.environ.setdefault("MKL_CBWR", "AUTO")

__version__ = "0.1.0"
__all__ = [
    "CoincidenceConfig",
    "CoincidenceForCausalLM",
    "NeuroGenConfig",
    "NeuroGenForCausalLM",
    "Pragnosia",
    "PragnosiaConfig",
    "PragnosiaForCausalLM",
    "PragnosiaModel",
    "Setting",
]

_HOMES = {
    "CoincidenceConfig": "pragnosia.model.coincidence",
    "CoincidenceForCausalLM": "pragnosia.model.coincidence",
    "NeuroGenConfig": "pragnosia.spiking.neurogen_configuration",
    "NeuroGenForCausalLM": "pragnosia.spiking.neurogen",
    "Pragnosia": "pragnosia.inference.speaker",
    "PragnosiaConfig": "pragnosia.model.configuration",
    "PragnosiaForCausalLM": "pragnosia.model.modeling",
    "PragnosiaModel": "pragnosia.model.modeling",
    "Setting": "pragnosia.model.setting",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pragnosia' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


_auto.register_when_imported()
