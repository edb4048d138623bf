"""How fast does an 8 GB mixture in memory speak, bf16, batch 1, beside transformers on the very same weights?

12 layers of width 2048, 64 experts of width 768, 4 awake, vocabulary 32,000: 7.97 GB, of which 1.04 GB per token.
Both models hold the same tensors, so nothing differs but the way they are computed. Needs 10 GB of free memory.
"""

from __future__ import annotations

import sys
import time

import torch
from _bench import in_turn, median, publish, ratio, spread
from _peers import IMPLEMENTATIONS, large
from decode import generating, speaking
from transformers import Qwen3MoeForCausalLM

from pragnosia import PragnosiaForCausalLM
from pragnosia.checkpoints.families import read_config
from pragnosia.measure.accounting import account


def peer() -> Qwen3MoeForCausalLM:
    """transformers' model with random bf16 weights."""
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(large().theirs()).to(torch.bfloat16)
    model.to_empty(device="cpu")
    # One block of random numbers repeated: filling 8 GB with fresh ones takes minutes and changes no timing.
    block = (torch.randn(1 << 22) * 0.02).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        flat = parameter.data.view(-1)
        for start in range(0, flat.numel(), block.numel()):
            part = flat[start : start + block.numel()]
            part.copy_(block[: part.numel()])
        if "norm" in name:
            parameter.data.fill_(1)
        if "gate.weight" in name or "embed" in name:  # no two experts or tokens may be alike
            parameter.data.copy_(torch.randn(parameter.shape) * (1.0 if "embed" in name else 0.02))
    model._init_weights(model.model.rotary_emb)
    return model.eval()


def ours(theirs: Qwen3MoeForCausalLM) -> PragnosiaForCausalLM:
    """Our model around the same tensors."""
    config = read_config(theirs.config.to_dict())
    with torch.device("meta"):
        model = PragnosiaForCausalLM(config).to(torch.bfloat16)
    given = dict(theirs.named_parameters())
    renamed = {
        "mixer_norm.": "input_layernorm.",
        "feed_forward_norm.": "post_attention_layernorm.",
        "mixer.": "self_attn.",
        "feed_forward.thalamus.": "mlp.gate.",
        "feed_forward.bank.up": "mlp.experts.gate_up_proj",
        "feed_forward.bank.down": "mlp.experts.down_proj",
    }
    for name, _ in list(model.named_parameters()):
        source = name
        for mine, other in renamed.items():
            source = source.replace(mine, other)
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, given[source])
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.zeros(buffer.shape))
    model._init_weights(model.model.positions)
    return model.eval()


def main(rounds: int) -> None:
    """Measure both, and compare what they say."""
    torch.manual_seed(0)
    started = time.perf_counter()
    theirs = peer()
    mine = ours(theirs)
    print(f"built in {time.perf_counter() - started:.0f} s", flush=True)
    arms = {"ours": speaking(mine, new=16)}
    for implementation in IMPLEMENTATIONS:
        arms[f"transformers {implementation}"] = generating(theirs, new=16, implementation=implementation)
    rates = in_turn(arms, rounds=rounds)
    best = max(list(rates)[1:], key=lambda name: median(rates[name]))
    against = ratio(rates["ours"], rates[best])
    prompt = torch.randint(32_000, (1, 32))
    with torch.inference_mode():
        theirs.set_experts_implementation("eager")
        reference, got = theirs(prompt).logits.float(), mine(prompt, use_cache=False).logits.float()
    error = float((got - reference).pow(2).mean().sqrt() / reference.pow(2).mean().sqrt())
    active = account(mine).bytes_per_token
    rows = [[name, f"{median(values):.1f}", f"{median(values) * active / 1e9:.1f}"] for name, values in rates.items()]
    rows += [[f"ours / {best}", spread(against), ""], ["logits, relative RMS to eager", f"{error:.4f}", ""]]
    values = {
        "tokens_per_second": {name: median(values) for name, values in rates.items()},
        "ours_over_best": against,
        "best": best,
        "active_bytes_per_token": active,
        "relative_rms_error_of_logits": error,
        "rounds": rounds,
    }
    publish("Greedy decode of an 8 GB mixture in memory, bf16, batch 1", ["engine", "tok/s", "GB/s of weights"],
            rows, values, __file__)  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
