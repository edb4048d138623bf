"""llama2.c files: against a plain reading of its algorithm, and the real story model against its story."""

from __future__ import annotations

import math
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from pragnosia.checkpoints import export_model, import_model
from pragnosia.checkpoints.llama2c_tokenizer import read_tokenizer
from pragnosia.errors import CheckpointError, UnsupportedArchitectureError
from pragnosia.model.modeling import PragnosiaForCausalLM

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, SEQ = 24, 20, 2, 4, 2, 16
K = DIM // HEADS
PIECES = ["t", "h", "e", " ", "a", "n", " t", "he", " the", "an", " a", "the", "ne", "aa", "aaa", "é", "n "]
VOCAB = 259 + len(PIECES)


def write_model(path: Path, vocab_size: int) -> dict[str, np.ndarray]:
    """A random checkpoint, and its arrays under llama2.c's names."""
    keys, random = KV_HEADS * K, np.random.default_rng(0)
    shapes = {
        "embedding": (VOCAB, DIM),
        "rms_att": (LAYERS, DIM),
        "wq": (LAYERS, DIM, DIM),
        "wk": (LAYERS, keys, DIM),
        "wv": (LAYERS, keys, DIM),
        "wo": (LAYERS, DIM, DIM),
        "rms_ffn": (LAYERS, DIM),
        "w1": (LAYERS, HIDDEN, DIM),
        "w2": (LAYERS, DIM, HIDDEN),
        "w3": (LAYERS, HIDDEN, DIM),
        "rms_final": (DIM,),
        "freq": (2, SEQ, K // 2),
        "wcls": (VOCAB if vocab_size < 0 else 0, DIM),
    }
    arrays = {name: random.normal(0, 0.4, shape).astype("<f4") for name, shape in shapes.items()}
    header = struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, vocab_size, SEQ)
    path.write_bytes(header + b"".join(array.tobytes() for array in arrays.values()))
    return arrays


