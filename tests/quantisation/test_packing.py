"""Packed models: close to what was packed, seen through when damaged, and finished however often they are stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import transformers

from pragnosia import Pragnosia, PragnosiaForCausalLM, kernels
from pragnosia.checkpoints import import_model
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.errors import CheckpointError
from pragnosia.inference.loading import load_model
from pragnosia.inference.sampling import Sampling
from pragnosia.inference.shelf import AsPacked, open_shelf
from pragnosia.inference.sizes import as_if_packed
from pragnosia.inference.stream import load_streamed, pool_of
from pragnosia.kernels.formats import pack, unpack
from pragnosia.quantisation.calibration import Calibration
from pragnosia.quantisation.packing import pack_model
from pragnosia.units import GIB

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
FORMATS = ["bf16", "int8", "int4", "int3", "int2", "nf4", "bf16-2:4", "int8-2:4"]
# Relative RMS of a token's logits to those of the weights stored: streams are bfloat16, inputs of 8 bits.
CLOSE = 0.04


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=120,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=40,
        mlp_only_layers=[1],
        attention_bias=True,
        max_position_embeddings=128,
        initializer_range=0.15,
        tie_word_embeddings=request.param,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


def as_stored(source: Path, name: str, tmp_path: Path) -> PragnosiaForCausalLM:
    """The model in memory, in single precision, with every packed matrix as its rows say."""
    import_model(source, tmp_path / "plain")
    model = PragnosiaForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()
    for tensor_name, tensor in model.named_parameters():
        if name == "bf16" or tensor.ndim < 2 or "thalamus" in tensor_name or "bias" in tensor_name:
            continue
        ends = "embed_tokens" in tensor_name or "lm_head" in tensor_name
        if ends and name == "bf16-2:4":
            continue
        entry = "int8" if ends else name
        rows = tensor.data
        if tensor_name.endswith("bank.down") and kernels.FORMATS[entry].is_turned(rows.shape[-1]):
            rows = rows.transpose(1, 2)  # a view: rows of neurons, where units are narrow
        rows.copy_(unpack(pack(rows, entry), rows.shape[-1], entry))
    return model


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The median over tokens: a rounded score may wake another unit for one of them."""
    ours, theirs = ours.float(), theirs.float()
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).median())


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_stored_is_what_speaks(name: str, source: Path, tmp_path: Path) -> None:
    report = pack_model(blueprint(source), tmp_path / "packed", name)
    truth = as_stored(source, name, tmp_path)
    whole, tight = load_model(tmp_path / "packed"), load_streamed(tmp_path / "packed", 8 * GIB)[0]
    ids = torch.randint(0, 120, (1, 60), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = truth(ids).logits
        for length in (1, 5, 60):
            got = whole(ids[:, :length]).logits
            assert apart(got, expected[:, :length]) < CLOSE
            assert torch.equal(got, tight(ids[:, :length]).logits)
    assert expected.std() > 0.3
    said = [Pragnosia(model).generate_tokens(ids, max_new_tokens=20) for model in (whole, tight)]
    assert said[0] == said[1]
    assert report.num_bytes == sum(
        (tmp_path / "packed" / file).stat().st_size for file in ("units.bin", "resident.bin")
    )


@pytest.mark.parametrize("name", FORMATS)
def test_a_program_says_what_the_modules_say(name: str, source: Path, tmp_path: Path) -> None:
    pack_model(blueprint(source), tmp_path / "packed", name)
    model: Any = load_model(tmp_path / "packed")
    decoder = Pragnosia(model).decoder(64)
    decoder.read([1, 2, 3, 4])
    list(decoder.speak(12, Sampling()))
    assert decoder._program is not None
    with torch.inference_mode():
        modules = model(torch.tensor([decoder.ids[:-1]])).logits[:, -1]
    assert apart(decoder._program.logits, modules) < CLOSE


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("after", [1, 9, 13, 16])
def test_packing_goes_on_where_it_was_stopped(after: int, source: Path, tmp_path: Path) -> None:
    steps = 0

    def stop(done: int, total: int) -> None:
        nonlocal steps
        steps += 1
        if steps > after:
            raise StoppedError

    with pytest.raises(StoppedError):
        pack_model(blueprint(source), tmp_path / "packed", "int4", progress=stop)
    assert not (tmp_path / "packed").exists()
    assert pack_model(blueprint(source), tmp_path / "packed", "int4").resumed
    pack_model(blueprint(source), tmp_path / "again", "int4")
    for file in ("units.bin", "resident.bin", "packed.json"):
        assert (tmp_path / "packed" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert not (tmp_path / "packed.partial").exists()


def test_another_format_does_not_go_on_with_it(source: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == total:
            raise StoppedError

    with pytest.raises(StoppedError):
        pack_model(blueprint(source), tmp_path / "packed", "int4", progress=stop)
    with pytest.raises(CheckpointError, match="was begun from another model, format or calibration"):
        pack_model(blueprint(source), tmp_path / "packed", "int8")


def calibration(digest: str = "a", gather: Any = None) -> Calibration:
    """Of inputs that differ by column and by unit."""
    chance = torch.Generator().manual_seed(1)

    def made() -> dict[str, torch.Tensor]:
        bank = "model.layers.0.feed_forward.bank"
        shapes = {f"{bank}.up": (6, 64), f"{bank}.down": (6, 40), "model.layers.1.mixer.q_proj.weight": (64,)}
        return {name: torch.rand(shape, generator=chance).pow(4) + 1e-3 for name, shape in shapes.items()}

    return Calibration(digest, 100, gather or made)


def test_what_comes_in_decides_where_packing_errs(source: Path, tmp_path: Path) -> None:
    """By unit and by column: each matrix is that of `kernels.formats.pack` with its own importance."""
    print_, seen = blueprint(source), calibration().gather()
    pack_model(print_, tmp_path / "plain", "int3")
    pack_model(print_, tmp_path / "packed", "int3", calibration=calibration())
    shelf, bank = AsPacked(tmp_path / "packed"), "model.layers.0.feed_forward.bank"
    for unit in range(6):
        file, offset, size, *_ = shelf.unit(bank, 0, unit)[0][0]
        rows = [
            pack(print_.read(f"{bank}.up")[unit], "int3", seen[f"{bank}.up"][unit]),
            # rows of neurons, for units are narrow: along one, nothing differs that came in
            pack(print_.read(f"{bank}.down")[unit].t().contiguous(), "int3"),
        ]
        assert file.read_bytes()[offset : offset + size] == b"".join(part.numpy().tobytes() for part in rows)
    q_proj = "model.layers.1.mixer.q_proj.weight"
    known = shelf.stored(q_proj)
    file, offset, size, *_ = known.extents[0]
    expected = pack(print_.read(q_proj), "int3", seen[q_proj])
    assert file.read_bytes()[offset : offset + size] == expected.numpy().tobytes()
    for name in ("units.bin", "resident.bin"):
        assert (tmp_path / "packed" / name).read_bytes() != (tmp_path / "plain" / name).read_bytes()
        assert (tmp_path / "packed" / name).stat().st_size == (tmp_path / "plain" / name).stat().st_size
    assert not (tmp_path / "packed" / "calibration.safetensors").exists()
    with torch.inference_mode():
        assert load_model(tmp_path / "packed")(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


@pytest.mark.parametrize("after", [1, 9, 16])
def test_calibrated_it_goes_on_with_the_same_bits(after: int, source: Path, tmp_path: Path) -> None:
    steps = 0

    def stop(done: int, total: int) -> None:
        nonlocal steps
        steps += 1
        if steps > after:
            raise StoppedError

    def again() -> NoReturn:
        raise AssertionError("what was gathered lies there")

    print_, out = blueprint(source), tmp_path / "packed"
    with pytest.raises(StoppedError):
        pack_model(print_, out, "int4", calibration=calibration(), progress=stop)
    for other in (None, calibration("b")):
        with pytest.raises(CheckpointError, match="was begun from another model, format or calibration"):
            pack_model(print_, out, "int4", calibration=other)
    assert pack_model(print_, out, "int4", calibration=calibration(gather=again)).resumed
    pack_model(print_, tmp_path / "again", "int4", calibration=calibration())
    for file in ("units.bin", "resident.bin", "packed.json", "config.json"):
        assert (out / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_stopped_while_it_gathers(source: Path, tmp_path: Path) -> None:
    def stop() -> NoReturn:
        raise StoppedError

    print_, out = blueprint(source), tmp_path / "packed"
    with pytest.raises(StoppedError):
        pack_model(print_, out, "int4", calibration=calibration(gather=stop))
    assert pack_model(print_, out, "int4", calibration=calibration()).resumed


def test_statistics_that_are_damaged_or_serve_nothing(source: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> NoReturn:
        raise StoppedError

    print_, out = blueprint(source), tmp_path / "packed"
    for name in ("bf16", "int8"):
        with pytest.raises(CheckpointError, match=f"--calibrate changes nothing in {name}"):
            pack_model(print_, out, name, calibration=calibration())
    with pytest.raises(StoppedError):
        pack_model(print_, out, "int4", calibration=calibration(), progress=stop)
    file = tmp_path / "packed.partial" / "calibration.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"is damaged .* remove it and run the same command again"):
        pack_model(print_, out, "int4", calibration=calibration())
    file.unlink()
    assert pack_model(print_, out, "int4", calibration=calibration()).resumed


def test_damage_is_seen_before_it_speaks(source: Path, tmp_path: Path) -> None:
    pack_model(blueprint(source), tmp_path / "packed", "int8")
    units = tmp_path / "packed" / "units.bin"
    content = bytearray(units.read_bytes())
    speaker = Pragnosia(load_model(tmp_path / "packed"))
    for at in range(100, len(content), 4096):
        content[at] ^= 1
    units.write_bytes(content)
    with pytest.raises(CheckpointError, match="its checksum is wrong, the file is damaged"):
        speaker.generate_tokens([1, 2, 3], max_new_tokens=5)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda at: (at / "units.bin").write_bytes(b"short"), "units.bin holds 5 bytes, its index calls for"),
        (lambda at: (at / "resident.bin").unlink(), "resident.bin holds 0 bytes"),
        (lambda at: (at / "packed.json").write_text('{"version": 2}'), "is no index of a packed model"),
        (lambda at: (at / "packed.json").write_text('{"version": 9}'), "is of version 9, expected"),
        (lambda at: (at / "packed.json").write_text("["), "is not valid JSON"),
    ],
)
def test_a_damaged_directory(damage: Any, words: str, source: Path, tmp_path: Path) -> None:
    pack_model(blueprint(source), tmp_path / "packed", "int8")
    damage(tmp_path / "packed")
    with pytest.raises(CheckpointError, match=words):
        load_model(tmp_path / "packed")


def test_no_room_and_impossible_wishes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    print_ = blueprint(source)
    with pytest.raises(CheckpointError, match=r"unknown format 'int5'\. Did you mean"):
        pack_model(print_, tmp_path / "packed", "int5")
    with pytest.raises(CheckpointError, match="would pack nothing"):
        pack_model(print_, tmp_path / "packed", "fp32")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("x")
    with pytest.raises(CheckpointError, match="already exists"):
        pack_model(print_, tmp_path / "taken", "int4")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
        with pytest.raises(
            CheckpointError, match=r"needs .*, the disk has 0 B free; nothing was written: make room"
        ) as no:
            pack_model(print_, tmp_path / "packed", "int4")
        assert "--format" not in str(no.value), "no format is small enough"
        room = as_if_packed(open_shelf(source), "int3").on_disk
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(room, 0, room))  # type: ignore[attr-defined]
        with pytest.raises(CheckpointError, match="or take --format int3, which needs"):
            pack_model(print_, tmp_path / "packed", "int4")
    assert not (tmp_path / "packed").exists()
    assert not (tmp_path / "packed.partial").exists(), "the next try finds nothing in its way"
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"cannot make the folder .*packed\.partial: Not a directory; choose"):
        pack_model(print_, tmp_path / "file" / "packed", "int4")


def test_what_was_begun_and_holds_nothing_is_in_nobodys_way(source: Path, tmp_path: Path) -> None:
    """As a kill leaves it between making the folder and the first layer."""
    (tmp_path / "packed.partial").mkdir()
    (tmp_path / "packed.partial" / "progress.json").write_text(json.dumps({"format": "int8", "sums": []}))
    (tmp_path / "packed.partial" / ".lock").touch()
    assert not pack_model(blueprint(source), tmp_path / "packed", "int4").resumed
    assert pack_model(blueprint(source), tmp_path / "again", "int4").num_bytes
    for file in ("units.bin", "resident.bin"):
        assert (tmp_path / "packed" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_a_full_disk_keeps_what_is_done(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pragnosia.quantisation.packing import _Work

    def full(*_: Any) -> NoReturn:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_Work, "append", full)
        with pytest.raises(CheckpointError, match=r"No space left .*; what is done stays there: .* goes on where it"):
            pack_model(blueprint(source), tmp_path / "packed", "int4")
    progress = json.loads((tmp_path / "packed.partial" / "progress.json").read_text())
    assert len(progress["sums"]) == 12
    assert pack_model(blueprint(source), tmp_path / "packed", "int4").resumed


def test_two_speak_from_one_packed_model(source: Path, tmp_path: Path) -> None:
    pack_model(blueprint(source), tmp_path / "packed", "int4")
    first, second = (Pragnosia(load_model(tmp_path / "packed")) for _ in range(2))
    said = first.generate_tokens([1, 2, 3], max_new_tokens=10)
    assert second.generate_tokens([1, 2, 3], max_new_tokens=10) == said
    pool = pool_of(first.model)
    assert pool is not None
    assert pool.stats().misses > 0


def test_a_packed_model_is_accounted_for_and_scored(source: Path, tmp_path: Path) -> None:
    from pragnosia.measure.accounting import account
    from pragnosia.measure.scoring import score

    pack_model(blueprint(source), tmp_path / "packed", "int8")
    model: Any = load_model(tmp_path / "packed")
    assert account(model).total_parameters == account(model.config).total_parameters
    ids = torch.randint(0, 120, (1, 20))
    with torch.inference_mode():
        hidden = model.model(ids).last_hidden_state[0]
        found = score(hidden, model.lm_head.weight, ids[0])
        logits = model(ids).logits[0].float().log_softmax(-1)
    assert abs(float(found.log_probabilities.mean() - logits.gather(1, ids[0][:, None]).mean())) < 0.02


def test_two_who_pack_into_one_place(source: Path, tmp_path: Path) -> None:
    print_ = blueprint(source)

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(CheckpointError, match=r"another process is packing into .*; wait for it"):
            pack_model(print_, tmp_path / "out", "int8")

    pack_model(print_, tmp_path / "out", "int8", progress=meanwhile)
    assert not [file.name for file in (tmp_path / "out").iterdir() if file.name.startswith(".")]


def test_a_damaged_token_table_is_seen_before_it_speaks(source: Path, tmp_path: Path) -> None:
    pack_model(blueprint(source), tmp_path / "out", "int8")
    index = AsPacked(tmp_path / "out").index.tensors["model.embed_tokens.weight"]
    file = tmp_path / "out" / "resident.bin"
    data = bytearray(file.read_bytes())
    data[index.offset + index.num_bytes // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged .*checksum"):
        Pragnosia.from_pretrained(tmp_path / "out").generate_tokens([1, 2], max_new_tokens=3)
