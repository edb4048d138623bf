"""A Hugging Face citizen: whatever transformers and PEFT do to a model, they can do to ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM, PragnosiaModel
from pragnosia.model.setting import WHOLE, Setting

Make = Callable[..., PragnosiaForCausalLM]


def alphabet_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte a token, and an end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate([*letters, "<end>"])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")


@pytest.fixture(scope="module")
def directory(tiny_model: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with its tokenizer."""
    folder = tmp_path_factory.mktemp("citizen")
    model = tiny_model(vocab_size=257, experts={"num_shared": 1, "thalamus": {"balance_rate": 0.1}}, rope_theta=5e4)
    for experts in model.experts():
        balance: Any = experts.thalamus.balance
        balance.uniform_(-0.2, 0.2)
    model.save_pretrained(folder, max_shard_size="20KB")
    alphabet_tokenizer().save_pretrained(folder)
    return folder


# -- finding us

STRANGER = """
import sys
import pragnosia
assert not {"torch", "transformers", "numpy"} & set(sys.modules), "import pragnosia must be quick"
from transformers import AutoConfig
print(type(AutoConfig.from_pretrained(sys.argv[1])).__name__)
from transformers import AutoModel, AutoModelForCausalLM
print(type(AutoModel.from_pretrained(sys.argv[1])).__name__)
print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)
"""
LATECOMER = """
import sys
from transformers import AutoConfig
import pragnosia
print(type(AutoConfig.from_pretrained(sys.argv[1])).__name__)
"""


def answers(program: str, folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_auto_classes_find_us(directory: Path) -> None:
    assert answers(STRANGER, directory) == ["PragnosiaConfig", "PragnosiaModel", "PragnosiaForCausalLM"]


def test_auto_classes_find_us_when_they_were_there_first(directory: Path) -> None:
    assert answers(LATECOMER, directory) == ["PragnosiaConfig"]


def test_auto_classes_build_us(tiny_config: Callable[..., PragnosiaConfig]) -> None:
    config = tiny_config()
    assert isinstance(AutoConfig.for_model("pragnosia", hidden_size=64), PragnosiaConfig)
    assert type(AutoModel.from_config(config)) is PragnosiaModel
    assert type(AutoModelForCausalLM.from_config(config)) is PragnosiaForCausalLM


# -- saving and loading


@pytest.mark.parametrize(
    "how", [{}, {"device_map": "cpu"}, {"device_map": "auto"}, {"low_cpu_mem_usage": True}], ids=str
)
def test_loaded_in_every_way(how: dict[str, Any], directory: Path) -> None:
    plain = PragnosiaForCausalLM.from_pretrained(directory)
    loaded = AutoModelForCausalLM.from_pretrained(directory, **how)
    ids = torch.arange(20)[None]
    assert not loaded.training
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    assert torch.equal(loaded(ids).logits, plain(ids).logits)


def test_what_is_not_saved_is_made_anew(directory: Path) -> None:
    """Loading passes over the meta device: buffers that no file holds must not stay as memory happened to be."""
    loaded: Any = PragnosiaForCausalLM.from_pretrained(directory)
    expected = 5e4 ** -(torch.arange(0, 6, 2) / 6)
    torch.testing.assert_close(loaded.model.positions.inv_freq, expected)
    assert all(not experts.thalamus.steering.any() for experts in loaded.experts())
    assert all(experts.thalamus.balance.any() for experts in loaded.experts()), "balance is saved"


@torch.no_grad()
def test_rounded_to_bfloat16(directory: Path) -> None:
    loaded: Any = PragnosiaForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    assert loaded.model.layers[0].feed_forward.bank.up.dtype == torch.bfloat16
    assert loaded.model.layers[0].feed_forward.thalamus.balance.dtype == torch.float32, "small steps must not be lost"
    ids = torch.arange(20)[None]
    exact = PragnosiaForCausalLM.from_pretrained(directory)(ids).logits
    assert float((loaded(ids).logits.float() - exact).abs().mean()) < 0.1 * float(exact.abs().mean())
    loaded.rebalance(loaded(ids).routings)


def test_saved_again_it_is_the_same(directory: Path, tmp_path: Path) -> None:
    loaded = PragnosiaForCausalLM.from_pretrained(directory)
    loaded.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((directory / "config.json").read_text())
    again = PragnosiaForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_resized_for_more_tokens(directory: Path) -> None:
    model = PragnosiaForCausalLM.from_pretrained(directory)
    before = model(torch.arange(9)[None]).logits
    model.resize_token_embeddings(270, mean_resizing=False)
    assert model.config.vocab_size == 270
    torch.testing.assert_close(model(torch.arange(9)[None]).logits[..., :257], before)


# -- generate() and the pipeline


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    loaded: Any = PragnosiaForCausalLM.from_pretrained(directory)
    loaded.generation_config.eos_token_id = None
    return loaded


def greedy(model: Any, ids: Tensor, count: int, setting: Setting = WHOLE) -> Tensor:
    """The whole text read anew for each token."""
    for _ in range(count):
        logits = model(ids, use_cache=False, setting=setting).logits[:, -1]
        ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), 1)
    return ids


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 2},
        {"setting": Setting(awake=0.5)},
    ],
    ids=str,
)
@torch.no_grad()
def test_generate_is_greedy(options: dict[str, Any], model: Any, tokens: Tensor) -> None:
    expected = greedy(model, tokens[:1], 10, options.get("setting", WHOLE))
    assert torch.equal(model.generate(tokens[:1], max_new_tokens=10, do_sample=False, **options), expected)