def llama2c_logits(w: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """run.c in NumPy: one token after the other, interleaved rotary pairs."""

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return weight * x / np.sqrt((x * x).mean() + 1e-5)

    def turn(x: np.ndarray, position: int) -> np.ndarray:
        pairs = x.reshape(-1, K // 2, 2)
        angle = position * 10000.0 ** (-np.arange(0, K, 2) / K)
        real, imaginary = pairs[..., 0], pairs[..., 1]
        return np.stack(
            [real * np.cos(angle) - imaginary * np.sin(angle), real * np.sin(angle) + imaginary * np.cos(angle)], -1
        ).reshape(-1, K)

    past: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(LAYERS)]
    for position, token in enumerate(tokens):
        x = w["embedding"][token].astype(np.float64)
        for layer in range(LAYERS):
            h = norm(x, w["rms_att"][layer])
            query = turn(w["wq"][layer] @ h, position)
            past[layer].append((turn(w["wk"][layer] @ h, position), (w["wv"][layer] @ h).reshape(-1, K)))
            mixed = []
            for head in range(HEADS):
                group = head // (HEADS // KV_HEADS)
                scores = np.array([key[group] @ query[head] for key, _ in past[layer]]) / math.sqrt(K)
                weights = np.exp(scores - scores.max())
                values = np.array([value[group] for _, value in past[layer]])
                mixed.append(weights @ values / weights.sum())
            x = x + w["wo"][layer] @ np.concatenate(mixed)
            h = norm(x, w["rms_ffn"][layer])
            gate = w["w1"][layer] @ h
            x = x + w["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (w["w3"][layer] @ h))
    return (w["wcls"] if len(w["wcls"]) else w["embedding"]) @ norm(x, w["rms_final"])


@pytest.mark.parametrize("own_head", [False, True])
def test_logits_are_those_of_the_algorithm(tmp_path: Path, own_head: bool) -> None:
    arrays = write_model(tmp_path / "m.bin", -VOCAB if own_head else VOCAB)
    report = import_model(tmp_path / "m.bin", tmp_path / "ours")
    assert not report.has_tokenizer
    ours = PragnosiaForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert ours.config.tie_word_embeddings is not own_head
    tokens = [1, 260, 7, 271, 3, 9]
    with torch.no_grad():
        got = ours(torch.tensor([tokens])).logits[0, -1]
    assert np.abs(got.numpy() - llama2c_logits(arrays, tokens)).max() <= 1e-4
    export_model(tmp_path / "ours", tmp_path / "hf")
    llama = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert llama.config.model_type == "llama"
    with torch.no_grad():
        assert (llama(torch.tensor([tokens])).logits[0, -1] - got).abs().max() <= 1e-5


def write_tokenizer(path: Path) -> Path:
    names = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    entries = [(0.0, name) for name in names] + [(-float(rank), piece) for rank, piece in enumerate(PIECES)]
    data = struct.pack("<i", 7)
    for score, piece in entries:
        data += struct.pack("<fi", score, len(piece.encode())) + piece.encode()
    path.write_bytes(data)
    return path


def llama2c_encode(tokenizer: dict[str, int], text: str) -> list[int]:
    """run.c's encode: characters behind a space, then always the best-scored merge, the leftmost of equals."""
    tokens: list[int] = []
    for character in (" " + text) if text else "":
        known = tokenizer.get(character)
        tokens += [known] if known is not None else [byte + 3 for byte in character.encode()]
    pieces = {token: piece for piece, token in tokenizer.items()}
    while True:
        joint = [tokenizer.get(pieces[a] + pieces[b], math.inf) for a, b in pairwise(tokens)]
        best = min(joint, default=math.inf)  # in these vocabularies the lower token has the better score
        if best == math.inf:
            return [1, *tokens]
        place = joint.index(best)
        tokens[place : place + 2] = [int(best)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return read_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tok.bin"), VOCAB, SEQ)


@settings(max_examples=200)
@given(text=st.text(alphabet="thean  éü\n안", max_size=30))
def test_encoding_is_the_greedy_merge_and_decoding_its_inverse(tokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids == llama2c_encode(tokenizer.get_vocab(), text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_tokenizer_is_found_beside_the_model(tmp_path: Path) -> None:
    write_model(tmp_path / "m.bin", VOCAB)
    elsewhere = write_tokenizer(tmp_path / "elsewhere.bin")
    assert import_model(tmp_path / "m.bin", tmp_path / "given", tokenizer=elsewhere).has_tokenizer
    for name in ("tokenizer.bin", f"m_tok{VOCAB}.bin"):
        beside = elsewhere.rename(tmp_path / name)
        assert import_model(tmp_path / "m.bin", tmp_path / name.removesuffix(".bin")).has_tokenizer
        elsewhere = beside
    loaded = AutoTokenizer.from_pretrained(tmp_path / "given")
    assert loaded("").input_ids == [1]
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id) == (1, 2, 0)


BAD_FILES = {
    "empty": (b"", "too few"),
    "zip": (b"PK\x03\x04" + bytes(40), "is a pickle.*safetensors"),
    "pickle": (b"\x80\x02" + bytes(40), "is a pickle"),
    "version 1": (struct.pack("<8i", 0x616B3432, 1, *range(6)), "version 1, expected version 0"),
    "noise": (bytes(range(100)), "does not start with a llama2.c header"),
    "heads": (struct.pack("<7i", 24, 20, 2, 5, 5, 300, 16), "header"),
    "truncated": (struct.pack("<7i", 24, 20, 2, 4, 2, 300, 16) + bytes(100), "truncated"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    data, message = BAD_FILES[kind]
    (tmp_path / "bad.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        import_model(tmp_path / "bad.bin", tmp_path / "ours")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ours").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UnsupportedArchitectureError, match=r"model\.onnx"):
        import_model(tmp_path / "model.onnx", tmp_path / "ours")
    with pytest.raises(CheckpointError, match="does not exist"):
        import_model(tmp_path / "absent.bin", tmp_path / "ours")


@pytest.mark.parametrize("change", ["short", "long", "absent", "twice"])
def test_a_bad_tokenizer_is_refused(tmp_path: Path, change: str) -> None:
    write_model(tmp_path / "m.bin", VOCAB)
    path = write_tokenizer(tmp_path / "tok.bin")
    data = path.read_bytes()
    path.write_bytes({"short": data[:-9], "long": data + b"x", "twice": data[:-2] + b"he"}.get(change, data))
    if change == "absent":
        path.unlink()
    with pytest.raises(CheckpointError, match=r"tok\.bin"):
        import_model(tmp_path / "m.bin", tmp_path / "ours", tokenizer=path)
    assert not (tmp_path / "ours").exists()


def test_the_story_model_tells_its_story(shared_data: Path, tmp_path: Path) -> None:
    import_model(shared_data / "checkpoints" / "stories260K.bin", tmp_path / "ours")
    ours = PragnosiaForCausalLM.from_pretrained(tmp_path / "ours").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    start = tokenizer("", return_tensors="pt")
    told = tokenizer.decode(ours.generate(**start, max_new_tokens=60, do_sample=False)[0], skip_special_tokens=True)
    assert told.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball."
    )
    vocabulary = tokenizer.get_vocab()
    for text in ("Once upon a time", "  Lily's mom said, “no”!\n", "안녕 fröhlich", ""):
        ids = tokenizer(text).input_ids
        assert ids == llama2c_encode(vocabulary, text)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
