"""Thresholds: they let the stated share sleep, and what that costs is measured on other text."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pragnosia import PragnosiaForCausalLM
from pragnosia.data import Texts
from pragnosia.errors import CheckpointError, ConfigError, DataError
from pragnosia.inference.sparsity import sites_of
from pragnosia.measure import thresholds
from pragnosia.measure.accounting import account
from pragnosia.measure.evaluation import evaluate
from pragnosia.measure.passages import Passages
from pragnosia.measure.thresholds import calibrated, examine, examples
from pragnosia.model.configuration import PragnosiaConfig

GENERATOR = torch.Generator().manual_seed(0)
SEEN, HELD_OUT = (list(torch.randint(0, 99, (6, 64), generator=GENERATOR)) for _ in range(2))


def model_of(**changes: Any) -> PragnosiaForCausalLM:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 99,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "initializer_range": 0.2,
        "attention": {"num_heads": 4, "num_key_value_heads": 2},
        "feed_forward": {"width": 80},
    }
    model: Any = PragnosiaForCausalLM(PragnosiaConfig(**(shape | changes))).eval()
    return model  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def tokenizer(make_byte_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return make_byte_tokenizer(eos_token="<end>", bos_token="<end>")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("level", [0.25, 0.5, 0.9])
def test_they_reach_the_level(level: float, dtype: torch.dtype) -> None:
    model = model_of().to(dtype)
    sparsity = calibrated(model, SEEN, level)
    for windows, near in ((SEEN, 0.02), (HELD_OUT, 0.05)):
        shares = examine(model, windows).asleep
        assert shares.keys() == sparsity.sites.keys() == sites_of(model).keys()
        assert all(abs(share - level) < near for share in shares.values()), shares


def test_the_first_layer_is_torchs_quantile() -> None:
    model = model_of()
    with torch.inference_mode():
        inputs = [model.model.layers[0].mixer_norm(model.model.embed_tokens(window)) for window in SEEN]
    wanted = float(torch.cat(inputs).abs().flatten().quantile(0.6))
    found = calibrated(model, SEEN, 0.6).sites
    for name in "qkv":
        assert found[f"model.layers.0.mixer.{name}_proj"].threshold == pytest.approx(wanted, rel=0.005)


def test_level_0_changes_nothing() -> None:
    model = model_of()
    before = examine(model, HELD_OUT)
    assert all(site.threshold == 0 for site in calibrated(model, SEEN, 0.0).sites.values())
    assert examine(model, HELD_OUT).perplexity == pytest.approx(before.perplexity, rel=1e-5)


def test_deeper_sleep_costs_more_and_reads_less() -> None:
    perplexities, read = [], []
    for level in (0.0, 0.5, 0.95):
        model = model_of(feed_forward={"width": 80, "activation": "relu2"})
        whole = account(model, precision="float32").bytes_per_token
        sites = calibrated(model, SEEN, level).sites
        perplexities.append(examine(model, SEEN).perplexity)
        assert account(model, precision="float32").total_parameters == account(model.config).total_parameters
        read.append(account(model, precision="float32").bytes_per_token)
        layers = sum(4 * site.weight.numel() for site in sites_of(model).values())
        assert whole - read[-1] == pytest.approx(level * layers, abs=4 * 12)
        assert len(sites) == 12
    assert perplexities[1] != perplexities[0]
    assert read[0] > read[1] > read[2]


def test_text_is_shared_out(tokenizer: PreTrainedTokenizerFast) -> None:
    text = Texts(["Sleep is free. " * 60, "So is a dream, " * 60])
    found = examples(tokenizer, text, tokens=300, vocab_size=len(tokenizer), context=128)
    assert found.num_seen == 300
    assert [len(window) for window in found.seen] == [128, 128, 44]
    assert found.num_held_out == 300
    short = examples(tokenizer, text, tokens=10**6, vocab_size=len(tokenizer), context=128)
    assert short.num_seen == pytest.approx(3 * short.num_held_out, abs=3)
    flat = list(itertools.chain(*(window.tolist() for window in (*short.seen, *short.held_out))))
    assert flat[:300] == list(itertools.chain(*(window.tolist() for window in found.seen)))
    with pytest.raises(DataError, match="too few to calibrate"):
        examples(tokenizer, Texts(["Too short."]), tokens=300, vocab_size=len(tokenizer), context=128)


def test_perplexity_is_what_eval_measures(tokenizer: PreTrainedTokenizerFast) -> None:
    """Of one document that fits a window, the two read the very same tokens."""
    model = model_of(vocab_size=len(tokenizer), max_position_embeddings=512)
    calibrated(model, [torch.randint(0, len(tokenizer), (300,), generator=GENERATOR)], 0.5)
    text = "Who sleeps, dreams. " * 12
    (passage,) = Passages(tokenizer, len(tokenizer)).of([text])
    measured = evaluate(model, tokenizer, [text], context=512)
    assert examine(model, [passage.tokens]).perplexity == pytest.approx(measured.perplexity, rel=1e-4)


def test_what_cannot_be() -> None:
    for level in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"in \[0, 1\)"):
            calibrated(model_of(), SEEN, level)
    model = model_of()
    with torch.no_grad():
        model.model.layers[0].feed_forward.up.weight[3] = float("nan")
    with pytest.raises(CheckpointError, match="not a number"):
        examine(model, SEEN)
    with pytest.raises(CheckpointError, match="not numbers"):
        calibrated(model, SEEN, 0.99)


def test_magnitudes_are_told_apart() -> None:
    magnitudes = thresholds._Magnitudes()
    values = torch.randn(200_000)
    magnitudes.add(values)
    for level in (0.1, 0.5, 0.99):
        wanted = float(values.abs().sort().values[int(level * len(values))])
        assert magnitudes.quantile("x", level) == pytest.approx(wanted, rel=0.005)


def test_a_shared_out_level_is_missed_less() -> None:
    apart = []
    for share_out in (False, True):
        model = model_of()
        with torch.inference_mode():
            wanted = model.model(SEEN[0][None]).last_hidden_state
            sites = calibrated(model, SEEN, 0.5, share_out=share_out).sites
            apart.append(float((model.model(SEEN[0][None]).last_hidden_state - wanted).norm()))
        sizes = {name: site.weight.numel() for name, site in sites_of(model).items()}
        for layer in ("model.layers.0.", "model.layers.1."):
            its = {name: size for name, size in sizes.items() if name.startswith(layer)}
            saved = sum(sites[name].asleep * size for name, size in its.items())
            assert saved == pytest.approx(0.5 * sum(its.values()), rel=1e-4)
            shared = {round(sites[f"{layer}mixer.{name}_proj"].threshold, 9) for name in "qkv"}
            assert len(shared) == 1
        assert (len({site.asleep for site in sites.values()}) > 1) == share_out
    assert apart[1] < apart[0]
