"""What each lobe is for: how much worse a model predicts each domain when a lobe falls silent.

    rise[l, d] = nats per token on domain d with lobe l lesioned - nats per token with all lobes

A specialised model loses on the domain of the lobe (the diagonal, where lobes and domains have the same names) and
little elsewhere. Ablation of experts by domain: MiCRo, arXiv 2506.13331.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pragnosia.data.sources import Source
from pragnosia.errors import CheckpointError, ConfigError, DataError
from pragnosia.measure.calibration import cut
from pragnosia.measure.scoring import score
from pragnosia.model.cortex import Cortex
from pragnosia.model.thalamus import sparse, unit_load

TOKENS = 4096
WINDOW = 256
LEAST = 64


@dataclass(frozen=True)
class Ablation:
    """Rows are lobes, columns domains."""

    lobes: tuple[str, ...]
    domains: tuple[str, ...]
    tokens: tuple[int, ...]
    """Scored, of each domain."""
    loss: tuple[float, ...]
    """Of each domain, nats per token, with all lobes."""
    rise: tuple[tuple[float, ...], ...]
    """Nats per token, with one lobe silent."""
    share: tuple[tuple[float, ...], ...]
    """Of all wakings in a domain, those of a lobe's units; a column sums to 1."""

    @property
    def diagonal(self) -> float | None:
        """Mean rise of a domain when the lobe of its name is silent; None where no names agree."""
        return _mean([self.rise[a][b] for a, b in self._pairs() if self.lobes[a] == self.domains[b]])

    @property
    def off_diagonal(self) -> float | None:
        """Mean rise of the domains when a lobe of another name is silent, of lobes that have a domain."""
        return _mean([self.rise[a][b] for a, b in self._pairs() if self.lobes[a] != self.domains[b]])

    @property
    def contrast(self) -> float | None:
        """Diagonal over the mean size of the rises beside it, whichever way they go; None where no names agree."""
        beside = _mean([abs(self.rise[a][b]) for a, b in self._pairs() if self.lobes[a] != self.domains[b]])
        return None if self.diagonal is None or not beside else self.diagonal / beside

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON: `rise` and `share` by lobe and domain."""
        by_name = {
            what: {
                lobe: dict(zip(self.domains, row, strict=True)) for lobe, row in zip(self.lobes, matrix, strict=True)
            }
            for what, matrix in (("rise", self.rise), ("share", self.share))
        }
        return {
            "lobes": list(self.lobes),
            "domains": list(self.domains),
            "tokens": dict(zip(self.domains, self.tokens, strict=True)),
            "loss": dict(zip(self.domains, self.loss, strict=True)),
            **by_name,
            "diagonal": self.diagonal,
            "off_diagonal": self.off_diagonal,
            "contrast": self.contrast,
        }

    def _pairs(self) -> list[tuple[int, int]]:
        """Rows and columns of lobes that have a domain."""
        named = [row for row, lobe in enumerate(self.lobes) if lobe in self.domains]
        return [(row, column) for row in named for column in range(len(self.domains))]


def lobes_of(model: Cortex) -> tuple[str, ...]:
    """Raises ConfigError for a model in which no lobe can be told from another."""
    organ = model.config.units
    if organ is None:
        raise ConfigError("this model is dense: it has no lobes")
    lobes = tuple(organ.lobes or ())
    if len(lobes) < 2:
        raise ConfigError(
            f"the model has one lobe, {lobes[0]!r}, which holds all its units: there is nothing to set it beside; "
            "lobes are named in the configuration, as experts.lobes"
        )
    return lobes


@torch.inference_mode()
def ablate(
    model: Cortex, tokenizer: PreTrainedTokenizerBase, domains: Mapping[str, Source], *, tokens: int = TOKENS
) -> Ablation:
    """Silence one lobe after the other and read the first `tokens` of every domain; columns stand as their lobes do.

    Raises ConfigError for a model without lobes, DataError for too little text.
    """
    lobes = lobes_of(model)
    domains = {name: domains[name] for name in sorted(domains, key=lambda name: _place(lobes, name))}
    vocabulary, context = int(model.config.vocab_size), min(WINDOW, int(model.config.max_position_embeddings))
    read = {name: list(cut(tokenizer, text, vocabulary, tokens, context)) for name, text in domains.items()}
    for name, windows in read.items():
        if sum(map(len, windows)) < LEAST:
            raise DataError(f"domain {name!r} holds fewer than {LEAST} tokens; give it more text")
    loss, share, count = [], [], []
    for windows in read.values():
        nats, load, scored = _nats(model, windows)
        loss.append(nats)
        count.append(scored)
        share.append([float(load[units.start : units.stop].sum()) for units in next(model.experts()).lobes.values()])
    rise = []
    for lobe in lobes:
        with model.lesion(lobe):
            rise.append(
                tuple(_nats(model, windows)[0] - whole for windows, whole in zip(read.values(), loss, strict=True))
            )
    by_lobe = tuple(zip(*share, strict=True))
    return Ablation(lobes, tuple(read), tuple(count), tuple(loss), tuple(rise), by_lobe)


def _nats(model: Cortex, windows: Sequence[Tensor]) -> tuple[float, Tensor, int]:
    """Mean nats per token, each unit's share of all wakings, and how many tokens were scored."""
    nats, scored = 0.0, 0
    load = torch.zeros(int(model.config.units.num_units))
    for window in windows:
        if len(window) < 2:
            continue
        output = model.model(window[None, :-1], use_cache=False)
        nats -= float(score(output.last_hidden_state[0], model.lm_head, window[1:]).log_probabilities.sum())
        scored += len(window) - 1
        for routing in sparse(output.routings):
            load += unit_load(routing.passed).cpu()
    if not nats >= 0 or nats == float("inf"):
        raise CheckpointError(f"the model's predictions sum to {nats} nats, not a number: its weights are damaged")
    return nats / scored, load / load.sum().clamp_min(1), scored


def draw(ablation: Ablation, path: Path, title: str) -> None:
    """The matrix as a picture: the redder, the more a domain loses."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    from pragnosia.measure.pictures import COOL, INK, SOFT, WARM, save

    matrix = torch.tensor(ablation.rise)
    most = max(float(matrix.abs().max()), 1e-9)
    rows, columns = matrix.shape
    figure = Figure(figsize=(2.2 + 1.1 * columns, 1.7 + 0.6 * rows), layout="constrained")
    axes = figure.add_subplot()
    colours = LinearSegmentedColormap.from_list("rise", [COOL, "white", WARM])
    axes.imshow(matrix.numpy(), cmap=colours, vmin=-most, vmax=most, aspect="auto")
    for row in range(rows):
        for column in range(columns):
            value = ablation.rise[row][column]
            colour = "white" if abs(value) > 0.7 * most else INK
            axes.text(column, row, f"{value:+.2f}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(columns), ablation.domains, fontsize=9, color=INK)
    axes.set_yticks(range(rows), [f"{lobe} silent" for lobe in ablation.lobes], fontsize=9, color=INK)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.set_xlabel("rise of the loss, nats per token", fontsize=8.5, color=SOFT)
    save(figure, path)


def _place(lobes: Sequence[str], domain: str) -> int:
    """Of a column: where its lobe stands; domains of no lobe stand behind, as they were named."""
    return lobes.index(domain) if domain in lobes else len(lobes)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
