"""GGUF files of every family, written here with the gguf library, against transformers on the dequantised weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pragnosia import Pragnosia, kernels
from pragnosia.apps.cli import main
from pragnosia.checkpoints import FAMILIES, import_model
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.checkpoints.gguf_header import read_header
from pragnosia.checkpoints.gguf_source import GgufSource
from pragnosia.checkpoints.source import pieces
from pragnosia.errors import CheckpointError
from pragnosia.inference.loading import load_model
from pragnosia.inference.shelf import shelf_of
from pragnosia.inference.sizes import as_if_packed
from pragnosia.inference.stream import load_streamed
from pragnosia.quantisation.packing import pack_model
from pragnosia.units import GIB

gguf = pytest.importorskip("gguf")
KINDS = gguf.GGMLQuantizationType
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


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


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_llama3_scaling_is_recognised(written, kind: str) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    theirs, path = written("llama", kind, rope_parameters=rope, head_dim=64)
    assert load_model(path).config.rope_parameters == rope
    check_logits(theirs, load_model(path, torch.float32))


def test_other_scalings_by_frequency_are_kept_exactly(written) -> None:
    theirs, path = written("llama", "Q8_0")  # another length of pre-training than Llama 3's
    factors = load_model(path).config.rope_parameters["long_factor"]
    plain = 500.0 ** -(torch.arange(0, 12, 2) / 12)
    assert torch.allclose(plain / torch.tensor(factors), theirs.model.rotary_emb.inv_freq, rtol=1e-6)


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
    assert as_if_packed(shelf_of(path), "int8").on_disk == shelf_of(tmp_path / "packed").on_disk
    planned = ["plan", str(path), "--memory", "4GiB", "--rates", "memory=20GB/s,disk=1GB/s"]
    assert main([*planned, "--format", "int8"]) == 0
    assert main(planned) == 0


WORDS = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "Ġthe", "<|user|>"]
MERGES = ["t h", "th e", "Ġ the"]


def byte_pairs(writer: Any, split: str = "qwen2", *more: str) -> None:
    """A vocabulary of bytes, a few merges and control tokens."""
    writer.add_tokenizer_model("gpt2")
    words = [*WORDS, *more]
    writer.add_tokenizer_pre(split)
    writer.add_token_list(words)
    writer.add_token_types([3 if word.startswith("<") and len(word) > 1 else 1 for word in words])
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


def test_a_vocabulary_like_llama3s(written) -> None:
    def words(writer: Any) -> None:
        byte_pairs(writer, "llama-bpe", "begin")  # a word that no merges lead to

    _, path = written("llama", "F32", words, vocab_size=len(WORDS) + 1)
    assert Pragnosia.from_pretrained(path).encode("begin") == [1, len(WORDS)]


def test_a_vocabulary_of_pieces_with_scores(written) -> None:
    _, path = written("llama", "Q8_0", pieces_with_scores, vocab_size=266)
    speaker = Pragnosia.from_pretrained(path)
    assert speaker.encode("hi") == [1, 265]
    assert speaker.tokenizer.decode(speaker.encode("hi hit \u00e9"), skip_special_tokens=True).strip() == "hi hit é"


def test_early_files_hold_a_tensor_for_each_unit(written, describe) -> None:
    theirs, path = written("mixtral", "F32")
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_name("early.gguf"), "llama")
    describe(writer, json.loads((path.parent / "hf/config.json").read_text()))
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


def test_a_tensor_that_is_missing_or_left_over(written) -> None:
    def add(writer: Any) -> None:
        writer.add_tensor("blk.0.layer_output_scale.weight", np.ones(3, np.float32))

    _, path = written("qwen3", "F32", add)
    with pytest.raises(CheckpointError, match=r"blk\.0\.layer_output_scale\.weight has no place"):
        load_model(path)
