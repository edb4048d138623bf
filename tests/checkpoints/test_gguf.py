"""GGUF files of every family, written here with the gguf library, against transformers on the dequantised weights."""

from __future__ import annotations

import contextlib
import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pragnosia import Pragnosia, kernels
from pragnosia.apps.cli import main
from pragnosia.checkpoints import FAMILIES, import_model
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.checkpoints.gguf_header import gguf_in, read_header
from pragnosia.checkpoints.gguf_source import GgufSource
from pragnosia.checkpoints.source import pieces
from pragnosia.errors import CheckpointError, ConfigError, UnsupportedArchitectureError
from pragnosia.inference.loading import load_model
from pragnosia.inference.stream import load_streamed
from pragnosia.quantisation.packing import pack_model
from pragnosia.units import GIB

gguf = pytest.importorskip("gguf")
KINDS = gguf.GGMLQuantizationType
ARCHITECTURES = {"mistral": "llama", "mixtral": "llama", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss"}
# What a GGUF file cannot say, switched off; rows of whole blocks.
CHANGES: dict[str, dict[str, Any]] = {
    "llama": {"mlp_bias": False},
    "qwen2": {"use_sliding_window": False},
    "qwen3_moe": {"moe_intermediate_size": 32, "mlp_only_layers": []},
    "olmoe": {"attention_bias": False},
}
# Bytes of a block that hold its scales, in half precision; the library quantises to these types nowhere but in C++.
SCALES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def stored(tensor: torch.Tensor, kind: str) -> tuple[np.ndarray, str, torch.Tensor]:
    """Rows as a file holds them, in which type, and what they stand for."""
    values = tensor.float().numpy()
    block, size = gguf.GGML_QUANT_SIZES[KINDS[kind]]
    if values.ndim < 2 or values.shape[-1] % block:
        return values, "F32", tensor
    if kind in SCALES:
        blocks = np.random.default_rng(values.size).integers(0, 256, (values.size // block, size), dtype=np.uint8)
        for at in SCALES[kind]:
            blocks[:, at : at + 2] = np.full((len(blocks), 1), 0.0008 if kind == "Q6_K" else 0.003, "<f2").view(
                np.uint8
            )
        rows = blocks.reshape(*values.shape[:-1], -1)
    else:
        rows = gguf.quants.quantize(values, KINDS[kind])
    back = gguf.quants.dequantize(rows, KINDS[kind])
    return rows, kind, torch.from_numpy(np.array(back)).view(tensor.shape)


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp wants queries and keys of the llama architecture."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(folder: Path, path: Path, kind: str, change: Callable[[Any], None] | None = None) -> None:
    """A Hugging Face directory as a GGUF file; its weights become what the file's stand for."""
    values = json.loads((folder / "config.json").read_text())
    tensors, back = load_file(folder / "model.safetensors"), {}
    family, layers = values["model_type"], values["num_hidden_layers"]
    name = ARCHITECTURES.get(family, family)
    writer = gguf.GGUFWriter(path, name)
    write_metadata(writer, values)
    architecture = next(key for key, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
    names = gguf.get_tensor_name_map(architecture, layers)
    stacks: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    kinds: dict[str, str] = {}

    def add(theirs: str, rows: np.ndarray, held: str) -> None:
        called = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert called is not None, theirs
        writer.add_tensor(called, rows, raw_dtype=None if held in ("F32", "F16") else KINDS[held])

    for theirs, tensor in tensors.items():
        unit = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", theirs)
        if unit is not None:
            rows, held, back[theirs] = stored(tensor, kind)
            inner = unit[1].removeprefix("model.").replace("block_sparse_moe", "feed_forward")
            whole = f"{inner if family == 'mixtral' else unit[1]}.{unit[3]}.weight"
            stacks[whole][int(unit[2])], kinds[whole] = rows, held
        elif re.search(r"experts\.\w+_proj", theirs):
            back[theirs] = add_gpt_oss(add, theirs, tensor, kind)
        else:
            rows, held, back[theirs] = stored(tensor, "F32" if re.search(r"(gate|router)\.weight", theirs) else kind)
            if name == "llama" and re.search(r"\.[qk]_proj\.", theirs):
                rows = permuted(rows, values["num_attention_heads" if ".q_" in theirs else "num_key_value_heads"])
            add(theirs if not theirs.endswith("sinks") else f"{theirs}.weight", rows, held)
    for theirs, units in stacks.items():
        add(theirs, np.stack([units[unit] for unit in range(len(units))]), kinds[theirs])
    if values["rope_parameters"]["rope_type"] == "llama3":
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        plain = values["rope_parameters"]["rope_theta"] ** -(np.arange(0, values["head_dim"], 2) / values["head_dim"])
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32))
    if change is not None:
        change(writer)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    save_file(
        {key: tensor.contiguous() for key, tensor in back.items()}, folder / "model.safetensors", {"format": "pt"}
    )


def add_gpt_oss(add: Callable[..., None], theirs: str, tensor: torch.Tensor, kind: str) -> torch.Tensor:
    """Gate and up lie apart in the file, and matrices turned."""
    is_bias = theirs.endswith("_bias")
    laid = tensor if is_bias else tensor.transpose(1, 2)  # (U, out[, in])
    rows, held, back = stored(laid.contiguous(), "F32" if is_bias else kind)
    layer, _, part = theirs.removesuffix("_bias").rpartition(".")
    ending = "bias" if is_bias else "weight"
    if part == "gate_up_proj":
        for at, one in enumerate(("gate_proj", "up_proj")):
            add(f"{layer}.{one}.{ending}", np.ascontiguousarray(rows[:, at::2]), held)
    else:
        add(f"{layer}.{part}.{ending}", rows, held)
    return back if is_bias else back.transpose(1, 2)


def write_metadata(writer: Any, values: dict[str, Any]) -> None:
    writer.add_block_count(values["num_hidden_layers"])
    writer.add_context_length(values["max_position_embeddings"])
    writer.add_embedding_length(values["hidden_size"])
    writer.add_feed_forward_length(values["intermediate_size"])
    writer.add_head_count(values["num_attention_heads"])
    writer.add_head_count_kv(values["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(values["rms_norm_eps"])
    if values.get("head_dim"):
        writer.add_key_length(values["head_dim"])
        writer.add_value_length(values["head_dim"])
    rope = values["rope_parameters"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if units := values.get("num_experts", values.get("num_local_experts")):
        writer.add_expert_count(units)
        writer.add_expert_used_count(values["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(values.get("moe_intermediate_size", values["intermediate_size"]))
    if values.get("sliding_window"):
        writer.add_sliding_window(values["sliding_window"])
    if values.get("clip_qkv"):
        writer.add_clamp_kqv(values["clip_qkv"])
    for name in ("bos", "eos"):
        getattr(writer, f"add_{name}_token_id")(values[f"{name}_token_id"])


@pytest.fixture
def written(make_model, tmp_path: Path) -> Callable[..., tuple[transformers.PreTrainedModel, Path]]:
    """`written(family, kind)`: transformers' model of what the file says, and the file."""

    def make(family: str, kind: str, change: Any = None, **changes: Any) -> tuple[transformers.PreTrainedModel, Path]:
        sizes = {"intermediate_size": 64, **CHANGES.get(family, {}), **changes}
        make_model(family, **sizes).save_pretrained(tmp_path / "hf")
        write_gguf(tmp_path / "hf", tmp_path / "model.gguf", kind, change)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
        return theirs, tmp_path / "model.gguf"

    return make


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(3, 96, shape, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def check_logits(theirs: Any, ours: Any, tolerance: float = 1e-4) -> None:
    expected, got = theirs(ids(2, 60)).logits, ours(ids(2, 60)).logits
    assert expected.std() > 0.3
    assert float((expected - got).abs().max()) <= tolerance


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_logits_are_those_of_the_dequantised_weights(written, family: str, kind: str) -> None:
    theirs, path = written(family, kind)
    assert kind in {tensor.kind for tensor in read_header(path).tensors.values()}
    ours = load_model(path, torch.float32)
    assert ours.dtype == torch.float32
    check_logits(theirs, ours)


@pytest.mark.parametrize(
    "kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "MXFP4"]
)
def test_every_kind_of_numbers(written, kind: str) -> None:
    theirs, path = written("qwen3_moe", kind, hidden_size=256, moe_intermediate_size=256, intermediate_size=256)
    check_logits(theirs, load_model(path, torch.float32), 2e-4)
    source = GgufSource(path, torch.float32)
    for name, tensor in load_file(path.parent / "hf/model.safetensors").items():
        assert torch.equal(source.read(name), tensor.float()), name


def test_any_part_of_a_tensor_can_be_read(written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pragnosia.checkpoints.source.PIECE_BYTES", 1000)
    monkeypatch.setattr("pragnosia.checkpoints.gguf_source._AT_ONCE", 100)
    for family in ("llama", "gpt_oss", "mixtral"):
        _, path = written(family, "Q8_0")
        source = GgufSource(path, torch.float32)
        for name in source.names:
            whole = source.read(name)
            assert whole.shape == source.shape(name)
            assert torch.equal(torch.cat([piece.reshape(-1) for piece in pieces(source, name)]), whole.reshape(-1))
            assert torch.equal(source.read(name, (1,)), whole[1])
            if whole.ndim > 1:
                assert torch.equal(source.read(name, (1, slice(2, 5))), whole[1, 2:5])
        (path.parent / "hf/model.safetensors").unlink()


def test_weights_become_bfloat16_unless_all_are_single(written) -> None:
    theirs, path = written("qwen3", "Q8_0")
    ours = load_model(path)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours.model.embed_tokens.weight, theirs.model.embed_tokens.weight.bfloat16())


def test_llama3_scaling_is_recognised(written) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    theirs, path = written("llama", "F32", rope_parameters=rope, head_dim=64)
    ours = load_model(path)
    assert ours.config.rope_parameters == rope
    check_logits(theirs, ours)


def test_import_pack_and_run(written, tmp_path: Path) -> None:
    if kernels.native_library() is None:
        pytest.skip("no compiled kernels here")
    _, path = written("qwen3_moe", "Q8_0")
    report = import_model(path, tmp_path / "ours")
    assert report.family == "qwen3_moe"
    for name, tensor in load_model(path).state_dict().items():
        assert torch.equal(tensor, load_model(tmp_path / "ours").state_dict()[name])
    for source, out in ((path, "packed"), (tmp_path / "ours", "again")):
        pack_model(blueprint(source), tmp_path / out, "int8")
    with torch.inference_mode():
        both = [load_streamed(tmp_path / out, GIB)[0](ids(1, 20)).logits for out in ("packed", "again")]
    assert torch.equal(*both)
    with pytest.raises(CheckpointError, match=r"pragnosia pack .*model\.gguf OUT, then run OUT"):
        load_streamed(path, GIB)


WORDS = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "Ġthe", "<|user|>"]
MERGES = ["t h", "th e", "Ġ the"]


def byte_pairs(writer: Any) -> None:
    """A vocabulary of bytes, a few merges and control tokens."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3 if word.startswith("<") and len(word) > 1 else 1 for word in WORDS])
    writer.add_token_merges(MERGES)
    writer.add_chat_template(TEMPLATE)
    writer.add_eot_token_id(len(WORDS) - 1)


def pieces_with_scores(writer: Any) -> None:
    """A vocabulary of sentencepiece's kind: pieces, scores, bytes."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "i", "t", "▁h", "hi", "▁hi"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * 259 + [-float(at) for at in range(7)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * 7)


def test_the_tokenizer_comes_with_the_file(written, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, path = written("qwen3", "Q8_0", byte_pairs, vocab_size=len(WORDS))
    speaker = Pragnosia.from_pretrained(path)
    truth = Tokenizer(models.BPE({word: at for at, word in enumerate(WORDS)}, [tuple(m.split()) for m in MERGES]))
    truth.pre_tokenizer, truth.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    truth.add_special_tokens([word for word in WORDS if word.startswith("<") and len(word) > 1])
    for text in ("in the <|user|>end: 안녕\n", "the the", "<|endoftext|>"):
        assert speaker.encode(text) == truth.encode(text).ids
        assert speaker.tokenizer.decode(speaker.encode(text)) == text
    assert len(speaker.tokenizer) == len(WORDS)
    assert speaker.tokenizer.chat_template == TEMPLATE
    assert speaker.stop_tokens == {2, len(WORDS) - 1}
    import_model(path, tmp_path / "ours")
    again = Pragnosia.from_pretrained(tmp_path / "ours")
    assert again.encode("in the end") == speaker.encode("in the end")
    assert again.tokenizer.chat_template == TEMPLATE
    said = again.generate("the end", max_new_tokens=8)
    for model in (path, path.parent / "alone"):
        if model.name == "alone":  # a directory with nothing but the file
            model.mkdir()
            (model / "any name.GGUF").symlink_to(path)
        capsys.readouterr()
        assert main(["generate", str(model), "the end", "--max-new-tokens", "8", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["text"] == said
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "bfloat16"
    (tmp_path / "text.txt").write_text("the end of the beginning " * 20)
    assert main(["eval", str(path), "--data", str(tmp_path / "text.txt"), "--json"]) == 0
    assert main(["import", str(path), str(tmp_path / "second")]) == 0


def test_a_vocabulary_of_pieces_with_scores(written) -> None:
    _, path = written("llama", "Q8_0", pieces_with_scores, vocab_size=266)
    speaker = Pragnosia.from_pretrained(path)
    assert speaker.encode("hi") == [1, 265]
    assert speaker.tokenizer.decode(speaker.encode("hi hit \u00e9"), skip_special_tokens=True).strip() == "hi hit é"


def test_early_files_hold_a_tensor_for_each_unit(written) -> None:
    theirs, path = written("mixtral", "F32")
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_name("early.gguf"), "llama")
    write_metadata(writer, json.loads((path.parent / "hf/config.json").read_text()))
    for tensor in reader.tensors:
        part = re.fullmatch(r"(blk\.\d+\.ffn_\w+)_exps\.weight", tensor.name)
        for at, data in enumerate(tensor.data if part else [tensor.data]):
            writer.add_tensor(f"{part[1]}.{at}.weight" if part else tensor.name, data)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    check_logits(theirs, load_model(path.with_name("early.gguf")))


def small(path: Path, architecture: str = "llama", **numbers: int) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in numbers.items():
        writer.add_uint32(name.replace("__", "."), value)
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    return path


def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, written, capsys: pytest.CaptureFixture[str]) -> None:
    def told(path: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
        assert main(["generate", str(path), "hi"]) == 2
        return str(caught.value)

    _, whole = written("qwen3", "Q8_0")
    for size in (2, 20, 300, whole.stat().st_size - 5):
        (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[:size])
        assert "truncated" in told(tmp_path / "cut.gguf")
    (tmp_path / "foreign.gguf").write_bytes(b"\x80\x02" + bytes(100))
    assert "does not begin as a GGUF file does" in told(tmp_path / "foreign.gguf")
    assert "does not exist" in told(tmp_path / "nowhere.gguf") or "No such file" in told(tmp_path / "nowhere.gguf")
    with pytest.raises(UnsupportedArchitectureError, match="GGUF architecture 'gemma3' is not supported"):
        load_model(small(tmp_path / "gemma.gguf", "gemma3"))
    assert "lack llama.block_count" in told(small(tmp_path / "bare.gguf"))
    assert "one of 3 parts" in told(small(tmp_path / "part.gguf", split__count=3))
    content = bytearray(small(tmp_path / "kind.gguf").read_bytes())
    at = content.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 16
    content[at : at + 4] = (99).to_bytes(4, "little")
    (tmp_path / "kind.gguf").write_bytes(content)
    assert "is of quantisation type 99" in told(tmp_path / "kind.gguf")
    (tmp_path / "both").mkdir()
    for name in ("a.gguf", "b.gguf"):
        small(tmp_path / "both" / name)
    assert "holds 2 GGUF files; name one" in told(tmp_path / "both")
    assert gguf_in(tmp_path / "hf") is None


def test_damage_anywhere_in_the_header_is_told(written, tmp_path: Path) -> None:
    _, whole = written("qwen3", "Q8_0", byte_pairs, vocab_size=len(WORDS))
    content = whole.read_bytes()
    generator = np.random.default_rng(0)
    for number, at in enumerate(generator.integers(0, 3000, 60)):
        damaged = bytearray(content)
        damaged[at] ^= int(generator.integers(1, 256))
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError, ConfigError):  # a changed text or number may well be sound
            blueprint(path)


def test_a_tensor_that_is_missing_or_left_over(written) -> None:
    def add(writer: Any) -> None:
        writer.add_tensor("blk.0.layer_output_scale.weight", np.ones(3, np.float32))

    _, path = written("qwen3", "F32", add)
    with pytest.raises(CheckpointError, match=r"blk\.0\.layer_output_scale\.weight has no place"):
        load_model(path)
