"""What a night changes, and what it leaves: only a lesson's own slots, and old text within the bound."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pragnosia.errors import CheckpointError, ConfigError
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.training.replay import Replay, ReplayConfig, Script, beginnings, by_heart, losses, old_loss, own_alone
from pragnosia.training.slot_use import FILE, SlotUse, own_slots, used, watched

SLOTS, VOCABULARY = 1024, 64


@pytest.fixture
def model() -> PragnosiaForCausalLM:
    torch.manual_seed(0)
    config = PragnosiaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        max_position_embeddings=32,
        initializer_range=0.3,
        attention={"num_heads": 2, "num_key_value_heads": 1},
        feed_forward={"width": 16, "activation": "relu2"},
        feed_forwards=["dense", "memory"],
        hippocampus={"num_rows": SLOTS, "num_heads": 2, "num_awake": 4, "key_width": 16},
    )
    return PragnosiaForCausalLM(config).eval()


@pytest.fixture
def old() -> list[torch.Tensor]:
    return list(torch.randint(0, VOCABULARY, (12, 16), generator=torch.Generator().manual_seed(1)))


def script(count: int = 6) -> Script:
    draw = torch.Generator().manual_seed(2)
    lessons = [torch.randint(0, VOCABULARY, (length,), generator=draw).tolist() for length in range(6, 6 + count)]
    return Script.of(lessons, [1.0] * count)


def night(model: PragnosiaForCausalLM, old: list[torch.Tensor], **changes: float) -> Replay:
    config = ReplayConfig(**({"slots": 64, "rounds": 40, "rate": 0.2} | changes))  # type: ignore[arg-type]
    replay = Replay(model, script(), old[:4], config)
    use = SlotUse(128, used(model, old[4:]), torch.zeros(SLOTS, dtype=torch.bool))
    replay.choose(use.ease)
    return replay


def test_a_beginning_is_no_other_lessons() -> None:
    lessons = [[1, 2, 3, 4, 5], [1, 2, 3, 9, 5], [7, 2, 3, 4, 5], [1, 2], [1, 2, 3, 4, 6, 8]]
    found = beginnings(lessons)
    assert found == [4, 4, 3, 1, 5]
    for lesson, cue in zip(lessons[:3], found[:3], strict=True):
        assert sum(other[:cue] == lesson[:cue] for other in lessons) <= 2


def test_only_own_slots_change_until_it_knows(model: PragnosiaForCausalLM, old: list[torch.Tensor]) -> None:
    replay = night(model, old, bound=9.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    outcome = replay.run()
    after = model.state_dict()
    name = "model.hippocampus.rows"
    assert all(torch.equal(before[other], after[other]) for other in before if other != name)
    changed = (before[name] != after[name]).any(1)
    assert torch.equal(changed.nonzero()[:, 0], outcome.written)
    assert not changed[~replay.chosen].any()
    assert outcome.known_before < outcome.known == len(script())
    assert bool(by_heart(model, script()).all())
    assert outcome.ended == "recall"
    assert outcome.old_loss == pytest.approx(old_loss(model, old[:4]))


def test_never_dearer_than_the_bound(model: PragnosiaForCausalLM, old: list[torch.Tensor]) -> None:
    free = night(model, old, bound=9.0).run()
    rise = free.old_loss - free.old_loss_before
    assert rise > 0
    torch.manual_seed(0)
    model.model.hippocampus.rows.data.copy_(torch.randn(SLOTS, 32) * 0.3)
    before = old_loss(model, old[:4])
    outcome = night(model, old, bound=rise / 50, rate=1.0).run()
    assert outcome.undone
    assert old_loss(model, old[:4]) == pytest.approx(outcome.old_loss)
    assert old_loss(model, old[:4]) <= before + rise / 50 + 1e-6
    model.model.hippocampus.rows.data.copy_(torch.randn(SLOTS, 32) * 0.3)
    assert night(model, old, bound=9.0).run(stopped=lambda: True).ended == "stopped"


def test_losses_are_those_of_what_is_told(model: PragnosiaForCausalLM) -> None:
    lessons = script(3)
    together = losses(model, *lessons.batch([0, 1, 2]))
    for number in range(3):
        tokens, cue = lessons.tokens[number], lessons.cues[number]
        chances = model(tokens[None]).logits[0].log_softmax(-1)
        alone = -chances[cue - 1 : -1].gather(1, tokens[cue:, None]).mean()
        torch.testing.assert_close(together[number], alone, rtol=1e-4, atol=1e-5)


def test_own_slots_by_hand(model: PragnosiaForCausalLM, old: list[torch.Tensor]) -> None:
    lessons = script(2)
    tokens, told = lessons.batch([0, 1])
    use = used(model, old)
    torch.testing.assert_close(use, torch.stack([used(model, [one]) for one in old]).mean(0))
    ease = 1 / (use + 1e-3)
    found = own_slots(model, tokens, told, ease, 5)
    for number in range(2):
        length = len(lessons.tokens[number])
        with watched(model.model.hippocampus) as noted:
            model(tokens[number : number + 1, :length])
        share = torch.zeros(SLOTS)
        for at in told[number, :length].nonzero()[:, 0]:
            for row, strength in zip(noted.rows[0][at], noted.strengths[0][at], strict=True):
                share[row] += strength.detach()
        assert set(found[number].tolist()) == set((share * ease).topk(5).indices.tolist())


def test_slots_once_taken_stay(model: PragnosiaForCausalLM, old: list[torch.Tensor], tmp_path: Path) -> None:
    first = night(model, old, bound=9.0)
    written = first.run().written
    taken = torch.zeros(SLOTS, dtype=torch.bool)
    taken[written] = True
    use = SlotUse(128, used(model, old[4:]), taken)
    use.write(tmp_path)
    read = SlotUse.read(tmp_path, SLOTS)
    assert read is not None
    torch.testing.assert_close(read.ease, use.ease)
    assert not read.ease[written].any()
    again = Replay(model, Script.of([[5, 4, 3, 2, 1, 0]], [1.0]), old[:4], ReplayConfig(slots=24))
    again.choose(read.ease)
    assert again.chosen.any()
    assert not again.chosen[written].any()
    with pytest.raises(CheckpointError, match="other slots"):
        SlotUse.read(tmp_path, 4)
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="damaged"):
        SlotUse.read(tmp_path, SLOTS)


def test_a_gradient_is_cut_to_chosen_rows() -> None:
    slope = torch.sparse_coo_tensor(torch.tensor([[3, 0, 3]]), torch.ones(3, 2), (4, 2), check_invariants=True)
    rows, values = own_alone(slope, torch.tensor([False, True, True, True]))
    assert rows.tolist() == [3, 3]
    assert values.shape == (2, 2)


@pytest.mark.parametrize(("name", "value"), [("recall", 0), ("recall", 1.1), ("bound", -1), ("rate", 0), ("most", 0)])
def test_wishes_that_cannot_be(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        ReplayConfig(**{name: value})  # type: ignore[arg-type]
