"""How far are our fast kernels from transformers' eager modules, and is exact mode really at no distance?

    relative RMS = |logits - eager| / |eager|        KL(eager || other) = sum p ln (p / q)   [nats per token]

usage: exactness.py [FOLDER]. Mixtures of random weights in bfloat16 read a prompt and then single tokens, each by
transformers' eager modules (the reference), by its own defaults (sdpa, grouped_mm), by exact mode with few slots and by
our kernels. Where it fits, everybody is also held to the same weights computed in single precision: what is nearer to
eager need not be nearer to the truth. FOLDER is a further model, held in memory once, for its reference.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bench import earlier, publish

from pragnosia.inference import exact_loading, stream
from pragnosia.inference.program import Program

PROMPT, STEPS, SEED = 96, 32, 7
_TINY = {"vocab_size": 2000, "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 192}
_MEDIUM = {"vocab_size": 16000, "hidden_size": 768, "num_hidden_layers": 8, "intermediate_size": 384}
_HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512}
_FEW = {"num_local_experts": 8, "num_experts_per_tok": 2}
_MANY = {"num_experts": 32, "num_experts_per_tok": 4}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral, tiny": ("mixtral", _TINY | _FEW),
    "olmoe, tiny": ("olmoe", _TINY | _MANY),
    "qwen3_moe, tiny": ("qwen3_moe", _TINY | _MANY | {"moe_intermediate_size": 96, "head_dim": 16}),
    "qwen3_moe, medium": ("qwen3_moe", _MEDIUM | _MANY | {"moe_intermediate_size": 384, "head_dim": 96}),
}


def main(folder: Path | None) -> None:
    """Every case, and the folder if there is one."""
    cases = earlier(__file__, "cases") if folder is not None and Path(__file__).with_suffix(".json").exists() else {}
    if folder is not None:
        cases[f"{AutoConfig.from_pretrained(folder).model_type}, {_gigabytes(folder):.1f} GB"] = measured(
            folder, small=False
        )
    else:
        for name, (family, sizes) in CASES.items():
            with tempfile.TemporaryDirectory() as made:
                _write(Path(made), family, sizes)
                cases[name] = measured(Path(made), small=True)
    rows = [
        [name, arm, *(_cell(values.get(key)) for key in ("rms", "kl", "same_token", "rms_to_truth", "equal"))]
        for name, arms in cases.items()
        for arm, values in arms.items()
    ]
    header = ["model", "computed by", "rms to eager", "KL [nats]", "same token", "rms to fp32", "equal bits"]
    question = f"bfloat16, a prompt of {PROMPT} tokens and {STEPS} single ones: how far from transformers' eager?"
    publish(question, header, rows, {"prompt": PROMPT, "steps": STEPS, "seed": SEED, "cases": cases}, __file__)


def measured(folder: Path, *, small: bool) -> dict[str, dict[str, Any]]:
    """Each arm's distances."""
    ids = torch.randint(2, AutoConfig.from_pretrained(folder).vocab_size, (1, PROMPT + STEPS)).to(torch.long)
    eager = _of(_theirs(folder, "eager"), ids)
    plain = _of(_theirs(folder, "eager").float(), ids) if small else None
    arms = {"transformers, eager": eager}
    if small:
        arms["transformers, sdpa and grouped_mm"] = _of(_theirs(folder, "sdpa", "grouped_mm"), ids)
    with _few_slots():
        arms["ours, exact"] = _of(exact_loading.load_exact(folder, 1 << 40, context=PROMPT + STEPS)[0], ids)
    arms["ours, fast kernels"] = _ours(folder, ids)
    return {
        arm: distances(logits, eager) | ({} if plain is None else {"rms_to_truth": _rms(logits, plain)})
        for arm, logits in arms.items()
    }


def distances(logits: Tensor, reference: Tensor) -> dict[str, Any]:
    """Of (T, V) logits from (T, V) others."""
    p, q = (x.float().log_softmax(-1) for x in (reference, logits))
    kl = (p.exp() * (p - q)).sum(-1)
    return {
        "rms": _rms(logits, reference),
        "kl": float(kl.mean()),
        "kl_most": float(kl.max()),
        "same_token": float((p.argmax(-1) == q.argmax(-1)).float().mean()),
        "equal": torch.equal(logits, reference),
    }


def _rms(logits: Tensor, reference: Tensor) -> float:
    return float((logits.float() - reference.float()).norm() / reference.float().norm())


@torch.inference_mode()
def _of(model: Any, ids: Tensor) -> Tensor:
    """Logits (T, V) of the prompt, and of one token after the other."""
    output = model(ids[:, :PROMPT], past_key_values=None)
    logits, cache = [output.logits[0]], output.past_key_values
    for at in range(PROMPT, ids.shape[1]):
        output = model(ids[:, at : at + 1], past_key_values=cache)
        logits.append(output.logits[0])
        cache = output.past_key_values
    return torch.cat(logits)


@torch.inference_mode()
def _ours(folder: Path, ids: Tensor) -> Tensor:
    """As the decoder goes: the prompt through the modules, single tokens through a program."""
    model = stream.load_streamed(folder, stream.UNLIMITED, context=PROMPT + STEPS)[0]
    output: Any = model(ids[:, :PROMPT], past_key_values=model.fresh_state(1, PROMPT + STEPS))
    logits = [output.logits[0]]
    program = Program(model, output.past_key_values)
    for token in ids[0, PROMPT:].tolist():
        program(token)
        logits.append(program.logits[:1].clone().to(logits[0].dtype))
        program.length += 1
    return torch.cat(logits)


@contextmanager
def _few_slots() -> Iterator[None]:
    """Exact mode with a slot for a quarter of the units, so that they come and go."""
    whole = exact_loading.make_plan

    def few(*args: Any, **options: Any) -> Any:
        plan = whole(*args, **options)
        return replace(plan, slots=max(2 * plan.awake, plan.num_units // 4))

    exact_loading.make_plan = few
    try:
        yield
    finally:
        exact_loading.make_plan = whole


def _theirs(folder: Path, attention: str, experts: str = "eager") -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation=attention, experts_implementation=experts
    ).eval()


def _write(folder: Path, family: str, sizes: dict[str, Any]) -> None:
    config = AutoConfig.for_model(family, **(_HEADS | sizes))
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)


def _gigabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:.3g}"


if __name__ == "__main__":
    torch.manual_seed(SEED)
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
