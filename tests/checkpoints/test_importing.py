"""Import as a whole: what travels along, what is refused, and how much memory it takes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pragnosia.checkpoints import export_model, import_model, importing
from pragnosia.checkpoints.families import family_named, read_config
from pragnosia.checkpoints.matching import parameter_shapes
from pragnosia.checkpoints.writer import Entry, write_weights
from pragnosia.data import vocabulary_digest
from pragnosia.errors import CheckpointError, UnsupportedArchitectureError
from pragnosia.units import MIB

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture
def llama(specimen, tmp_path: Path) -> Path:
    """A copy of a Llama checkpoint that a test may damage."""
    shutil.copytree(specimen("llama").source, tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def sharded(specimen, tmp_path: Path) -> Path:
    """The same in shards."""
    specimen("llama").theirs.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    return tmp_path / "sharded"


def test_shards_are_joined(specimen, sharded: Path, tmp_path: Path) -> None:
    report = import_model(sharded, tmp_path / "ours")
    expected, got = (load_file(folder / WEIGHTS) for folder in (specimen("llama").imported, tmp_path / "ours"))
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert report.num_tensors == len(got)
    assert report.num_parameters == sum(tensor.numel() for tensor in got.values())
    assert report.num_bytes == sum(tensor.nbytes for tensor in got.values())
    assert (report.family, report.files) == ("llama", tuple(sorted(p.name for p in (tmp_path / "ours").iterdir())))


def test_shards_are_written_and_read_back(specimen, llama: Path, tmp_path: Path) -> None:
    import_model(llama, tmp_path / "ours", shard_bytes=20_000)
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2
    export_model(tmp_path / "ours", tmp_path / "back", shard_bytes=30_000)
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 2
    again = type(specimen("llama").theirs).from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in specimen("llama").theirs.state_dict().items())


def test_the_tokenizer_and_its_company_travel_both_ways(llama: Path, tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2}, unk_token="<s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(llama)
    (llama / "LICENSE").write_text("be kind")
    (llama / "malware.py").write_text("stays behind")
    assert import_model(llama, tmp_path / "ours").has_tokenizer
    ours = json.loads((tmp_path / "ours/config.json").read_text())
    assert ours["tokenizer_digest"] == vocabulary_digest(llama) is not None
    export_model(tmp_path / "ours", tmp_path / "back")
    for folder in (tmp_path / "ours", tmp_path / "back"):
        for name in (
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "generation_config.json",
            "LICENSE",
        ):
            assert (folder / name).read_bytes() == (llama / name).read_bytes()
        assert not (folder / "malware.py").exists()
        loaded = AutoTokenizer.from_pretrained(folder)
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.chat_template == "{{ messages }}"
    assert "tokenizer_digest" not in json.loads((tmp_path / "back/config.json").read_text())


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").touch()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (shutil.rmtree, "does not exist"),
    "no configuration": (lambda hf: (hf / "config.json").unlink(), r"config\.json is missing"),
    "broken configuration": (
        lambda hf: (hf / "config.json").write_text('{"model_type": '),
        r"config\.json is not valid JSON",
    ),
    "binary configuration": (lambda hf: (hf / "config.json").write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
    "listed configuration": (lambda hf: (hf / "config.json").write_text("[]"), "JSON list, expected an object"),
    "no weights": (lambda hf: (hf / WEIGHTS).unlink(), "holds neither"),
    "pickled weights": (pickled, r"pickled weights \(pytorch_model\.bin\).*writes safetensors"),
    "truncated weights": (
        lambda hf: (hf / WEIGHTS).write_bytes((hf / WEIGHTS).read_bytes()[:-7]),
        "truncated or corrupt",
    ),
    "empty weights": (lambda hf: (hf / WEIGHTS).write_bytes(b""), "truncated or corrupt"),
    "other weights": (lambda hf: (hf / WEIGHTS).write_bytes(bytes(1000)), "truncated or corrupt"),
    "missing tensor": (lambda hf: edit(hf / WEIGHTS, lambda t: t.pop(NORM)), f"tensor {NORM} is missing"),
    "surplus tensor": (lambda hf: edit(hf / WEIGHTS, lambda t: t.update(odd=torch.ones(1))), "tensor odd has no place"),
    "wrong shape": (
        lambda hf: edit(hf / WEIGHTS, lambda t: t.update({NORM: torch.ones(7)})),
        rf"tensor {NORM} has shape \(7,\), config.json calls for \(32,\)",
    ),
    "mixed dtypes": (
        lambda hf: edit(hf / WEIGHTS, lambda t: t.update({k: v.half() for k, v in t.items() if "gate_proj" in k})),
        "float16",
    ),
    "more layers": (lambda hf: edit_json(hf / "config.json", num_hidden_layers=4), r"model\.layers\.3.* is missing"),
    "fewer layers": (lambda hf: edit_json(hf / "config.json", num_hidden_layers=2), r"model\.layers\.2.* has no place"),
    "unknown field": (lambda hf: edit_json(hf / "config.json", residual_multiplier=2.0), "residual_multiplier"),
    "our own": (lambda hf: edit_json(hf / "config.json", model_type="pragnosia"), "is a pragnosia model already"),
    "unsupported": (
        lambda hf: edit_json(hf / "config.json", model_type="bloom", architectures=["BloomForCausalLM"]),
        "BloomForCausalLM.*Supported: llama,",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_reported_in_one_line_and_leaves_nothing(llama: Path, tmp_path: Path, damage: str) -> None:
    inflict, message = DAMAGE[damage]
    inflict(llama)
    before = set(tmp_path.iterdir())
    with pytest.raises((CheckpointError, ValueError), match=message) as caught:
        import_model(llama, tmp_path / "ours")
    assert getattr(caught.value, "exit_code", None) == 2
    assert "\n" not in str(caught.value)
    assert str(llama) in str(caught.value) or isinstance(caught.value, UnsupportedArchitectureError)
    assert set(tmp_path.iterdir()) == before


SHARD_DAMAGE: dict[str, tuple[Callable[[Path, str], object], str]] = {
    "missing shard": (lambda hf, shard: (hf / shard).unlink(), "{shard} is missing"),
    "truncated shard": (
        lambda hf, shard: (hf / shard).write_bytes((hf / shard).read_bytes()[:-1]),
        "{shard} is truncated",
    ),
    "tensor not in its shard": (
        lambda hf, shard: edit(hf / shard, lambda t: t.pop(NORM)),
        "{shard}: tensor {norm} is missing",
    ),
    "index without a map": (lambda hf, shard: (hf / INDEX).write_text("{}"), "weight_map must map"),
    "index that is no JSON": (lambda hf, shard: (hf / INDEX).write_text("{"), "not valid JSON"),
    "index that leads outside": (
        lambda hf, shard: (hf / INDEX).write_text((hf / INDEX).read_text().replace(shard, f"../{shard}")),
        "outside the directory",
    ),
}


@pytest.mark.parametrize("damage", SHARD_DAMAGE)
def test_damaged_shards_are_named(sharded: Path, tmp_path: Path, damage: str) -> None:
    shard = json.loads((sharded / INDEX).read_text())["weight_map"][NORM]
    inflict, message = SHARD_DAMAGE[damage]
    inflict(sharded, shard)
    with pytest.raises(CheckpointError, match=message.format(shard=shard, norm=NORM)):
        import_model(sharded, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_import_leaves_nothing(llama: Path, tmp_path: Path, monkeypatch, failure) -> None:
    def interrupted(*_: object) -> None:
        raise failure

    monkeypatch.setattr(importing, "carry", interrupted)  # the weights are written by then
    with pytest.raises((KeyboardInterrupt, CheckpointError)) as caught:
        import_model(llama, tmp_path / "ours")
    assert caught.type is KeyboardInterrupt or "No space left on device" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_an_existing_model_is_not_overwritten(llama: Path, specimen) -> None:
    with pytest.raises(CheckpointError, match="already exists"):
        import_model(llama, specimen("llama").imported)


MEMORY = """
import resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from pragnosia.checkpoints import export_model, import_model
folder = Path(sys.argv[1])
import_model(folder / "tiny", folder / "warm")  # so that code and libraries are not counted
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
start = peak()
import_model(folder / "large", folder / "ours", shard_bytes=16 * 2**20)
imported = peak()
export_model(folder / "ours", folder / "back", shard_bytes=16 * 2**20)
print(start, imported, peak())
"""


def test_memory_is_bounded_by_a_shard(make_model, tmp_path: Path) -> None:
    """192 MiB in shards of 16 MiB pass through a process that grows by little more than one of them."""
    make_model("mixtral").save_pretrained(tmp_path / "tiny")
    fields = json.loads((tmp_path / "tiny/config.json").read_text())
    fields |= {"hidden_size": 256, "intermediate_size": 1024, "num_local_experts": 16, "num_hidden_layers": 4}
    config, total = read_config(fields), 0
    shapes, entries = parameter_shapes(config), []
    for rule in family_named("mixtral").weights(config):
        for name, shape in rule.their_shapes(shapes[rule.ours]).items():
            entries.append(Entry(name, torch.float32, shape, lambda shape=shape: iter([torch.ones(shape)])))
            total += entries[-1].nbytes
    assert total > 192 * MIB
    (tmp_path / "large").mkdir()
    write_weights(tmp_path / "large", entries, shard_bytes=16 * MIB)
    (tmp_path / "large/config.json").write_text(json.dumps(fields))
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    start, imported, exported = map(int, run.stdout.split()[-3:])
    assert imported - start < 16 + 48
    assert exported - start < 16 + 48


def test_a_tokenizer_of_another_model_is_refused(llama: Path, tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"<s>": 0} | {f"w{i}": i for i in range(1, 700)}, unk_token="<s>"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>").save_pretrained(llama)
    with pytest.raises(CheckpointError, match=r"hf knows 700 tokens, the model 96; it belongs to another model"):
        import_model(llama, tmp_path / "ours")
    (llama / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read the tokenizer in .*hf: .*; fetch tokenizer\.json again"):
        import_model(llama, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
