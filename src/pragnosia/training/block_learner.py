"""Blocks learn in turn: only one block's weights are in memory with slopes and moments, the others' wait on disk.

    OUT/blocks/cut.json                             where the model was cut, once and for all
    OUT/blocks/<block>-<step>.safetensors           a block's weights in the model's types, as it was left at that step
    OUT/blocks/<block>-<step>.state.safetensors     its fp32 weights, and its moments

The stream reads a block's weights from its newest file. An older one stays while a checkpoint might go back to it. The
block at work is in the checkpoint. At the end OUT is a model, and what was kept on the way goes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from pragnosia.checkpoints.blueprint import Blueprint
from pragnosia.checkpoints.places import Place, places_in
from pragnosia.inference.layers import coming_and_going
from pragnosia.kernels.pool import UnitPool
from pragnosia.model.cortex import Cortex
from pragnosia.training.checkpoint import Checkpoints
from pragnosia.training.optimisers import OptimiserConfig, Optimisers
from pragnosia.training.run_folder import CHECKPOINTS
from pragnosia.training.snapshot import STATE
from pragnosia.tuning.active import TunedModel
from pragnosia.tuning.block_files import read_tensors, write_tensors
from pragnosia.tuning.blocks import Block, BlockConfig, turn
from pragnosia.tuning.rewriting import Tuned, changed_entries, fill

BLOCKS, CUT, ACTIVE = "blocks", "cut.json", "block.safetensors"
_MODEL = ".model"


@final
class BlockLearner:
    """A model, resident or streamed, cut into blocks; `plan` is its directory."""

    def __init__(
        self,
        model: Cortex,
        pool: UnitPool | None,
        plan: Blueprint,
        blocks: Sequence[Block],
        settings: tuple[BlockConfig, OptimiserConfig, int],
        out: Path,
    ) -> None:
        self.pool, self.plan, self.blocks, self.out = pool, plan, list(blocks), out
        self.named = {block.name: block for block in self.blocks}
        self.tuned, self.folder = TunedModel(model, coming_and_going(model)), out / BLOCKS
        self.config, self.optimiser, self.seed = settings
        if pool is not None:
            _allow_many_files()
        self.left: dict[str, int] = {}
        """Of every block that had a turn, the step at which it was left last."""
        self.turns = 0
        """Begun so far."""
        self.block: Block | None = None
        self.learning: dict[str, nn.Parameter] = {}
        self.optimisers: Optimisers | None = None

    @property
    def model(self) -> Cortex:
        """Whole, whichever block is out."""
        return self.tuned.model

    def begin(self, step: int) -> None:
        """Give the next block its turn, where the last one's is over."""
        number = step // self.config.steps
        if number >= self.turns:
            self.end(step)
            self.turns = number + 1
            self._enter(turn(self.blocks, number, self.seed))
        assert self.optimisers is not None
        self.optimisers.zero()

    def move(self, factor: float) -> Tensor:
        """The block at work."""
        assert self.optimisers is not None
        norm = self.optimisers.step(factor)
        self.tuned.sync()
        return norm

    def write(self, folder: Path) -> Mapping[str, Any]:
        """The block at work; of the others, which files hold them."""
        write_tensors(folder / ACTIVE, self._state())
        return {"turns": self.turns, "left": self.left}

    def read(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Put every block where it was."""
        self.turns, self.left = state["turns"], dict(state["left"])
        for name in self.left:
            self.tuned.put(self.named[name], self._file(name))
        self._enter(turn(self.blocks, self.turns - 1, self.seed), read_tensors(folder / ACTIVE))

    def saved(self, checkpoints: Checkpoints) -> None:
        """Remove files that no checkpoint needs any more."""
        needed = {self._file(name) for name in self.left}
        for folder in checkpoints.complete():
            state = json.loads((folder / STATE).read_text(encoding="utf-8"))
            needed |= {self._file(name, step) for name, step in state["learner"]["left"].items()}
        kept = {self.folder / CUT, *needed, *map(_state_file, needed)}
        for path in self.folder.iterdir():
            if path not in kept:
                if self.pool is not None:
                    self.pool.leave(path)
                path.unlink()

    def end(self, step: int) -> None:
        """Write the block at work to disk, and let the model take it from there."""
        if self.block is None:
            return
        block, file = self.block, self._file(self.block.name, step)
        state = self._state()
        if self.config.reset_moments:
            state = dict(self.learning)
        write_tensors(_state_file(file), state)
        write_tensors(file, self.learning, {name: self.plan.dtype(name) for name in self.learning})
        self.block, self.optimisers, self.learning = None, None, {}
        del state
        self.tuned.release()
        self.tuned.put(block, file)
        self.left[block.name] = step

    def result(self) -> Mapping[str, Any]:
        """A model directory of the same family in the run's folder, its config.json last."""
        if self.pool is not None:
            self.pool.close()  # nobody computes any more, and writing wants room
        whole: dict[str, Place] = {}
        units: dict[str, dict[int, Place]] = {}
        for name in self.left:
            places = places_in(self._file(name))
            for part in self.named[name].parts:
                place = places[part.tensor]
                if part.first is None:
                    whole[part.tensor] = place
                    continue
                size = place.num_bytes // part.shape[0]
                for row in range(part.shape[0]):
                    unit = Place(place.file, place.offset + row * size, size, part.shape[1:], place.dtype)
                    units.setdefault(part.tensor, {})[part.first + row] = unit
        tuned = Tuned(self.plan, whole, units)
        entries = changed_entries(self.plan, tuned.names, lambda rule, number, _: lambda: rule.to_theirs(number, tuned))
        unfinished = self.out / _MODEL
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for name in sorted(fill(unfinished, self.plan.folder, entries), key=lambda name: name == "config.json"):
            if (self.out / name).is_dir():
                shutil.rmtree(self.out / name)
            (unfinished / name).replace(self.out / name)
        unfinished.rmdir()
        visited = {name: self.named[name].parameters for name in self.left}
        return {
            "parameters": sum(visited.values()),
            "num_blocks": len(self.blocks),
            "turns": self.turns,
            "blocks": visited,
        }

    def clean(self) -> None:
        """Moments and checkpoints: the run is over."""
        shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _enter(self, block: Block, state: Mapping[str, Tensor] | None = None) -> None:
        """Take a block out: as a checkpoint has it, or as it was left, or as it always was."""
        if state is None and block.name in self.left:
            state = read_tensors(_state_file(self._file(block.name)))
        self.learning = self.tuned.take(block, state)
        self.optimisers = Optimisers(self.learning.items(), set(), self.optimiser)
        if state is not None:
            self.optimisers.load_state({key: value for key, value in state.items() if "/" in key})
        self.block = block

    def _state(self) -> dict[str, Tensor]:
        """Of the block at work: weights by their names, moments as `<name>/<moment>`."""
        assert self.optimisers is not None
        return {**self.learning, **self.optimisers.state()}

    def _file(self, name: str, step: int | None = None) -> Path:
        return self.folder / f"{name}-{self.left[name] if step is None else step:08d}.safetensors"


def _allow_many_files() -> None:
    """The stream keeps every block's file open, and there may be hundreds."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _state_file(file: Path) -> Path:
    return file.with_suffix(".state.safetensors")
