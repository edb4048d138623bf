"""`inspect MODEL --text`: what stands in a model's workspace when a text has been read (model/workspace_state.py)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pragnosia.apps.answer import Answer, aligned

if TYPE_CHECKING:
    from pragnosia.model.workspace_state import LayerState, WorkspaceState


def introspect(model: str, text: str, *, quiet: bool) -> Answer:
    """Load the model, let it read the text, look. Raises CheckpointError, ConfigError, PromptError."""
    from pragnosia.inference.directory import check_speaker

    folder = Path(model)
    check_speaker(folder)  # before torch is loaded
    from pragnosia.apps.budgeting import open_speaker
    from pragnosia.errors import ConfigError
    from pragnosia.inference.loading import load_config
    from pragnosia.inference.sampling import check_text

    check_text(text)
    if load_config(folder).workspace is None:
        raise ConfigError(f"{model} has no workspace to look into; train one with model.workspace: {{layers: [1]}}")
    speaker = open_speaker(folder, None, None, quiet=quiet, speculate=False, store=False)
    limit, ids = int(speaker.model.config.max_position_embeddings), speaker.encode(text)
    if len(ids) > limit:
        raise ConfigError(f"--text has {len(ids)} tokens, the model holds {limit}; give less")
    state = speaker.workspace_state(text)
    values: dict[str, Any] = {"model": model, "text": text, "tokens": len(ids), **state.to_dict()}
    return Answer(values, _told(state))


def _told(state: WorkspaceState) -> list[str]:
    """For people: the four quantities, each with what it is, then slot by slot."""
    if not any(layer.winners for layer in state.layers):
        return ["nothing stands in the workspace yet: the text is shorter than a segment; give a longer one"]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in _by_size(state.attention))
    read = sum(state.memory) / max(1, len(state.layers))
    lifted = ", ".join(f"{word!r} {bits:+.2f}" for word, bits in state.intention.lifted)
    rows = [
        ("awareness", f"{state.awareness:.3f} of the strength that competed has won"),
        ("attention", f"{shares} of the strength that stands"),
        ("memory", f"the last token reads slots by {read:.1%}, and nothing by {1 - read:.1%}"),
        ("intention", f"{state.intention.bits:.4f} bits of change in the next word; likelier by bits: {lifted}"),
    ]
    return [*aligned(rows), *(line for layer in state.layers for line in _slots(layer))]


def _by_size(shares: Any) -> list[tuple[str, float]]:
    return sorted(shares.items(), key=lambda pair: -pair[1])


def _slots(layer: LayerState) -> list[str]:
    """What stands in one layer's slots, strongest first."""
    head = f"layer {layer.layer} (counted from 0): awareness {layer.awareness:.3f}, unread {layer.unread:.1%}"
    columns = f"{'strength':>10}  {'read':>6}  {'at':>5}  {'said by':<16}for"
    return [
        head,
        columns,
        *(
            f"{one.strength:>10.3f}  {one.read:>6.1%}  {one.place:>5}  {one.module:<16}{one.token!r}"
            for one in layer.winners
        ),
    ]
