"""`lobes`: the matrix as a table, as JSON and as a picture; what has no lobes is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia.inference.loading import load_model, load_tokenizer

Run = Callable[..., Any]


@pytest.fixture
def texts(story: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "language.txt").write_text(story.read_text("utf-8")[:2000], "utf-8")
    (folder / "reasoning.txt").write_text("If it slept, it woke. It slept. So it woke.\n" * 40, "utf-8")
    return folder


def test_the_matrix_is_what_lesions_cost(run: Run, model: Path, texts: Path, tmp_path: Path) -> None:
    plot = tmp_path / "lobes.png"
    values = run("lobes", model, "--data", texts, "--tokens", 200, "--plot", plot, "--json").values
    assert values["lobes"] == values["domains"] == ["language", "reasoning"]
    cortex = load_model(model)
    tokenizer = load_tokenizer(model, 300)
    text = (texts / "reasoning.txt").read_text("utf-8")
    ids = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    flat = torch.cat([torch.tensor([start]), ids])[:200]

    def loss() -> float:
        nats, count = 0.0, 0
        for window in flat.split(64):
            with torch.no_grad():
                logits = cortex(window[None], use_cache=False).logits[0, :-1]
            nats += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
            count += len(window) - 1
        return nats / count

    whole = loss()
    assert values["loss"]["reasoning"] == pytest.approx(whole, abs=1e-4)
    with cortex.lesion("language"):
        assert values["rise"]["language"]["reasoning"] == pytest.approx(loss() - whole, abs=1e-4)
    rises = values["rise"]
    assert values["diagonal"] == pytest.approx((rises["language"]["language"] + rises["reasoning"]["reasoning"]) / 2)
    assert sum(values["share"][lobe]["language"] for lobe in values["lobes"]) == pytest.approx(1)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_table_and_what_is_said(run: Run, model: Path, texts: Path) -> None:
    one, other = (f"{name}={texts / name}.txt" for name in ("language", "reasoning"))
    asked = ("lobes", model, "--data", one, other.replace("reasoning=", "logic="), "--tokens", 100)
    shown = run(*asked, "--prompt", "Once", "--steer", "-20").out
    assert shown.splitlines()[0].split() == ["silent", "language", "logic"]
    assert "unsteered: " in shown
    assert "language: " in shown
    assert "a domain's own lobe silent" in shown


def test_what_has_no_lobes(run: Run, model: Path, texts: Path, tmp_path: Path) -> None:
    run("lobes", model, "--data", f"language={texts / 'language.txt'}").refused("one domain, 'language'")
    run("lobes", model, "--data", texts / "language.txt", texts).refused("names no domain; write domain=PATH")
    run("lobes", model, "--data", texts, "--plot", tmp_path / "x.doc").refused("end it in one of")
    run("lobes", tmp_path / "none", "--data", texts).refused("no model directory")
    run("pack", model, tmp_path / "packed")
    run("lobes", tmp_path / "packed", "--data", texts).refused("is packed; ask for the lobes of the model it was made")
    from pragnosia.model.configuration import PragnosiaConfig
    from pragnosia.model.modeling import PragnosiaForCausalLM

    for name, organs, message in (
        ("dense", {"feed_forward": {"width": 8}}, "this model is dense: it has no lobes"),
        ("one", {"experts": {"num_units": 2, "unit_width": 8}}, "the model has one lobe, 'cortex'"),
    ):
        shape: dict[str, Any] = {"attention": {"num_heads": 1, "num_key_value_heads": 1, "head_dim": 8}, **organs}
        config = PragnosiaConfig(
            vocab_size=300, hidden_size=8, num_hidden_layers=1, max_position_embeddings=64, **shape
        )
        PragnosiaForCausalLM(config).save_pretrained(tmp_path / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name / file).write_bytes((model / file).read_bytes())
        run("lobes", tmp_path / name, "--data", texts).refused(message)
