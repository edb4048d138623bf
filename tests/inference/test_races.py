"""Threads that share a step share it without races: the same token gives the same bits however the threads fall."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia import PragnosiaForCausalLM, kernels
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.inference.loading import load_model
from pragnosia.inference.program import Program
from pragnosia.inference.sparsity import Site, put_to_sleep, sites_of
from pragnosia.quantisation.packing import pack_model

Make = Callable[..., PragnosiaForCausalLM]
pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
TIMES = 400  # a race that was found here spoiled one run in seven with two threads, and most with three
COLUMNS = {"width": 96, "column_width": 8, "thalamus": {"num_awake": 4}}
SHAPES: dict[str, dict[str, Any]] = {
    "units beside shared ones": {"experts": {"num_units": 8, "unit_width": 5, "num_shared": 3}},
    "wide units beside shared ones": {"experts": {"num_units": 8, "unit_width": 80, "num_shared": 1}},
    "a dense layer": {"experts": None, "feed_forward": {"width": 37, "bias": True}},
    "columns behind gates, dendrites": {
        "experts": None,
        "columns": COLUMNS,
        "gates": {"layers": [1]},
        "dendrites": {"num_dendrites": 3, "num_awake": 2},
    },
    "long-term memory": {
        "experts": None,
        "feed_forward": {"width": 37},
        "feed_forwards": ["memory", "dense"],
        "hippocampus": {"num_rows": 144, "num_heads": 3, "num_awake": 5, "key_width": 12},
    },
}
FORMS = ("float32", "bfloat16", "asleep", "bfloat16 asleep", "int8", "int4")


def in_form(model: PragnosiaForCausalLM, form: str, folder: Path) -> Any:
    if form.startswith("bfloat16"):
        model = model.to(torch.bfloat16)
    if form.endswith("asleep"):
        put_to_sleep(model, dict.fromkeys(sites_of(model), Site(0.1, 0.5)))
    if form.startswith("int"):
        model.to(torch.bfloat16).save_pretrained(folder / "model")
        pack_model(blueprint(folder / "model"), folder / form, form)
        model = load_model(folder / form)
    return model


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bits_every_time(
    shape: str, form: str, threads: int, make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = in_form(make_model(hidden_size=48, **SHAPES[shape]), form, tmp_path)
    before = torch.get_num_threads()
    monkeypatch.setattr("pragnosia.kernels.step.SMALL", 1)
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            program = Program(model, model.fresh_state(1, 16))
            for token in (1, 2, 3):
                program(token)
                program.length += 1
            likeliest, logits = program(7), program.logits.clone()
            for _ in range(TIMES):
                assert program(7) == likeliest
                assert torch.equal(program.logits, logits)
    finally:
        torch.set_num_threads(before)