@torch.no_grad()
def test_generate_pads_on_the_left(model: Any, tokens: Tensor) -> None:
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    both = model.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(both[:1, 4:], greedy(model, tokens[:1, 4:], 6))
    assert torch.equal(both[1:], greedy(model, tokens[1:], 6))


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2, "do_sample": True},
        {"do_sample": True, "top_k": 5, "top_p": 0.9, "temperature": 0.7, "min_p": 0.01, "repetition_penalty": 1.2},
        {"do_sample": False, "no_repeat_ngram_size": 2},
    ],
    ids=str,
)
def test_generate_searches_and_samples(options: dict[str, Any], model: Any, tokens: Tensor) -> None:
    out = model.generate(tokens, max_new_tokens=5, **options)
    rows = options.get("num_return_sequences", 1)
    assert out.shape == (2 * rows, 17)
    assert torch.equal(out[:, :12], tokens.repeat_interleave(rows, 0))


@torch.no_grad()
def test_a_beam_never_scores_below_greedy(model: Any, tokens: Tensor) -> None:
    def score(ids: Tensor) -> float:
        chosen = model(ids, use_cache=False).logits[:, 11:-1].log_softmax(-1).gather(-1, ids[:, 12:, None])
        return float(chosen.sum())

    best = model.generate(tokens[:1], max_new_tokens=2, num_beams=257, do_sample=False, length_penalty=0.0)
    assert score(best) >= score(greedy(model, tokens[:1], 2)) - 1e-4


def test_generate_refuses_a_misspelt_option(model: Any, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match="enrgy"):
        model.generate(tokens, max_new_tokens=2, enrgy=0.5)


def test_the_pipeline_speaks(directory: Path) -> None:
    from transformers import pipeline

    speaker: Any = pipeline("text-generation", model=str(directory), device="cpu")
    assert type(speaker.model) is PragnosiaForCausalLM
    (told,) = speaker("Once", max_new_tokens=6, do_sample=False)
    ids = torch.tensor([alphabet_tokenizer()("Once")["input_ids"]])
    model: Any = speaker.model
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert told["generated_text"] == alphabet_tokenizer().decode(expected[0], skip_special_tokens=True)
    batch = speaker(["Once", "upon a"], max_new_tokens=4, do_sample=False, batch_size=2)
    assert len(batch) == 2


# -- learning with other people's tools


def test_the_trainer_trains(tiny_model: Make, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model = tiny_model()
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 61, (8, 12))]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[0] == pytest.approx(before, rel=0.05), "one step's loss is a mean, however it was gathered"
    assert trainer.evaluate()["eval_loss"] < before


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT asks by the old name
@pytest.mark.parametrize(
    "targets",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_parameters": ["bank.up", "bank.down"], "target_modules": []},
        {"target_modules": ["q_proj", "o_proj", "shared.up"], "target_parameters": ["bank.down"]},
    ],
    ids=["attention", "units", "both"],
)
def test_adapters_learn_and_merge(targets: dict[str, Any], tiny_model: Make, tokens: Tensor) -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_model(experts={"num_shared": 1})
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = model(tokens).logits
    adapted: Any = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, lora_dropout=0.0, **targets)
    )
    torch.testing.assert_close(adapted(tokens).logits, plain, msg="an adapter begins as nothing")
    learning = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert learning
    assert all("lora_" in name for name in learning)

    adapted.train()
    optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = adapted(tokens, labels=tokens).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    now = {name.replace("base_layer.", ""): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(now[name], tensor) for name, tensor in frozen.items()), "nothing else learns"

    adapted.eval()
    learnt = adapted(tokens).logits
    merged = adapted.merge_and_unload()
    assert isinstance(merged, PragnosiaForCausalLM)
    assert merged.state_dict().keys() == frozen.keys()
    torch.testing.assert_close(merged(tokens).logits, learnt, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(learnt, plain, atol=1e-2)
