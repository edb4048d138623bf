"""What a model's weights are priced as: the form they lie in, packed or plain."""

from __future__ import annotations

from pathlib import Path

import pytest

from pragnosia import Pragnosia, kernels
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.inference.loading import load_model
from pragnosia.measure.accounting import account, stored
from pragnosia.measure.energy import energy_model
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.quantisation.packing import pack_model

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")


@pytest.mark.parametrize(("form", "share"), [("int4", 4 / 32), ("bf16-2:4", 9 / 32)])
def test_packed_weights_are_priced_as_they_lie(form: str, share: float, tmp_path: Path) -> None:
    config = PragnosiaConfig(vocab_size=64, hidden_size=64, num_hidden_layers=2)
    plain = PragnosiaForCausalLM(config)
    plain.save_pretrained(tmp_path / "plain")
    pack_model(blueprint(tmp_path / "plain"), tmp_path / "packed", form)
    packed = load_model(tmp_path / "packed")
    assert stored(plain) == "float32"
    assert stored(packed) == form
    whole, less = (
        account(plain, precision=stored(plain), context=1),
        account(packed, precision=stored(packed), context=1),
    )
    assert less.bytes_per_token == pytest.approx(share * whole.bytes_per_token, rel=0.02)
    model = energy_model()
    cost = model.estimate(less.operations_per_token, less.bytes_per_token, less.arithmetic).joules
    assert cost < model.estimate(whole.operations_per_token, whole.bytes_per_token, whole.arithmetic).joules


@pytest.mark.parametrize("form", [None, "int8"])
def test_a_dense_model_whose_embeddings_stay_on_disk_is_counted(form: str | None, tmp_path: Path) -> None:
    config = PragnosiaConfig(vocab_size=64, hidden_size=64, num_hidden_layers=2, tie_word_embeddings=False)
    folder = tmp_path / "plain"
    PragnosiaForCausalLM(config).save_pretrained(folder)
    if form:
        pack_model(blueprint(folder), tmp_path / "packed", form)
        folder = tmp_path / "packed"
    streamed = Pragnosia.from_pretrained(folder, memory="1GiB").model
    assert "model.embed_tokens.weight" not in dict(streamed.named_parameters())
    assert account(streamed) == account(config)
