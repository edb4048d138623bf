"""Models with working memory and a workspace: streamed, packed and planned as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia import Pragnosia, PragnosiaConfig, PragnosiaForCausalLM, kernels
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.model.working_memory import Salience
from pragnosia.quantisation.packing import pack_model

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")

SLOTS: dict[str, Any] = {"num_slots": 5, "segment": 4, "num_heads": 2, "head_dim": 16}
THINKERS: dict[str, dict[str, Any]] = {
    "experts": {"experts": {"num_units": 8, "unit_width": 16}},
    "dense": {"feed_forward": {"width": 64}},
}


@pytest.fixture(scope="module", params=THINKERS)
def model(request: pytest.FixtureRequest) -> PragnosiaForCausalLM:
    """Of three layers, every weight of which is felt."""
    torch.manual_seed(0)
    config = PragnosiaConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=3, max_position_embeddings=128, initializer_range=0.3,
        attention={"num_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
        working_memory={"layers": [1], **SLOTS}, workspace={"layers": [0, 2], **SLOTS}, **THINKERS[request.param],
    )  # fmt: skip
    made: PragnosiaForCausalLM = PragnosiaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("length", [20, 100])
def test_from_disk_it_says_the_same(model: PragnosiaForCausalLM, length: int, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    prompt = [7 * place % 61 for place in range(length)]
    streamed = Pragnosia.from_pretrained(tmp_path / "model", memory="3GiB", context=120)
    assert streamed.plan is not None
    assert streamed.plan.cache == model.fresh_state(1, 120).nbytes
    said = [one.generate_tokens(prompt, max_new_tokens=12, temperature=0) for one in (Pragnosia(model), streamed)]
    assert said[0] == said[1]


@torch.no_grad()
def test_packed_strengths_stay_plain(model: PragnosiaForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    pack_model(blueprint(tmp_path / "model"), tmp_path / "packed", "int8")
    packed = Pragnosia.from_pretrained(tmp_path / "packed", memory="3GiB", context=64)
    saliences = [module for module in packed.model.modules() if isinstance(module, Salience)]
    assert len(saliences) == 3
    assert all(module.weight.dtype.is_floating_point for module in saliences)
    ids = torch.arange(20, 52)[None]
    plain, rounded = (one(ids, use_cache=False).logits.flatten() for one in (model, packed.model))
    assert float(torch.cosine_similarity(plain, rounded, dim=0)) > 0.9  # a rounded score may wake another unit
    assert len(packed.generate_tokens(ids, max_new_tokens=6, temperature=0)) == 6
