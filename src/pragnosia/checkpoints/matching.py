"""Do the tensors fit the model? Every one there, none left over, each of the right shape and type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from pragnosia.checkpoints.source import Shape, TensorSource, pieces
from pragnosia.errors import CheckpointError
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import PlainCortex

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Old Llama files store rotary frequencies, which follow from the configuration.
_DERIVED = "rotary_emb.inv_freq"


def parameter_shapes(config: PragnosiaConfig) -> dict[str, Shape]:
    """Our tensors and their shapes, without making any of them."""
    model = PlainCortex.unfilled(config)
    tied = {HEAD} if config.tie_word_embeddings else set()
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def check_tensors(expected: Mapping[str, Shape], source: TensorSource, ignored: Sequence[str] = ()) -> None:
    """Raises CheckpointError for the first tensor that is missing, left over or of another shape."""
    for name in expected:
        if name not in source.names:
            raise CheckpointError(
                f"{source.file(name)}: tensor {name} is missing, expected with shape {expected[name]}"
            )
    for name in source.names:
        if name not in expected and name not in ignored and not name.endswith(_DERIVED):
            raise CheckpointError(f"{source.file(name)}: tensor {name} has no place in the model config.json describes")
    for name, shape in expected.items():
        got = source.shape(name)
        if got != shape:
            raise CheckpointError(f"{source.file(name)}: tensor {name} has shape {got}, config.json calls for {shape}")


def common_dtype(names: Sequence[str], source: TensorSource) -> torch.dtype:
    """The one type of tensors that will be parts of one. Raises CheckpointError if they differ."""
    first = source.dtype(names[0])
    for name in names:
        if source.dtype(name) != first:
            raise CheckpointError(
                f"{source.file(name)}: {name} is {source.dtype(name)}, {names[0]} is {first}; expected one"
            )
    return first


def has_own_head(source: TensorSource) -> bool:
    """Whether there is an output head that differs from the embeddings (as transformers decides it too)."""
    if HEAD not in source.names or EMBEDDINGS not in source.names:
        return False
    if source.shape(HEAD) != source.shape(EMBEDDINGS):
        return True
    both = zip(pieces(source, HEAD), pieces(source, EMBEDDINGS), strict=True)
    return not all(torch.equal(head, embeddings) for head, embeddings in both)
